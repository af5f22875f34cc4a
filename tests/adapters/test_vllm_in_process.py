"""vLLM in process, over a fake of its package; tests/vllm has the real one."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.offline_address import parse_offline
from adapters.vllm_engine import Engine
from adapters.vllm_offline import VllmOffline
from engine.errors import ModelError, UnknownModelError
from engine.fences import fence
from engine.ports import ChatModel, Receipting
from engine.types import Answer, AttemptFailure, FinishReason, Message, Request
from tests.contracts.chat_model import ChatModelContract
from tests.support import fake_vllm_package
from tests.support.fake_vllm_package import World

T = TypeVar("T")
LABELS = ("spam", "ok")
SYSTEM = Message("system", "decide by these rules")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_vllm_package.install(monkeypatch)


def request(name: str, text: str = "", system: Message = SYSTEM) -> Request:
    return Request(name, (system, Message("user", fence("input", text or name))), 4, choices=LABELS)


def model(address: str = "vllm-offline:/models/tiny", **options: Any) -> VllmOffline:
    return VllmOffline(parse_offline(address), **options)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class TestOffline(ChatModelContract):
    def model(self) -> ChatModel:
        return model()

    def requests(self) -> list[Request]:
        return [*(request(f"r{n}") for n in range(3)), Request("free", (Message("user", "say"),), 4)]

    def bad_request(self) -> Request | None:
        return request("bad", "refuse me Donaudampfschiff")


# --- addresses --------------------------------------------------------------------------------------


def test_settings_stand_behind_the_model() -> None:
    found = parse_offline("vllm-offline:/m/a?max_model_len=8192&enforce_eager=true&dtype=bfloat16&x=0.5")
    assert found.model == "/m/a"
    assert found.options == {"max_model_len": 8192, "enforce_eager": True, "dtype": "bfloat16", "x": 0.5}
    assert found.name == "vllm-offline:/m/a?max_model_len=8192&enforce_eager=true&dtype=bfloat16&x=0.5"
    assert parse_offline("vllm-offline:org/name").options == {}


@pytest.mark.parametrize(
    "rest",
    ["", "?a=1", " m", "http://host:1/v1", "m?", "m?a", "m?a=", "m?A=1", "m?a=1&a=2", "m?model=x", "m\n"],
)
def test_what_is_no_address_is_refused_in_one_line(rest: str) -> None:
    if rest == "m?":
        assert parse_offline("vllm-offline:m?").options == {}
        return
    with pytest.raises(UnknownModelError) as raised:
        parse_offline(f"vllm-offline:{rest}")
    assert "\n" not in str(raised.value)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with suppress(UnknownModelError):
        assert parse_offline(f"vllm-offline:{text}").name


# --- asking -----------------------------------------------------------------------------------------


def test_the_first_request_with_a_prefix_goes_ahead_of_its_batch(world: World) -> None:
    other = Message("system", "decide by other rules")

    async def check() -> None:
        student = model()
        batch = [request("a"), request("b", system=other), request("c"), request("d", system=other)]
        outcomes = await student.complete(batch)
        assert [isinstance(one, Answer) for one in outcomes] == [True] * 4
        await student.complete([request("e"), request("f")])
        await student.aclose()

    run(check())
    names = [[text.splitlines()[1] for text in batch] for batch in world.batches]
    # a and b once more each: only then the cache is known to have their beginnings
    assert names == [["a"], ["a"], ["b"], ["b"], ["c", "d"], ["e", "f"]]


def test_beginnings_that_nothing_shares_go_all_at_once(world: World) -> None:
    batch = [request(f"r{n}", system=Message("system", f"rules {n}")) for n in range(2000)]
    student = model()

    async def check() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(student.complete(batch[:1000]))
            group.create_task(student.complete(batch[1000:]))

    run(check())
    assert [len(one) for one in world.batches] == [1000, 1000]


@pytest.mark.parametrize("cold", [1, 2, 9])
def test_a_prefix_that_is_kept_late_or_never_is_asked_three_times_at_most(world: World, cold: int) -> None:
    world.cold_requests = cold
    run(model().complete([request("a"), request("b")]))
    assert len(world.batches) == 1 + min(cold + 1, 3)


def test_labels_come_with_their_probabilities(world: World) -> None:
    (answer,) = run(model().complete([request("a")]))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == ("spam", FinishReason.STOP)
    assert answer.label_logprobs is not None
    assert math.isclose(sum(map(math.exp, answer.label_logprobs.values())), 1.0)
    assert answer.label_logprobs["spam"] > answer.label_logprobs["ok"]


def test_a_refused_request_fails_alone(world: World) -> None:
    batch = [request(f"r{n}", "refuse me" if n == 5 else "") for n in range(9)]
    outcomes = run(model().complete(batch))
    assert [isinstance(one, AttemptFailure) for one in outcomes] == [n == 5 for n in range(9)]


def test_what_is_too_long_fails_or_loses_its_middle(world: World) -> None:
    long = request("long", " ".join(f"w{n}" for n in range(500)))
    (failed,) = run(model().complete([long]))
    assert isinstance(failed, AttemptFailure)
    assert failed.reason == "too_long"
    assert failed.retry.kind == "no"
    student = model(too_long="cut")
    assert student.name.endswith("#cut")
    (answer,) = run(student.complete([long]))
    assert isinstance(answer, Answer)
    sent = world.batches[-1][0]
    assert sent.startswith("<input>\nw0")
    assert sent.endswith("w499\n</input>")
    assert f"[… {answer.cut_characters:,} characters left out …]" in sent


def test_a_prompt_is_counted_once_and_not_with_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    token_ids = Engine.token_ids

    def counting(engine: Engine, messages: Sequence[Message]) -> list[int] | None:
        counted.append(messages[-1].content)
        return token_ids(engine, messages)

    monkeypatch.setattr(Engine, "token_ids", counting)
    prompt = Message("system", "word " * 180)  # 900 bytes of it would not fit
    batch = [*(request(f"r{n}", system=prompt) for n in range(50)), request("long", "w " * 30, system=prompt)]
    outcomes = run(model("vllm-offline:m?max_model_len=300").complete(batch))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert counted == ["", fence("input", "w " * 30)]


def test_a_template_that_takes_no_such_messages_is_the_engines_to_tell(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object, **__: object) -> str:
        raise LookupError("the template knows no system message")

    monkeypatch.setattr(fake_vllm_package, "_rendered", raises)
    world.failure = ValueError("the template knows no system message")
    (failed,) = run(model().complete([request("a", "w " * 9999)]))
    assert failed == AttemptFailure("refused", "vLLM does not take it (ValueError)")


def test_the_receipt_tells_what_was_cached(world: World) -> None:
    async def check() -> None:
        student = model()
        assert isinstance(student, Receipting)
        assert await student.receipt() is None
        await student.complete([request(f"r{n}") for n in range(50)])
        receipt = await student.receipt()
        assert receipt is not None
        assert receipt.requests == 50
        assert receipt.expected_tokens is not None
        assert receipt.cached_tokens is not None
        assert receipt.cached_tokens >= 0.9 * receipt.expected_tokens > 0
        await student.aclose()
        assert await student.receipt() is None
        assert len(world.loaded) == 1, "a receipt loads no model"

    run(check())


# --- the engine -------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_first_request_and_only_once(world: World) -> None:
    async def check() -> None:
        student = model("vllm-offline:/models/tiny?dtype=bfloat16")
        await student.aclose()
        assert world.loaded == []
        await asyncio.gather(*(student.complete([request(f"r{n}")]) for n in range(5)))
        assert len(world.loaded) == 1
        await student.aclose()
        await student.aclose()
        assert world.closed == 1
        await student.complete([request("again")])
        assert len(world.loaded) == 2

    run(check())
    settings = world.loaded[0]
    assert settings["model"] == "/models/tiny"
    assert settings["dtype"] == "bfloat16"
    assert settings["enable_prefix_caching"] is True
    assert settings["prefix_cache_retention_interval"] is None
    assert "max_num_batched_tokens" not in settings
    assert len(world.threads) <= 2
    assert threading.get_ident() not in world.threads


def test_on_a_gpu_a_step_reads_many_rows_and_settings_of_the_address_count_more(world: World) -> None:
    world.gpu = True
    run(model().complete([request("a")]))
    run(model("vllm-offline:m?max_num_batched_tokens=99").complete([request("a")]))
    assert [one["max_num_batched_tokens"] for one in world.loaded] == [16_384, 99]


def test_what_cannot_be_loaded_is_one_clear_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(address: str = "vllm-offline:m") -> str:
        with pytest.raises(ModelError) as raised:
            run(model(address).complete([request("a")]))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "has no setting named max_len" in error("vllm-offline:m?max_len=4")
    world.load_failure = RuntimeError("boom\nsecond line")
    assert "cannot be loaded: boom" in error()
    world.load_failure = ValueError("CUDA out of memory. Tried to allocate 2 GiB")
    assert "out of GPU memory" in error()
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "pld-engine[vllm]" in error()


def test_an_engine_that_fails_stops_the_job(world: World) -> None:
    world.failure = RuntimeError("CUDA error: device-side assert triggered by unmentionable row text")
    with pytest.raises(ModelError, match=r"its engine failed: RuntimeError$"):
        run(model().complete([request("a")]))
    world.failure = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(ModelError, match="its engine failed: out of GPU memory"):
        run(model().complete([request("a")]))
