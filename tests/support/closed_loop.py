"""A closed loop on simulated servers, as wide as something says it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Protocol

from engine.ports import ServerLoad
from tests.support.queueing_servers import SimulatedServers


class InFlight(Protocol):
    """Whatever says how many requests may be in flight."""

    @property
    def limit(self) -> int: ...

    def answered(self, now: float, latency_s: float, in_flight: int) -> object: ...

    def loaded(self, load: ServerLoad | None) -> object: ...


@dataclass
class Fixed:
    """A number that never changes."""

    limit: int

    def answered(self, now: float, latency_s: float, in_flight: int) -> None:
        """Nothing follows from it."""

    def loaded(self, load: ServerLoad | None) -> None:
        """Nothing follows from it."""


@dataclass(frozen=True)
class Course:
    """How it went, on average from `after` on, and the numbers in flight every half second from the start."""

    per_s: float
    running: float
    waiting: float
    limits: list[int]


async def drive(
    servers: SimulatedServers,
    control: InFlight,
    *,
    until: float,
    after: float,
    on_time: Callable[[float], None] = lambda seconds: None,
) -> Course:
    """Keep as many requests in flight as `control` lets, for `until` seconds; it is told the load as the
    scheduler tells it. `on_time` is called every half second. (No tasks: this is a hundred times as quick.)
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    in_flight = 0

    def fill() -> None:
        nonlocal in_flight
        while in_flight < control.limit:
            in_flight += 1
            servers.ask(partial(came, loop.time()))

    def came(sent_at: float, answered: bool) -> None:
        nonlocal in_flight
        now = loop.time()
        if answered:
            control.answered(now, now - sent_at, in_flight)
        in_flight -= 1
        if answered:
            fill()

    counted, running, waiting, limits = 0, [0], [0], []
    while (seconds := loop.time() - began) < until:
        on_time(round(seconds, 3))
        fill()
        if servers.tells == "all":
            control.loaded(servers.look())
        limits.append(control.limit)
        if seconds <= after:
            counted = servers.answered
        elif look := servers.look():
            running.append(look.running)
            waiting.append(look.waiting)
        await asyncio.sleep(0.5)
    per_s = (servers.answered - counted) / (until - after)
    return Course(per_s, fmean(running), fmean(waiting), limits)
