"""What vLLM servers are asked beside the requests, and that nothing they say or leave unsaid is an error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from adapters.addresses import RemoteAddress
from adapters.vllm_servers import ServerCounters, ServerFacts, VllmServers
from engine.ports import ServerLoad
from engine.types import Message
from tests.adapters.responding import Asked, http, responding
from tests.support.vllm_pages import BLOCK, CONTEXT, metrics, vllm

NOBODY = "http://127.0.0.1:9/v1"
ASK = (Message("system", "Decide."), Message("user", "a row"))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def servers(*bases: str, name: str = "tiny", key: str | None = None) -> aclosing[VllmServers]:
    return aclosing(VllmServers(RemoteAddress(name, bases), api_key=key))


# --- facts ----------------------------------------------------------------------------------------


def test_a_server_says_what_it_is_and_is_not_asked_twice() -> None:
    async def work() -> None:
        async with responding(vllm()) as server, servers(server.base, key="secret") as asked:
            for _ in range(3):
                assert await asked.facts(server.base) == ServerFacts(CONTEXT, BLOCK, True, window=None)
            assert [one.path for one in server.asked] == ["/v1/models", "/metrics"]
            assert all(one.headers["authorization"] == "Bearer secret" for one in server.asked)
            assert await asked.served_models(server.base) == ["tiny"]
            assert await asked.ready(server.base)
            assert server.connections == 1

    run(work())


@pytest.mark.parametrize(
    ("cache", "facts"),
    [
        ('block_size="528",enable_prefix_caching="False"', ServerFacts(CONTEXT, 528, False)),
        ('block_size="None"', ServerFacts(CONTEXT)),
        ('block_size="1024",cache_hit_alignment_tokens="32"', ServerFacts(CONTEXT, 32)),
        ('block_size="16",cache_hit_alignment_tokens="None"', ServerFacts(CONTEXT, 16)),
        (
            'block_size="16",mamba_cache_mode="align",prefix_cache_retention_interval="0"',
            ServerFacts(CONTEXT, 16, window=True, retains=False),
        ),
        (
            'block_size="16",sliding_window="512",prefix_cache_retention_interval="None"',
            ServerFacts(CONTEXT, 16, window=True, retains=True),
        ),
        ('block_size="16",sliding_window="None"', ServerFacts(CONTEXT, 16, window=False)),
    ],
)
def test_what_the_cache_is(cache: str, facts: ServerFacts) -> None:
    async def work() -> None:
        async with (
            responding(vllm(lambda: metrics(cache=cache))) as server,
            servers(server.base) as asked,
        ):
            assert await asked.facts(server.base) == facts

    run(work())


def test_copies_behind_one_address_are_counted() -> None:
    async def work() -> None:
        async with responding(vllm(lambda: metrics(engines=4))) as server, servers(server.base) as asked:
            assert (await asked.facts(server.base)).engines == 4

    run(work())


def test_an_adapter_has_the_context_of_its_model() -> None:
    cards = [{"id": "base", "max_model_len": 4096}, {"id": "lora", "parent": "base", "max_model_len": None}]

    async def work() -> None:
        async with (
            responding(lambda _: http(body={"data": cards})) as server,
            servers(server.base, name="lora") as asked,
        ):
            assert (await asked.facts(server.base)).max_model_len == 4096

    run(work())


def test_what_a_server_does_not_tell_is_not_asked_again_but_a_silent_one_is() -> None:
    async def work() -> None:
        async with responding(http(404)) as server, servers(server.base) as asked:
            for _ in range(2):
                assert await asked.facts(server.base) == ServerFacts()
            assert len(server.asked) == 2
        async with responding(http(502)) as server, servers(server.base) as asked:
            assert await asked.facts(server.base) == ServerFacts()
            server.script = vllm()
            assert await asked.facts(server.base) == ServerFacts(CONTEXT, BLOCK, True)

    run(work())


def test_the_root_keeps_the_path_of_a_proxy() -> None:
    async def work() -> None:
        async with responding(http(404)) as server:
            base = f"http://127.0.0.1:{server.port}/student/v1"
            async with servers(base) as asked:
                await asked.facts(base)
                await asked.token_ids(base, ASK)
                await asked.ready(base)
            paths = [one.path for one in server.asked]
            assert paths == ["/student/v1/models", "/student/metrics", "/student/tokenize", "/student/health"]

    run(work())


# --- tokens ---------------------------------------------------------------------------------------


def test_messages_become_the_tokens_that_the_chat_endpoint_makes() -> None:
    async def work() -> None:
        async with responding(vllm()) as server, servers(server.base) as asked:
            tokens = await asked.token_ids(server.base, ASK)
            assert tokens is not None
            assert len(tokens) == 3
            assert server.asked[0].json == {
                "model": "tiny",
                "messages": [
                    {"role": "system", "content": "Decide."},
                    {"role": "user", "content": "a row"},
                ],
                "add_generation_prompt": True,
            }
            assert await asked.token_ids(server.base, (Message("user", "\ud800 lone"),))

    run(work())


@pytest.mark.parametrize(
    "answer",
    [
        http(404),
        http(body=b"<html>"),
        http(body=b"[1, 2]"),
        http(body={"tokens": ["a"]}),
        http(body={"tokens": {}}),
        http(body={"data": {"id": "tiny"}}),
        http(body={"data": [7, {"name": "tiny"}, {"id": [1]}]}),
        b"no HTTP at all",
        None,
    ],
)
def test_an_odd_server_says_nothing(answer: bytes | None) -> None:
    async def work() -> None:
        async with responding(answer) as server, servers(server.base) as asked:
            assert await asked.token_ids(server.base, ASK) is None
            assert await asked.facts(server.base) == ServerFacts()
            assert not await asked.served_models(server.base)
            assert not await asked.ready(server.base)
            assert await asked.load() is None
            assert await asked.counters(server.base) is None

    run(work())


def test_a_key_is_not_carried_elsewhere() -> None:
    async def work() -> None:
        async with responding(vllm()) as other:
            moved = http(307, headers={"Location": f"{other.base}/models"})
            async with responding(moved) as server, servers(server.base, key="secret") as asked:
                assert not await asked.served_models(server.base)
                assert await asked.token_ids(server.base, ASK) is None
            assert other.asked == []

    run(work())


# --- load -----------------------------------------------------------------------------------------


def test_loads_of_all_engines_and_servers_add_up() -> None:
    one = metrics(running=3, waiting=1, usage=0.4, preemptions=5, engines=2)
    other = metrics(running=10, usage=0.7)

    async def work() -> None:
        async with (
            responding(vllm(lambda: one)) as first,
            responding(vllm(lambda: other)) as second,
            servers(first.base, second.base, NOBODY) as asked,
        ):
            assert asked.fullest == 0
            assert await asked.load() == ServerLoad(2, 16, 2, 0.7, 10)
            second.script = vllm(metrics)
            await asked.load()
            assert asked.fullest == 0.7

    run(work())


def test_an_older_servers_kv_cache() -> None:
    page = b'vllm:num_requests_running 2\nvllm:gpu_cache_usage_perc{engine="0"} 0.5\n'

    async def work() -> None:
        async with responding(vllm(lambda: page)) as server, servers(server.base) as asked:
            assert await asked.load() == ServerLoad(1, 2, 0, 0.5, 0)

    run(work())


def test_a_server_that_hangs_counts_as_absent_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.vllm_servers._LOAD_S", 0.05)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    async def work() -> None:
        hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
        silent = f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/v1"
        async with servers(silent) as asked:
            assert await asked.load() is None
        hanging.close()
        await hanging.wait_closed()

    run(work())


# --- counters -------------------------------------------------------------------------------------


def test_what_was_counted_since() -> None:
    page = metrics(queries=100, hits=80, preemptions=1, first_token_s=5, first_tokens=10)

    async def work() -> None:
        async with responding(vllm(lambda: page)) as server, servers(server.base) as asked:
            assert await asked.counters(server.base) == ServerCounters(100, 80, 1, 5, 10)

    run(work())
    later = ServerCounters(150, 120, 1, 6, 12)
    assert later.since(ServerCounters(100, 80, 1, 5, 10)) == ServerCounters(50, 40, 0, 1, 2)
    assert ServerCounters(20, 10, 0, 1, 2).since(later) == ServerCounters(20, 10, 0, 1, 2), "started anew"


# --- connections ----------------------------------------------------------------------------------


def test_it_may_be_closed_and_used_again_on_another_loop() -> None:
    asked = VllmServers(RemoteAddress("tiny", (NOBODY,)), api_key=None)

    async def work() -> None:
        async with responding(vllm()) as server:
            base = server.base
            assert await asked.served_models(base) == ["tiny"]
            await asked.aclose()
            await asked.aclose()
            assert await asked.served_models(base) == ["tiny"]
            await asked.aclose()

    run(work())
    run(work())


def test_two_loops_at_once_are_a_mistake() -> None:
    asked = VllmServers(RemoteAddress("tiny", (NOBODY,)), api_key=None)
    first = asyncio.new_event_loop()
    first.run_until_complete(asked.load())
    try:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(_facts(asked))
    finally:
        first.run_until_complete(asked.aclose())
        first.close()


async def _facts(asked: VllmServers) -> None:
    await asked.facts(NOBODY)


def test_a_body_that_is_no_metrics_page_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.vllm_servers._MOST_BYTES", 1000)
    page = b"vllm:num_requests_running 2\n" + b"# filling\n" * 50_000 + b"vllm:num_requests_waiting 7\n"

    def script(asked: Asked) -> bytes:
        return http(body=page)

    async def work() -> None:
        async with responding(script) as server, servers(server.base) as asked:
            found = await asked.load()
            assert found is not None
            assert (found.running, found.waiting) == (2, 0)

    run(work())
