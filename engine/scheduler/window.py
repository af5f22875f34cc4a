"""What a number of requests in flight was worth, over some answers."""

from __future__ import annotations

import math

from engine.ports import ServerLoad

_BRIEF = 8, 1.0  # answers, and seconds, at least
_FULL = 100, 2.0
_USED = 0.8
_SPREAD = 0.3  # of the time that one answer takes, as a part of it
_ROUNDING_S = 1e-9


class Window:
    """Answers with `limit` requests in flight: one for each slot, and enough of them to tell.

    It begins once as many have come to requests that were sent `since` the number holds: until then they tell
    of the number before, and of the way to this one. A `brief` one is for large differences.
    """

    def __init__(self, limit: int, since: float, *, brief: bool, preemptions: int | None = None) -> None:
        self.limit = limit
        self.preemptions = preemptions
        """How many the servers last told of, before this window or in it."""
        self.preempted = False
        self.memory_used = 0.0
        self._since = since
        self._least, self._least_s = _BRIEF if brief else _FULL
        self._settling = limit
        self._began_at = math.inf
        self._answers = 0
        self._latency_s = 0.0
        self._in_flight = 0
        self._samples = 0
        self._running = 0
        self._waiting = 0
        self._servers = 0

    def answered(self, now: float, latency_s: float, in_flight: int) -> bool:
        """Count an answer; whether the window is over."""
        if self._settling:
            if now - latency_s >= self._since - _ROUNDING_S:
                self._settling -= 1
                self._began_at = now
            return False
        self._answers += 1
        self._latency_s += latency_s
        self._in_flight += in_flight
        return self._answers >= max(self._least, self.limit) and now - self._began_at >= self._least_s

    def loaded(self, load: ServerLoad) -> None:
        """Count a look at the servers."""
        before, self.preemptions = self.preemptions, load.preemptions
        if self._settling:
            return
        self.preempted |= before is not None and load.preemptions > before
        self.memory_used = max(self.memory_used, load.kv_cache_usage)
        self._samples += 1
        self._running += load.running
        self._waiting += load.waiting
        self._servers = load.servers

    @property
    def rate(self) -> float:
        """Answers a second, by Little's law: unlike their count it does not hang on where the window ends."""
        return self._in_flight / max(self._latency_s, _ROUNDING_S)

    @property
    def noise(self) -> float:
        """About how far off the rate may be, as a part of it."""
        return _SPREAD / math.sqrt(max(self._answers, 1))

    @property
    def used(self) -> bool:
        """Whether so many were in flight most of the time."""
        return self._in_flight >= _USED * self.limit * self._answers

    @property
    def running(self) -> float:
        """Requests that the servers worked on, anybody's; 0 where nobody says."""
        return self._running / max(self._samples, 1)

    @property
    def waiting(self) -> float:
        """Requests that waited there, anybody's."""
        return self._waiting / max(self._samples, 1)

    @property
    def seen(self) -> float:
        """The part of the requests in flight that the servers told of, running or waiting."""
        return (self.running + self.waiting) / self.limit

    @property
    def servers(self) -> int:
        """How many servers told of it last."""
        return self._servers
