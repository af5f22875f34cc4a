"""The `vllm:` model against servers that do what vLLM does: probes, warm-up, length, several replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from adapters.addresses import RemoteAddress
from adapters.vllm import VllmChat
from engine.errors import ModelError
from engine.fences import fence
from engine.ports import ChatModel, Gauged, Receipting, Remarking
from engine.types import Answer, AttemptFailure, ChatOutcome, Message, Request, rate_limited
from tests.adapters.openai_server import Server
from tests.adapters.responding import http, responding
from tests.adapters.vllm_server import BLOCK, VllmServer
from tests.contracts.chat_model import ChatModelContract

LABELS = ("spam", "none")
SYSTEM = "Decide what it is. " * 20
ROW = "unmentionable-row-text-here"


def row(text: str = ROW, *, system: str = SYSTEM, group: str = "", tokens: int = 8) -> Request:
    messages = (Message("system", system), Message("user", fence("input", text)))
    return Request("r1", messages, tokens, choices=LABELS, group=group)


@asynccontextmanager
async def chat(*bases: str, name: str = "m", **options: Any) -> AsyncIterator[VllmChat]:
    model = VllmChat(RemoteAddress(name, bases), **options)
    try:
        yield model
    finally:
        await model.aclose()


async def outcome_of(model: VllmChat, request: Request) -> ChatOutcome:
    (outcome,) = await model.complete([request])
    return outcome


async def at_once(model: VllmChat, requests: list[Request]) -> list[ChatOutcome]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome_of(model, one)) for one in requests]
    return [task.result() for task in tasks]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a test has no business in the adapter's own events
        await asyncio.sleep(0.001)


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


# --- the contract ---------------------------------------------------------------------------------


class TestChat(ChatModelContract):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ChatModel]:
        async with responding(Server(bad=ROW)) as server, chat(server.base) as model:
            yield model

    def requests(self) -> list[Request]:
        return [row("one"), row("two"), Request("3", (Message("user", "three"),), 20)]

    def bad_request(self) -> Request:
        return row()

    def test_two_instances_have_one_name(self) -> None:
        address = RemoteAddress("m", ("http://a/v1",))
        assert VllmChat(address).name == VllmChat(address).name


def test_it_is_all_that_a_student_may_be() -> None:
    model = VllmChat(RemoteAddress("m", ("http://a/v1", "http://b/v1")))
    assert isinstance(model, Gauged)
    assert isinstance(model, Receipting)
    assert isinstance(model, Remarking)
    assert model.most_in_flight == 2048


# --- what is sent ---------------------------------------------------------------------------------


def test_rows_are_held_to_the_labels_and_share_a_salt() -> None:
    async def check() -> None:
        script = VllmServer()
        async with responding(script) as server:
            for _ in range(2):
                async with chat(server.base) as model:
                    for text in ("one", "two"):
                        assert isinstance(await outcome_of(model, row(text)), Answer)
        for body in script.rows:
            assert body["structured_outputs"] == {"choice": list(LABELS)}
            assert (body["temperature"], body["max_completion_tokens"]) == (0.0, 8)
            assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        salts = [body["cache_salt"] for body in script.rows + script.probes]
        assert salts[0] == salts[1] != salts[2] == salts[3]
        assert sorted(salts[4:]) == sorted({salts[0], salts[2]})
        assert len(salts[0]) >= 32

    run(check())


def test_a_server_is_probed_once_before_its_first_row() -> None:
    async def check() -> None:
        script = VllmServer()
        async with responding(script) as server, chat(server.base) as model:
            await at_once(model, [row(str(n)) for n in range(20)])
            assert len(script.probes) == 1
            assert len(script.rows) == 20
            chats = [asked.json for asked in server.asked if asked.path.endswith("completions")]
            assert chats[0] is not script.rows[0]
            assert chats[0] == script.probes[0]

    run(check())


def test_a_server_that_ignores_fields_is_asked_otherwise_ahead_of_all_rows() -> None:
    async def check() -> None:
        script = VllmServer(heeds=frozenset({"response_format"}))
        async with responding(script) as server, chat(server.base) as model:
            for outcome in await at_once(model, [row(str(n)) for n in range(9)]):
                assert isinstance(outcome, Answer)
                assert outcome.text in LABELS
            assert len(script.probes) == 2
            assert len(script.rows) == 9

    run(check())


def test_a_server_that_holds_nobody_to_anything_is_remarked_on() -> None:
    async def check() -> None:
        script = VllmServer(heeds=frozenset())
        async with responding(script) as server, chat(server.base) as model:
            outcome = await outcome_of(model, row())
            assert isinstance(outcome, Answer)
            assert outcome.text not in LABELS, "the caller counts it as malformed"
            assert len(script.rows) == 1
            assert any("knows no way to hold answers to the labels" in one for one in model.remarks)

    run(check())


def test_a_model_that_is_not_served_ends_the_run() -> None:
    async def check() -> None:
        async with responding(VllmServer("other")) as server, chat(server.base) as model:
            with pytest.raises(ModelError) as raised:
                await outcome_of(model, row())
            assert str(raised.value) == (
                f"vllm:m: {server.base} does not serve it, but 'other'; write vllm:other@{server.base}"
            )

    run(check())


def test_a_salt_that_a_server_refuses_is_left_out() -> None:
    async def check() -> None:
        script = Server(refuses=frozenset({"cache_salt"}))
        async with responding(script) as server, chat(server.base) as model:
            assert isinstance(await outcome_of(model, row()), Answer)
            assert "cache_salt" not in script.asked[-1]

    run(check())


# --- warm-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("needs", "alone"), [(1, 2), (2, 3), (99, 3)])
def test_the_first_rows_go_alone_until_the_prefix_is_cached(needs: int, alone: int) -> None:
    async def check() -> None:
        script = VllmServer(needs=needs, gate=asyncio.Event())
        async with responding(script) as server, chat(server.base) as model:
            asking = asyncio.ensure_future(at_once(model, [row(str(n)) for n in range(20)]))
            for sent in range(alone):
                await until(lambda sent=sent: len(script.rows) > sent and script.going > 0)
                assert (script.going, len(script.rows)) == (1, sent + 1)
                gate, script.gate = script.gate, asyncio.Event()
                assert gate is not None
                gate.set()
            await until(lambda: script.going == 20 - alone)
            assert script.gate is not None
            script.gate.set()
            assert all(isinstance(outcome, Answer) for outcome in await asking)

    run(check())


def test_a_server_that_tells_nothing_of_its_cache_gets_one_row_ahead() -> None:
    async def check() -> None:
        script = VllmServer(tells_cached=False, gate=asyncio.Event())
        async with responding(script) as server, chat(server.base) as model:
            asking = asyncio.ensure_future(at_once(model, [row(str(n)) for n in range(9)]))
            await until(lambda: script.going > 0)
            assert script.gate is not None
            script.gate.set()
            await asking
            assert len(script.rows) == 9

    run(check())


def test_the_receipt_counts_what_the_cache_was_worth() -> None:
    async def check() -> None:
        async with responding(VllmServer()) as server, chat(server.base) as model:
            assert await model.receipt() is None
            await at_once(model, [row(str(n)) for n in range(20)])
            receipt = await model.receipt()
            assert receipt is not None
            assert (receipt.requests, receipt.servers, receipt.prefixes) == (20, 1, 1)
            assert receipt.cached_tokens == 19 * ((len(SYSTEM) + 8) // 4 // BLOCK * BLOCK)
            load = await model.load()
            assert load is not None
            assert load.running == 1

    run(check())


# --- length ---------------------------------------------------------------------------------------


def outcomes_of(request: Request, script: VllmServer, **options: Any) -> tuple[ChatOutcome, tuple[str, ...]]:
    found: list[tuple[ChatOutcome, tuple[str, ...]]] = []

    async def check() -> None:
        async with responding(script) as server, chat(server.base, **options) as model:
            outcome = await outcome_of(model, request)
            found.append((outcome, model.remarks))

    run(check())
    return found[0]


@pytest.mark.parametrize("size", [4_000, 7_500, 1_000_000])
def test_a_row_that_is_too_long_fails_with_both_numbers(size: int) -> None:
    script = VllmServer()
    outcome, _ = outcomes_of(row((f"{ROW} " * size)[:size]), script)
    assert isinstance(outcome, AttemptFailure)
    assert (outcome.reason, outcome.retry.kind) == ("too_long", "no")
    assert " tokens and 8 for the answer, where the context has 1,000: " in outcome.detail
    assert 'too_long = "cut"' in outcome.detail
    assert ROW not in outcome.detail
    assert "\n" not in outcome.detail
    assert len(script.tokenized) <= 2
    assert max(script.tokenized) < 40_000, "megabytes are not sent in vain"
    assert len(script.rows) == (1 if size < 7_936 else 0)


@pytest.mark.parametrize("size", [4_000, 7_500, 1_000_000])
def test_a_row_that_is_too_long_loses_its_middle(size: int) -> None:
    script = VllmServer()
    text = "begin " + "so it goes on " * (size // 14) + "end"
    outcome, remarks = outcomes_of(row(text), script, too_long="cut")
    assert isinstance(outcome, Answer)
    sent = script.rows[-1]["messages"][-1]["content"]
    assert sent.startswith("<input>\nbegin so it goes")
    assert sent.endswith("on end\n</input>")
    assert f"\n[… {outcome.cut_characters:,} characters left out …]\n" in sent
    kept = len(text) - outcome.cut_characters
    assert 0.9 * (992 * 4 - len(SYSTEM)) < kept
    assert max(script.tokenized) < 40_000
    assert len([one for one in remarks if "lose their middle" in one]) == 1


def test_a_row_that_fits_is_sent_as_it_is() -> None:
    script = VllmServer()
    outcome, remarks = outcomes_of(row(), script, too_long="cut")
    assert isinstance(outcome, Answer)
    assert (outcome.cut_characters, remarks) == (0, ())
    assert script.rows[0]["messages"][-1]["content"] == f"<input>\n{ROW}\n</input>"


def test_text_that_is_only_long_in_characters_is_counted_and_sent() -> None:
    """As a model may have tokens of many characters, a count decides."""

    class Wide(VllmServer):
        def __call__(self, asked: Any) -> Any:
            if asked.path == "/tokenize":
                self.tokenized.append(len(asked.body))
                return http(200, {"count": 30, "tokens": [1] * 30})
            return super().__call__(asked)

    script = Wide(context=1000)
    outcome, _ = outcomes_of(row(" " * 20_000), script)
    assert len(script.rows) == 1
    assert isinstance(outcome, AttemptFailure), "here the server thinks otherwise"
    assert outcome.detail.startswith("30 tokens and 8 for the answer")


def test_a_prompt_that_leaves_no_room_for_a_row_is_said_to() -> None:
    outcome, _ = outcomes_of(row(system=SYSTEM * 11), VllmServer(), too_long="cut")
    assert isinstance(outcome, AttemptFailure)
    assert outcome.reason == "too_long"
    assert "without the row and 8 for the answer" in outcome.detail
    assert outcome.detail.endswith("serve the model with a longer one")


def test_a_server_that_counts_nothing_gets_what_surely_fits() -> None:
    script = VllmServer(counts=False)
    text = "begin " + "so it goes on " * 500 + "end"
    outcome, _ = outcomes_of(row(text, system="Decide."), script, too_long="cut")
    assert isinstance(outcome, Answer)
    assert 600 < len(text) - outcome.cut_characters < 992
    failed, _ = outcomes_of(row(text), VllmServer(counts=False))
    assert isinstance(failed, AttemptFailure)
    assert failed.detail.startswith("too many tokens and 8")


def test_where_the_context_is_unknown_the_server_decides() -> None:
    class Silent(VllmServer):
        def __call__(self, asked: Any) -> Any:
            return http(404) if asked.path == "/v1/models" else super().__call__(asked)

    for policy in ("fail", "cut"):
        outcome, _ = outcomes_of(row("word " * 1000), Silent(), too_long=policy)
        assert outcome == AttemptFailure("too_long", "HTTP 400 (input_tokens)")


def test_a_refusal_for_the_number_of_characters_is_one_for_length() -> None:
    class Guarded(VllmServer):
        def __call__(self, asked: Any) -> Any:
            if asked.path.endswith("completions") and len(asked.body) > 5000:
                error = {"message": "…", "type": "BadRequestError", "param": "input_text", "code": 400}
                return http(400, {"error": error})
            return super().__call__(asked)

    outcome, _ = outcomes_of(row("word " * 1200), Guarded())
    assert isinstance(outcome, AttemptFailure)
    assert outcome.reason == "too_long"


# --- several servers ------------------------------------------------------------------------------


async def nobody() -> str:
    async with responding(http()) as server:
        return server.base


async def all_ready(model: VllmChat) -> None:
    """Both servers are probed, and have answered a row."""
    await outcome_of(model, row("one"))
    await until(lambda: all(replica.ready for replica in model._replicas._all))
    await outcome_of(model, row("another"))


def test_rows_go_to_the_server_with_the_least_to_do() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer()
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            await all_ready(model)
            assert len(one.rows) == len(two.rows) == 1
            await at_once(model, [row(str(n)) for n in range(38)])
            assert len(one.rows) == len(two.rows) == 20
            one.gate = asyncio.Event()
            asking = asyncio.ensure_future(at_once(model, [row(str(n)) for n in range(8)]))
            await until(lambda: [one.in_flight for one in model._replicas._all] == [4, 0])
            await at_once(model, [row(str(n)) for n in range(3)])
            assert len(two.rows) == 27
            one.gate.set()
            await asking

    run(check())


def test_rows_of_a_group_go_to_one_server() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer()
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            await all_ready(model)
            one.rows.clear()
            two.rows.clear()
            for group in range(30):
                for n in range(3):
                    await outcome_of(model, row(f"group {group} row {n}", group=f"g{group}"))
            sent = {
                script: {body["messages"][-1]["content"].split(" row")[0] for body in server.rows}
                for script, server in (("one", one), ("two", two))
            }
            assert not sent["one"] & sent["two"]
            assert min(len(groups) for groups in sent.values()) >= 5
            # but not more than clearly its share
            same = [row(f"row {n}", group="g1") for n in range(40)]
            one.gate = two.gate = asyncio.Event()
            before = len(one.rows), len(two.rows)
            asking = asyncio.ensure_future(at_once(model, same))
            await until(lambda: one.going + two.going == 40)
            shares = len(one.rows) - before[0], len(two.rows) - before[1]
            assert min(shares) >= 10
            assert max(shares) > 20
            one.gate.set()
            await asking

    run(check())


def test_several_prompts_keep_to_their_servers() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer()
        systems = [f"{SYSTEM} {n}" for n in range(12)]
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            await all_ready(model)
            await at_once(model, [row(system=system) for system in systems for _ in range(3)])
            first_of = {body["messages"][0]["content"] for body in one.rows}
            second_of = {body["messages"][0]["content"] for body in two.rows}
            assert len(first_of & second_of) <= 8, "some spill over"

    run(check())


def test_one_server_that_is_down_at_the_start_stops_nobody() -> None:
    async def check() -> None:
        script = VllmServer()
        dead = await nobody()
        async with responding(script) as server:
            for bases in ((dead, server.base), (server.base, dead)):
                async with chat(*bases) as model:
                    outcomes = await at_once(model, [row(str(n)) for n in range(20)])
                    assert all(isinstance(outcome, Answer) for outcome in outcomes)

    run(check())


def test_no_server_at_all_ends_the_run() -> None:
    async def check() -> None:
        async with chat(await nobody(), await nobody()) as model:
            with pytest.raises(ExceptionGroup) as raised:
                await at_once(model, [row(str(n)) for n in range(20)])
            assert all("nobody answers there" in str(one) for one in raised.value.exceptions)

    run(check())


def test_a_server_that_dies_costs_a_row_an_attempt_and_gets_no_more() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer()
        async with responding(one) as first, AsyncExitStack() as living:
            second = await living.enter_async_context(responding(two))
            async with chat(first.base, second.base) as model:
                await all_ready(model)
                await at_once(model, [row(str(n)) for n in range(8)])
                await living.aclose()
                outcomes = [await outcome_of(model, row(str(n))) for n in range(10)]
                failures = [outcome for outcome in outcomes if isinstance(outcome, AttemptFailure)]
                assert len(failures) <= 2, "one that breaks off, one that nobody takes"
                assert all(failure.retry.kind == "transient" for failure in failures)
                assert isinstance(outcomes[-1], Answer)
                assert [replica.ready for replica in model._replicas._all] == [True, False]

    run(check())


def test_a_server_that_comes_back_is_probed_and_warmed_up_again() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer()
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            now = 100.0
            model._replicas._monotonic = lambda: now
            rows = [row(str(n)) for n in range(20)]
            await all_ready(model)
            await at_once(model, rows)
            assert (len(one.probes), len(two.probes)) == (1, 1)
            two.restart()
            two.down = True
            model._replicas.away(model._replicas._all[1])
            before = len(two.rows)
            for waited in (0.0, 6.0):  # it rests; it is probed, and no row pays for that
                now += waited
                assert all(isinstance(outcome, Answer) for outcome in await at_once(model, rows))
                assert len(two.rows) == before
            await until(lambda: not model._replicas._probes)
            now += 6.0
            two.down = False
            await outcome_of(model, rows[0])
            await until(lambda: model._replicas._all[1].ready)
            assert len(two.probes) == 2
            two.gate = asyncio.Event()
            asking = asyncio.ensure_future(at_once(model, rows))
            in_flight = [0, 10]
            await until(
                lambda: [one.in_flight for one in model._replicas._all] == in_flight and two.going > 0
            )
            assert two.going == 1, "the others wait until its cache is filled again"
            two.gate.set()
            assert all(isinstance(outcome, Answer) for outcome in await asking)

    run(check())


def test_a_stranger_on_a_servers_port_is_left_alone() -> None:
    async def check() -> None:
        one, two = VllmServer(), VllmServer("other")
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            replicas = model._replicas._all
            replicas[1].resting_until = float("inf")
            await outcome_of(model, row())
            replicas[1].resting_until = 0.0
            outcomes = await at_once(model, [row(str(n)) for n in range(20)])
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
            await until(lambda: bool(model.remarks))
            assert not two.rows
            assert [line for line in model.remarks if "does not serve it, but 'other'" in line]

    run(check())


def test_requests_that_wait_for_a_probe_share_its_end() -> None:
    async def check() -> None:
        script = VllmServer()
        async with responding(script) as server, chat(server.base) as model:
            await outcome_of(model, row())
            (replica,) = model._replicas._all
            model._replicas.away(replica)
            script.down = True
            asked = len(server.asked)
            outcomes = await at_once(model, [row(str(n)) for n in range(50)])
            for outcome in outcomes:
                assert isinstance(outcome, AttemptFailure)
                assert outcome.retry == rate_limited(5.0), "that it is away costs no row an attempt"
            assert len(server.asked) - asked <= 4, "one probe for all of them"
            assert [one for one in model.remarks if "everything waits" in one]
            later = time.monotonic() + 601.0
            model._replicas._monotonic = lambda: later
            given_up = await outcome_of(model, row())
            assert isinstance(given_up, AttemptFailure)
            assert given_up.retry.kind == "transient", "but not for ever"
            script.down = False
            assert isinstance(await outcome_of(model, row()), Answer)

    run(check())


def test_a_request_that_is_cancelled_while_it_probes_leaves_that_to_the_next() -> None:
    async def check() -> None:
        arrived, hold = asyncio.Event(), asyncio.Event()
        script = VllmServer()

        async def slow(asked: Any) -> bytes | None:
            arrived.set()
            await hold.wait()
            said = script(asked)
            return said if isinstance(said, bytes) or said is None else await said

        async with responding(slow) as server, chat(server.base) as model:
            first = asyncio.ensure_future(outcome_of(model, row("first")))
            await arrived.wait()
            others = asyncio.ensure_future(at_once(model, [row(str(n)) for n in range(5)]))
            await asyncio.sleep(0.01)
            first.cancel()
            hold.set()
            assert all(isinstance(outcome, Answer) for outcome in await others)
            await asyncio.wait([first])

    run(check())


class Stuck(VllmServer):
    """A server that takes requests and, from `sticks()` on, answers none of them until it is `let_go`."""

    let_go: asyncio.Event | None = None

    def sticks(self) -> asyncio.Event:
        self.let_go = asyncio.Event()
        return self.let_go

    def __call__(self, asked: Any) -> Any:
        return self._nothing(self.let_go) if self.let_go else super().__call__(asked)

    async def _nothing(self, let_go: asyncio.Event) -> None:
        await let_go.wait()


def test_no_row_waits_for_the_probe_of_another_server() -> None:
    async def check() -> None:
        one, two = VllmServer(), Stuck()
        let_go = two.sticks()
        async with responding(one) as first, responding(two) as second:
            model = VllmChat(RemoteAddress("m", (second.base, first.base)))
            outcomes = await at_once(model, [row(str(n)) for n in range(20)])
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
            assert len(one.rows) == 20
            assert len(second.asked) == 1, "its probe is still under way"
            await model.aclose()
            assert not model._replicas._probes
            let_go.set()

    run(check())


def test_a_deadline_does_not_cut_a_probe_short() -> None:
    async def check() -> None:
        script, hold = VllmServer(), asyncio.Event()

        async def slow(asked: Any) -> bytes | None:
            await hold.wait()
            said = script(asked)
            return said if isinstance(said, bytes) or said is None else await said

        async with responding(slow) as server, chat(server.base) as model:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(outcome_of(model, row()), 0.01)
            hold.set()
            assert isinstance(await outcome_of(model, row()), Answer)
            assert len(script.probes) == 1

    run(check())


def test_a_server_that_only_fails_does_not_get_all_rows() -> None:
    """One behind a gateway that says 502 at once always has the least in flight."""

    class Broken(VllmServer):
        broken = False

        def __call__(self, asked: Any) -> Any:
            return http(502) if self.broken else super().__call__(asked)

    async def check() -> None:
        one, two = VllmServer(), Broken()
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            await all_ready(model)
            two.broken = True
            outcomes = [await outcome_of(model, row(str(n))) for n in range(30)]
            failures = [outcome for outcome in outcomes if isinstance(outcome, AttemptFailure)]
            assert {failure.reason for failure in failures} == {"http_502"}
            assert len(failures) == 5
            assert [replica.ready for replica in model._replicas._all] == [True, False]

    run(check())


def test_a_server_that_hangs_is_left_alone_after_a_few_deadlines() -> None:
    async def check() -> None:
        one, two = VllmServer(), Stuck()
        async with (
            responding(one) as first,
            responding(two) as second,
            chat(first.base, second.base) as model,
        ):
            await all_ready(model)
            await at_once(model, [row(str(n)) for n in range(8)])
            let_go = two.sticks()
            hung = model._replicas._all[1]
            asking = [asyncio.ensure_future(outcome_of(model, row(str(n)))) for n in range(20)]
            await until(lambda: sum(one.done() for one in asking) == 10)
            assert hung.in_flight == 10
            for one_of_them in asking:
                one_of_them.cancel()
            await asyncio.wait(asking)
            assert not hung.ready
            assert all(isinstance(one, Answer) for one in await at_once(model, [row("1"), row("2")]))
            let_go.set()

    run(check())


def test_the_only_server_is_probed_when_it_fails_but_not_when_it_is_busy() -> None:
    async def check() -> None:
        script = VllmServer()
        async with responding(script) as server, chat(server.base) as model:
            await outcome_of(model, row())
            (replica,) = model._replicas._all
            for _ in range(50):
                model._replicas.told(replica, alive=False, busy=True)
            assert replica.ready
            script.down = True
            outcomes = [await outcome_of(model, row()) for _ in range(9)]
            kinds = [one.retry.kind for one in outcomes if isinstance(one, AttemptFailure)]
            assert (kinds[0], kinds[-1]) == ("transient", "rate_limited")
            assert len(kinds) == 9
            script.down = False
            assert isinstance(await outcome_of(model, row()), Answer)

    run(check())


def test_a_server_that_came_back_says_anew_how_much_it_holds() -> None:
    async def check() -> None:
        script = VllmServer(context=1000)
        async with responding(script) as server, chat(server.base, too_long="cut") as model:
            await outcome_of(model, row())
            (replica,) = model._replicas._all
            model._replicas.away(replica)
            script.context = 500
            outcome = await outcome_of(model, row("so it goes on " * 200))
            assert isinstance(outcome, Answer)
            assert outcome.cut_characters > 0
            assert replica.context == 500

    run(check())


def test_a_job_goes_on_on_another_loop() -> None:
    """Also where the first was left in the middle of a probe, or of a warm-up."""
    script = Stuck()
    model = VllmChat(RemoteAddress("m", ("http://127.0.0.1:9/v1",)))

    async def check(*, sticks: bool) -> None:
        script.let_go = None
        let_go = script.sticks() if sticks else asyncio.Event()
        async with responding(script) as server:
            (replica,) = model._replicas._all
            replica.server.base, replica.server.url = server.base, URL(f"{server.base}/chat/completions")
            asking = asyncio.ensure_future(at_once(model, [row(str(n)) for n in range(5)]))
            if not sticks:
                assert all(isinstance(outcome, Answer) for outcome in await asking)
                model._replicas.away(replica)
                return
            await until(lambda: len(server.asked) > 0)
            asking.cancel()
            await asyncio.wait([asking])
            let_go.set()

    for sticks in (True, False, True, False):
        run(check(sticks=sticks))
    run(model.aclose())
