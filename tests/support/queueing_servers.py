"""vLLM servers as a scheduler sees them, in virtual time: they never refuse, they queue.

A server works in steps over a batch of at most `max_running` requests. A step takes `step_s`, `sequence_s`
for each request in it and `prefill_s` for each that is new; a new request needs room in `memory`, and grows
in it by a token for each step. Where a request that runs finds no room, the newest one is preempted: it waits
again, at the front, and begins anew. Ahead of the engine stands a front end that takes `front_s` for each
request, one after another, and whose queue no figure shows.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.ports import FREE, Price, ServerLoad
from engine.types import TRANSIENT, Answer, AttemptFailure, ChatOutcome, Request, Usage

Done = Callable[[bool], None]
"""Called with whether the request was answered."""


@dataclass(frozen=True)
class Shape:
    """What a server is like. Times in seconds; memory in tokens, of which a request takes `prompt` and one
    for each token of its answer (1 to 2 x `output` - 1)."""

    max_running: int = 64
    step_s: float = 0.02
    sequence_s: float = 0.0005
    prefill_s: float = 0.002
    prefills: int = 16
    output: int = 4
    prompt: int = 200
    memory: int = 1_000_000
    front_s: float = 0.0
    transit_s: float = 0.002


@dataclass(eq=False)
class _Request:
    done: Done
    output: int
    left: int = 0
    held: int = 0


class SimulatedServer:
    """One of them; belongs to the running loop."""

    def __init__(self, shape: Shape, rng: random.Random) -> None:
        self.shape = shape
        self.alive = True
        self.preemptions = 0
        self.in_flight = 0
        self.running: list[_Request] = []
        self.waiting: deque[_Request] = deque()
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._front_free_at = 0.0
        self._stepping = False
        self._held = 0
        self._accepted: set[_Request] = set()

    def ask(self, done: Done) -> None:
        """`done` is called when the request has its answer, or has lost its server."""
        now = self._loop.time()
        if not self.alive:
            self._loop.call_at(now + self.shape.transit_s, done, False)
            return
        asked = _Request(done, self._rng.randint(1, 2 * self.shape.output - 1))
        self.in_flight += 1
        self._accepted.add(asked)
        arrives = max(now + self.shape.transit_s, self._front_free_at) + self.shape.front_s
        self._front_free_at = arrives
        self._loop.call_at(arrives, self._arrive, asked)

    def die(self) -> None:
        """All that was asked is lost."""
        self.alive = False
        lost, self._accepted = self._accepted, set()
        self.running.clear()
        self.waiting.clear()
        self._held = self.in_flight = 0
        for asked in lost:
            asked.done(False)

    def come_back(self) -> None:
        self.alive = True
        self._front_free_at = 0.0

    @property
    def memory_used(self) -> float:
        return self._held / self.shape.memory

    def _arrive(self, asked: _Request) -> None:
        if asked in self._accepted:
            self.waiting.append(asked)
            self._step()

    def _step(self) -> None:
        if self._stepping or not (self.running or self.waiting):
            return
        shape = self.shape
        for asked in list(self.running):
            if asked.held:  # else: it was preempted for one before it
                self._make_room(asked)
        new = 0
        while self.waiting and new < shape.prefills and len(self.running) < shape.max_running:
            asked = self.waiting[0]
            if self._held + shape.prompt + 1 > shape.memory and self.running:
                break
            self.waiting.popleft()
            asked.left, asked.held = asked.output, shape.prompt + 1
            self._held += asked.held
            self.running.append(asked)
            new += 1
        took_s = shape.step_s + shape.sequence_s * len(self.running) + shape.prefill_s * new
        self._stepping = True
        self._loop.call_later(took_s, self._stepped)

    def _make_room(self, asked: _Request) -> None:
        while self._held + 1 > self.shape.memory and len(self.running) > 1:
            last = self.running.pop()
            self._held -= last.held
            last.held = 0
            self.preemptions += 1
            self.waiting.appendleft(last)
            if last is asked:
                return
        asked.held += 1
        self._held += 1

    def _stepped(self) -> None:
        self._stepping = False
        finished = []
        for asked in self.running:
            asked.left -= 1
            if asked.left <= 0:
                finished.append(asked)
        self.running = [asked for asked in self.running if asked.left > 0]
        for asked in finished:
            self._held -= asked.held
            if asked in self._accepted:
                self._accepted.remove(asked)
                self.in_flight -= 1
                asked.done(True)
        self._step()


Tells = Literal["all", "nothing", "hanging"]
"""How busy they are: that, nothing, or one never hears."""


class SimulatedServers:
    """Some of them behind one name, the one with the fewest requests first; a `ChatModel` and `Gauged`."""

    def __init__(
        self, *shapes: Shape, seed: int = 0, most_in_flight: int = 256, tells: Tells = "all"
    ) -> None:
        rng = random.Random(seed)
        self.servers = [SimulatedServer(shape, rng) for shape in shapes]
        self.most_in_flight = most_in_flight
        self.tells = tells
        self.asked_load = 0
        self.answered = 0
        self.in_flight = 0
        self.peak = 0
        self.name = "simulated"
        self.max_batch = 1
        self.max_input_tokens = 100_000
        self.price: Price | None = FREE

    def ask(self, done: Done) -> None:
        """One request of ours."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

        def came(answered: bool) -> None:
            self.in_flight -= 1
            self.answered += answered
            done(answered)

        alive = [server for server in self.servers if server.alive] or self.servers
        min(alive, key=lambda server: server.in_flight).ask(came)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        came: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ask(lambda answered: None if came.done() else came.set_result(answered))
        if await came:
            return [Answer("yes", Usage(input_tokens=self.servers[0].shape.prompt, output_tokens=2))]
        return [AttemptFailure("disconnected", "the server is gone", TRANSIENT)]

    async def load(self) -> ServerLoad | None:
        self.asked_load += 1
        if self.tells == "hanging":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.005)
        return self.look() if self.tells == "all" else None

    def look(self) -> ServerLoad | None:
        """The same at once."""
        alive = [server for server in self.servers if server.alive]
        if not alive:
            return None
        return ServerLoad(
            servers=len(alive),
            running=sum(len(server.running) for server in alive),
            waiting=sum(len(server.waiting) for server in alive),
            kv_cache_usage=max(server.memory_used for server in alive),
            preemptions=sum(server.preemptions for server in alive),
        )

    async def aclose(self) -> None:
        pass


@dataclass
class OtherClient:
    """Keeps so many requests at the servers, as long as it is on."""

    servers: SimulatedServers
    at_once: int
    on: bool = False
    _in_flight: int = field(default=0, init=False)

    def start(self) -> None:
        self.on = True
        while self._in_flight < self.at_once:
            self._ask()

    def stop(self) -> None:
        self.on = False

    def _ask(self) -> None:
        self._in_flight += 1
        min(self.servers.servers, key=lambda server: server.in_flight).ask(self._came)

    def _came(self, answered: bool) -> None:
        self._in_flight -= 1
        if self.on:
            self._ask()
