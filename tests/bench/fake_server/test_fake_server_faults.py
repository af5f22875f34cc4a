"""Every fault, as a client meets it, and what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import orjson
import pytest

from bench.fake_server import Behaviour, serving
from tests.bench.fake_server.client import Client, Got, against, chat, http, key_of, raw


def meet(name: str, **behaviour: Any) -> tuple[Got | Exception, dict[str, Any]]:
    """What comes of one request under one fault, and what the server says of it."""

    async def use(client: Client) -> tuple[Got | Exception, dict[str, Any]]:
        got: Got | Exception
        try:
            got = await client.chat()
        except aiohttp.ClientError as exc:
            got = exc
        seen = await client.get("/fake/seen")
        return got, seen.document

    return against(use, faults={name: 1.0}, **behaviour)


def test_disconnect() -> None:
    got, seen = meet("disconnect")
    assert isinstance(got, aiohttp.ServerDisconnectedError)
    assert (seen["by_status"], seen["by_fault"], seen["usable"]) == ({}, {"disconnect": 1}, 0)


def test_reset() -> None:
    got, seen = meet("reset")
    assert isinstance(got, aiohttp.ClientError)
    assert seen["by_fault"] == {"reset": 1}
    assert seen["usable"] == 0


@pytest.mark.parametrize("name", ["truncated", "reset"])
def test_a_part_of_the_body_comes_before_the_end(name: str) -> None:
    async def main() -> tuple[bytes, Exception | None]:
        async with serving(Behaviour(faults={name: 1.0})) as server:  # type: ignore[dict-item]
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(http(chat()))
            got, failure = b"", None
            try:
                while data := await reader.read(65_536):
                    got += data
            except ConnectionResetError as exc:
                failure = exc
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
            return got, failure

    got, failure = asyncio.run(main())
    head, _, body = got.partition(b"\r\n\r\n")
    (length,) = (int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    assert 0 < len(body) < length
    assert (failure is not None) is (name == "reset")


def test_truncated() -> None:
    got, seen = meet("truncated")
    assert isinstance(got, aiohttp.ClientPayloadError)
    assert (seen["by_status"], seen["usable"]) == ({"200": 1}, 0)


@pytest.mark.parametrize("name", ["malformed", "empty"])
def test_no_json(name: str) -> None:
    got, seen = meet(name)
    assert isinstance(got, Got)
    assert got.status == 200
    assert (got.body == b"") is (name == "empty")
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(got.body)
    assert seen["usable"] == 0


def test_drip() -> None:
    got, seen = meet("drip", drip_bytes=100, drip_interval_s=0.0)
    assert isinstance(got, Got)
    assert got.document["choices"][0]["finish_reason"] == "stop"
    assert (seen["by_fault"], seen["usable"]) == ({"drip": 1}, 1)


@pytest.mark.parametrize(("name", "finish"), [("length", "length"), ("content_filter", "content_filter")])
def test_cut_and_filtered(name: str, finish: str) -> None:
    got, seen = meet(name, text="0123456789")
    assert isinstance(got, Got)
    (choice,) = got.document["choices"]
    assert choice["finish_reason"] == finish
    assert choice["message"]["content"] == ("01234" if name == "length" else "")
    assert seen["usable"] == 0


def test_a_blocked_prompt() -> None:
    got, seen = meet("prompt_blocked")
    assert isinstance(got, Got)
    assert (got.status, got.document["error"]["code"]) == (400, "content_policy_violation")
    assert seen["by_status"] == {"400": 1}


def test_a_hang_lasts_until_the_client_goes() -> None:
    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        async with serving(Behaviour(faults={"hang": 1.0})) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(http(chat()))
            await until(lambda: server.service.counts.in_flight == 1)
            during = server.service.seen()
            writer.close()
            await writer.wait_closed()
            await until(lambda: server.service.counts.in_flight == 0)
            return during, server.service.seen()

    during, after = asyncio.run(main())
    assert (during["in_flight"], during["abandoned"]) == (1, 0)
    assert (after["abandoned"], after["by_status"], after["usable"]) == (1, {}, 0)


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - sockets tell nobody when bytes have arrived at the other end
            await asyncio.sleep(0.001)


def test_a_hang_ends_with_the_server() -> None:
    async def main() -> None:
        async with serving(Behaviour(faults={"hang": 1.0})) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(http(chat()))
            await until(lambda: server.service.counts.in_flight == 1)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())


def test_faults_of_a_text_spare_embeddings() -> None:
    async def use(client: Client) -> tuple[Got, dict[str, Any]]:
        got = await client.post("/v1/embeddings", {"input": "x"})
        return got, (await client.get("/fake/seen")).document

    for name in ("length", "content_filter", "prompt_blocked"):
        got, seen = against(use, faults={name: 1.0})
        assert got.status == 200
        assert (seen["by_fault"], seen["usable"]) == ({}, 1)


def test_each_attempt_is_drawn_anew_and_refusals_draw_nothing() -> None:
    async def use(client: Client) -> list[int]:
        return [(await client.chat("one")).status for _ in range(30)]

    once = against(use, faults={"error_500": 0.5}, seed=4)
    assert {200, 500} == set(once)
    limited = against(use, faults={"error_500": 0.5}, seed=4, requests_per_minute=60_000, limit_burst_s=0)
    assert [status for status in limited if status != 429] == once[: sum(status != 429 for status in limited)]


def test_what_is_seen_adds_up() -> None:
    texts = [f"row {n}" for n in range(40)]

    async def use(client: Client) -> tuple[list[int], dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.chat(text)) for text in texts for _ in range(3)]
        seen = (await client.get("/fake/seen?keys=1")).document
        return [task.result().status for task in tasks], seen

    statuses, seen = against(
        use, faults={"error_500": 0.3}, latency_s=0.01, prompt_tokens=10, completion_tokens=2
    )
    good = statuses.count(200)
    assert 0 < good < 120
    assert (seen["requests"], seen["usable"], seen["distinct"], seen["in_flight"]) == (120, good, 40, 0)
    assert seen["by_status"] == {"200": good, "500": 120 - good}
    assert 1 < seen["peak_in_flight"] <= 120
    assert seen["tokens"] == {"prompt": 10 * good, "completion": 2 * good, "thinking": 0, "cached": 0}
    assert seen["arrivals"]["most_in_60s"] == sum(seen["arrivals"]["per_100ms"]) == 120
    assert seen["connections"]["accepted"] >= 1
    assert seen["cpu_s"] > 0
    one = seen["keys"][key_of(chat("row 7"))]
    assert one["seen"] == one["admitted"] == 3
    assert sum(one["usable"] for one in seen["keys"].values()) == good
    assert "keys" not in against(lambda client: client.get("/fake/seen")).document


@pytest.mark.parametrize("status", [429, 503])
def test_the_hidden_limit(status: int) -> None:
    async def use(client: Client) -> tuple[list[Got], dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.chat(f"{n}")) for n in range(12)]
            answered = asyncio.as_completed(tasks)
            refused = [await next(answered) for _ in range(7)]
            seen = (await client.get("/fake/seen")).document
            for task in tasks:
                task.cancel()
        return refused, seen

    refused, seen = against(use, max_in_flight=5, overload_status=status, faults={"hang": 1.0})
    assert [one.status for one in refused] == [status] * 7
    assert (seen["refused"], seen["in_flight"], seen["peak_in_flight"]) == ({"in_flight": 7}, 5, 6)
    assert all("retry-after" not in one.headers for one in refused)


def test_control_routes() -> None:
    async def use(client: Client) -> list[Any]:
        await client.chat()
        told = await client.post("/fake/configure", {"text": "other", "faults": {"hang": 0.0}})
        answer = await client.chat()
        unknown = await client.post("/fake/configure", {"txt": "x"})
        broken = await client.post("/fake/configure", b"3")
        before = (await client.get("/fake/seen")).document
        await client.post("/fake/reset", {})
        return [told, answer, unknown, broken, before, (await client.get("/fake/seen")).document]

    told, answer, unknown, broken, before, after = against(use, text="first")
    assert told.document["text"] == "other"
    assert answer.document["choices"][0]["message"]["content"] == "other"
    assert (unknown.status, broken.status) == (400, 400)
    assert "did you mean text" in unknown.document["error"]
    assert (before["requests"], after["requests"]) == (2, 0)


def test_a_reset_fills_the_buckets() -> None:
    async def use(client: Client) -> list[int]:
        statuses = [(await client.chat()).status for _ in range(2)]
        await client.post("/fake/reset", {})
        return [*statuses, (await client.chat()).status]

    assert against(use, requests_per_minute=1) == [200, 429, 200]


def test_latency_is_waited_for() -> None:
    began = time.monotonic()
    assert raw(http(chat(), close=True), latency_s=0.05).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began >= 0.05


def test_a_request_that_comes_during_another_waits_for_it() -> None:
    async def main() -> tuple[bytes, int]:
        async with serving(Behaviour(faults={"drip": 1.0}, drip_bytes=40, echo="digest")) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(http(chat("first")))
            await until(lambda: server.service.counts.in_flight == 1)
            writer.write(http(chat("second"), close=True))
            async with asyncio.timeout(10):
                got = await reader.read()
            writer.close()
            await writer.wait_closed()
            return got, server.service.counts.peak_in_flight

    got, peak = asyncio.run(main())
    first, second = (got.find(key_of(chat(text)).encode()) for text in ("first", "second"))
    assert -1 < first < second
    assert peak == 1


def test_a_client_that_does_not_read_is_not_served_without_end() -> None:
    async def main() -> int:
        async with serving(Behaviour(text="x" * 100_000)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(http({}) * 400)
            await until(lambda: server.service.counts.usable > 0)
            await asyncio.sleep(0.1)
            answered = server.service.counts.usable
            writer.transport.abort()
            return answered

    assert asyncio.run(main()) < 300
