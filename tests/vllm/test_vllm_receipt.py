"""The prefix-cache receipt on a real server: right when all is well, and where something is wrong, why."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapters.addresses import RemoteAddress, parse_openai
from adapters.openai_compatible import OpenAICompatibleChat
from adapters.vllm import VllmChat
from adapters.vllm_ledger import CacheLedger
from adapters.vllm_servers import VllmServers
from engine.bulk import classify
from engine.events import Notice
from engine.ports import CacheReceipt
from engine.prompt import CompiledPrompt
from engine.student import StudentPrompt
from engine.types import Answer, ChatOutcome, Message, Request
from tests.support.bulk import write_ndjson
from tests.support.fakes import Listener
from tests.vllm.serving import BLOCK, MODEL, Environment, Server, serving

pytestmark = pytest.mark.vllm

LABELS = {"billing": "", "technical": ""}
AT_ONCE = 16
REQUESTS = 120


def prompt(about: str) -> CompiledPrompt:
    return CompiledPrompt(f"{about}: " + "Sort the tickets into the right queue. " * 90, LABELS)


def rows(count: int = REQUESTS) -> list[str]:
    return [f"{n}: the invoice of {n * 37 % 1000} is wrong, and it does not start" for n in range(count)]


def requests(about: str, count: int = REQUESTS) -> list[Request]:
    asked = StudentPrompt(prompt(about))
    return [asked.request(str(n), row) for n, row in enumerate(rows(count))]


def address(server: Server) -> RemoteAddress:
    return RemoteAddress(MODEL, (server.base,))


async def ask(complete: Callable[[Request], object], asked: Sequence[Request]) -> None:
    """A closed loop: so many at once, in their order."""
    waiting = iter(asked)

    async def work() -> None:
        for request in waiting:
            await complete(request)  # type: ignore[misc]

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


def receipt(server: Server, asked: Sequence[Request]) -> CacheReceipt:
    """What a fresh student says after these requests."""

    async def run() -> CacheReceipt | None:
        model = VllmChat(address(server))

        async def complete(request: Request) -> None:
            (outcome,) = await model.complete([request])
            assert isinstance(outcome, Answer), outcome

        try:
            assert await model.receipt() is None
            await ask(complete, asked)
            return await model.receipt()
        finally:
            await model.aclose()

    found = asyncio.run(run())
    assert found is not None
    assert (found.requests, found.servers) == (len(asked), 1)
    return found


@pytest.fixture(scope="module")
def uncached(environment: Environment, tiny_model: Path) -> Iterator[Server]:
    """A server without a prefix cache."""
    log = environment.scratch / "uncached.log"
    with serving(environment, tiny_model, log, "--no-enable-prefix-caching") as ready:
        yield ready


# --- the four that were staged --------------------------------------------------------------------


def test_all_well(server: Server) -> None:
    found = receipt(server, requests("well"))
    assert found.warnings == ()
    assert (found.prefixes, found.block_tokens) == (1, BLOCK)
    assert found.shared_tokens is not None
    assert found.shared_tokens > 5 * BLOCK
    assert found.expected_tokens == (REQUESTS - 1) * (found.shared_tokens // BLOCK * BLOCK)
    assert found.cached_tokens is not None
    assert found.cached_tokens >= 0.99 * found.expected_tokens
    assert found.first_token_s is not None
    assert found.first_token_s > 0
    assert found.requests_per_s > 0


def test_caching_is_off(uncached: Server) -> None:
    found = receipt(uncached, requests("off", 40))
    assert found.cached_tokens == 0
    assert found.expected_tokens is not None
    assert found.expected_tokens >= 39 * 5 * BLOCK
    (warning,) = found.warnings
    assert f"the prefix cache of {uncached.base} is off" in warning


def test_the_block_is_larger_than_the_prompt(server: Server) -> None:
    short = Message("system", "Sort the tickets.")
    asked = [replace(one, messages=(short, one.messages[-1])) for one in requests("short", 40)]
    found = receipt(server, asked)
    assert (found.cached_tokens, found.expected_tokens) == (0, 0)
    assert found.shared_tokens is not None
    assert found.shared_tokens < BLOCK
    (warning,) = found.warnings
    assert f"whole blocks of {BLOCK} tokens, and the requests share {found.shared_tokens}" in warning


@dataclass
class Drifting:
    """A student whose prompt becomes another one half-way."""

    model: VllmChat
    left: int

    name = "drifting"
    max_batch = 1
    price = None
    max_input_tokens = 32_000

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        (request,) = requests
        self.left -= 1
        if self.left < 0:
            system, row = request.messages
            request = replace(request, messages=(Message("system", f"Now {system.content}"), row))
        return await self.model.complete([request])

    async def receipt(self) -> CacheReceipt | None:
        return await self.model.receipt()

    async def aclose(self) -> None:
        await self.model.aclose()


def test_the_prefix_changes_half_way(server: Server, tmp_path: Path) -> None:
    listener = Listener()

    async def run() -> CacheReceipt | None:
        student = Drifting(VllmChat(address(server)), REQUESTS // 2)
        try:
            found = await classify(
                prompt("drift"),
                student,
                write_ndjson(tmp_path / "rows.ndjson", rows()),
                tmp_path / "out",
                emit=listener,
            )
        finally:
            await student.aclose()
        assert found.classified == REQUESTS
        return found.receipt

    found = asyncio.run(run())
    assert found is not None
    assert (found.requests, found.prefixes) == (REQUESTS, 2)
    assert found.shared_tokens is not None
    assert found.expected_tokens == (REQUESTS - 2) * (found.shared_tokens // BLOCK * BLOCK)
    assert found.cached_tokens is not None
    assert found.cached_tokens >= 0.99 * found.expected_tokens
    (warning,) = found.warnings
    assert "2 different beginnings, and there is one prompt" in warning
    assert Notice(f"prefix cache: {warning}", warning=True) in listener.events


# --- kept by hand ---------------------------------------------------------------------------------


def by_hand(server: Server, asked: Sequence[Request], *, salted: bool, told: bool) -> CacheReceipt:
    """A ledger of requests that have a salt each, or whose answers do not tell what was cached."""

    async def run() -> CacheReceipt | None:
        servers, ledger = VllmServers(address(server), api_key=None), CacheLedger()
        plain = OpenAICompatibleChat(parse_openai(server.address))
        clock = asyncio.get_running_loop().time

        async def complete(request: Request) -> None:
            model = plain
            if salted:
                model = OpenAICompatibleChat(parse_openai(server.address), cache_salt=f"salt {request.id}")
            ledger.asked(clock())
            (outcome,) = await model.complete([request])
            assert isinstance(outcome, Answer), outcome
            usage = outcome.usage if told else replace(outcome.usage, cached_tokens=None)
            prefix = hashlib.sha256(request.messages[0].content.encode()).digest()
            ledger.answered(prefix, server.base, request, usage, clock())
            if salted:
                await model.aclose()

        try:
            await ledger.begin(servers, server.base, asked[0])
            await complete(asked[0])
            await ask(complete, asked[1:])
            return await ledger.receipt(servers)
        finally:
            await plain.aclose()
            await servers.aclose()

    found = asyncio.run(run())
    assert found is not None
    return found


def test_a_salt_for_each_request(server: Server) -> None:
    found = by_hand(server, requests("salted", 40), salted=True, told=True)
    assert found.cached_tokens == 0
    assert found.expected_tokens
    (warning,) = found.warnings
    assert "a cache_salt that changes between requests would do it" in warning


def test_what_answers_do_not_tell_is_read_from_the_counters(server: Server) -> None:
    found = by_hand(server, requests("untold", 60), salted=False, told=False)
    assert found.cached_tokens is not None
    assert found.expected_tokens is not None
    assert found.expected_tokens > 0
    assert found.cached_tokens >= 0.99 * found.expected_tokens
    (warning,) = found.warnings
    assert "the servers' own counters" in warning
