"""How many requests to have in flight at servers that queue instead of refusing: batch full, queue short.

Such a server never says that it is asked too much: what it cannot work on waits, in it or in front of it. So
the number is found out by trials, and the rate of answers decides them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

from engine.ports import ServerLoad
from engine.scheduler.congestion import Congestion
from engine.scheduler.pacer import Pacer
from engine.scheduler.window import Window

_START = 16
_GAIN = 0.025  # of the rate, for each doubling: what more in flight has to bring
_LOSS = 0.02  # for each halving: what less may cost; below the gain, or noise would wear the number down
_STEP = 1.5  # of a trial once the search is over: up by it, or down
_LESS_TWICE = 2  # one window may err
_HOLD_S = 2.0  # between trials, at first
_LONGEST_HOLD_S = 30.0
_CLEARLY = 0.9  # of the rate, or less, is a failure that is not worth repeating soon
_ANOTHER_LOAD = 0.25  # a rate that differs by so much from before
_MEMORY = 0.5  # weight of a new window in the rate of the number that is kept
_SHORT = 0.1  # of the running requests: a queue that keeps the batch full
_LONG = 0.25
_QUEUED = 4  # more at each server are no long queue yet: small batches run empty now and then
_TOO_LONG = 1.5  # more than those that come in during a step, be the answers of one token each
_FEW = 16  # with less nothing is judged: a batch of one and a queue of one take turns, and gain nothing
_SEEN = 0.8  # of what is in flight is at the servers: there is no hidden queue to shorten
_AS_FULL = 0.98
_OTHERS = 1.25  # at the servers are so many times our own requests: other clients are there
_MEMORY_FULL = 0.95
_PREEMPTED = 0.8

Reason: TypeAlias = Literal["more", "less", "queue", "memory"]
Phase: TypeAlias = Literal["doubling", "halving", "holding"]


class Trial(NamedTuple):
    """Another number in flight, and why it is tried."""

    limit: int
    reason: Reason


class Queueing:
    """A number of requests in flight, between 1 and `cap`, for a model that is `engine.ports.Gauged`.

    One number is kept; any other is a trial that lasts for one window of answers, and is compared with it by
    their rate. A number that was not in use, for want of rows, proves nothing.

    1. Search: the number doubles for as long as that brings more answers. Where the first doubling brings
       none, it is halved for as long as that costs none.
    2. Then half as much again is tried now and then. It is kept where it brings 2.5% for each doubling. Where
       part of what is in flight is not seen at the servers, it may be a queue in front of them: two thirds
       are tried as well, and kept where they cost 2% at most for each halving, twice in a row.
    3. Trials that fail are repeated more and more rarely, down to every 30 s (that at once where they cost a
       tenth, or made a long queue); another load (servers come or go, the rate changes by a quarter) is
       looked at again at once.
    4. Where more requests wait at the servers than a quarter of those running, the next trial is without half
       of what is too much. Where that costs answers, the servers need it, and it is not counted any more.
       Where others' requests are there too, nothing is added to a queue: it would be taken from them.
    5. Where servers had to preempt requests, four fifths are tried; where their memory is full, no more.

    What servers do not tell is no queue: the rate alone decides then. A refusal (429 or 503 of something in
    front of them) puts a `Congestion` in charge besides: the smaller number of the two holds.
    """

    settled = False
    """Every answer counts."""

    def __init__(self, cap: int, *, start: int | None = None) -> None:
        self.cap = cap
        self.pacer = Pacer()
        self.limit = min(_START if start is None else start, cap)
        """How many requests may be in flight now; at least one."""
        self.unpaced = True
        """See `Congestion.unpaced`."""
        self._refusals: Congestion | None = None
        self._kept = self.limit
        self._rate = 0.0  # of answers with so many in flight; 0: not known yet
        self._running = 0.0  # requests at work on the servers meanwhile
        self._trial: Trial | None = None
        self._phase: Phase = "doubling"
        self._risen = False  # a doubling has brought something
        self._turn: Reason = "more"
        self._passed_less = 0
        self._hold_s = _HOLD_S
        self._next_at = -math.inf
        self._told_at = -math.inf  # from then on what the servers tell is followed
        self._needed = 0.0  # the part of what is in flight that waits at the servers and has to
        self._servers = 0
        self._window = Window(self.limit, -math.inf, brief=True)

    # --- what is told ---------------------------------------------------------------------------------

    def loaded(self, load: ServerLoad | None) -> None:
        """How busy the servers are, asked just now; None where they do not say."""
        if load is None:
            return
        if load.servers != self._servers:
            self._servers = load.servers
            self._needed = 0.0
            self._look_again()
        self._window.loaded(load)

    def answered(self, now: float, latency_s: float, in_flight: int) -> None:
        """An answer came after `latency_s`; `in_flight` requests were under way, it included."""
        if self._refusals is not None:
            self._refusals.answered(now, latency_s, in_flight)
        if self._window.answered(now, latency_s, in_flight):
            self._decide(now, self._window)
            self._open(now)
            self._changed()
        elif self._refusals is not None:
            self._changed()

    def refused(
        self, now: float, pause_s: float, in_flight: int, *, sent_at: float, new_episode: bool = True
    ) -> bool:
        """See `Congestion.refused`."""
        if self._refusals is None:
            self._refusals = Congestion(self.cap, start=self.limit)
            self.pacer = self._refusals.pacer
            self.unpaced = False
        cut = self._refusals.refused(now, pause_s, in_flight, sent_at=sent_at, new_episode=new_episode)
        self._trial = None
        self._wait(now)
        self._open(now + pause_s)
        self._changed()
        return cut

    def failed(self, now: float) -> None:
        """An error that is no rate limit."""
        if self._refusals is not None:
            self._refusals.failed(now)

    # --- what follows ---------------------------------------------------------------------------------

    def _changed(self) -> None:
        self.limit = self._number if self._refusals is None else min(self._number, self._refusals.limit)

    @property
    def _number(self) -> int:
        return self._kept if self._trial is None else self._trial.limit

    def _open(self, since: float) -> None:
        """The next window, of requests that are sent from `since` on."""
        brief = self._phase != "holding"
        self._window = Window(self._number, since, brief=brief, preemptions=self._window.preemptions)

    def _decide(self, now: float, window: Window) -> None:
        """A window is over: judge its number, and choose the next."""
        trial, self._trial = self._trial, None
        if not window.used:
            self._wait(now)
            return
        if trial is None:
            self._remember(window.rate)
            self._running = window.running
        elif not self._passes(trial, window):
            self._fail(now, trial, window)
            return
        elif not self._keep(now, trial, window):
            return
        self._trial = self._told_by(now, window)
        if self._trial is None and now >= self._next_at:
            self._trial = self._next_trial(window)

    def _remember(self, rate: float) -> None:
        """The rate of the number that is kept."""
        if abs(rate - self._rate) > _ANOTHER_LOAD * self._rate:
            self._rate = rate
            self._needed = 0.0
            self._look_again()
        self._rate += _MEMORY * (rate - self._rate)

    def _passes(self, trial: Trial, window: Window) -> bool:
        """Whether the number that was tried in `window` is better than the one that is kept."""
        doublings = math.log2(trial.limit / self._kept)
        if trial.reason == "more":
            if _crowded(window):
                return False
            gain = _GAIN * doublings + (window.noise if self._excess(window) else 0.0)
            gains = window.rate >= (1.0 + gain) * self._rate
            return gains or (self._phase == "doubling" and trial.limit <= _FEW)
        loss = _LOSS * -doublings
        as_full = window.running >= _AS_FULL * self._running
        if trial.reason == "memory" or (trial.reason == "queue" and as_full):
            loss += 2.0 * window.noise  # what the servers run tells more than the rate of a few answers
        return window.rate >= (1.0 - loss) * self._rate

    def _keep(self, now: float, trial: Trial, window: Window) -> bool:
        """The number was better, or as good with less; False: that has to be seen once more."""
        if trial.reason == "more":
            self._risen = True
        elif trial.reason != "less":
            self._phase = "holding"  # so much in flight is all that they can take
        elif self._phase == "holding":
            self._passed_less += 1
            if self._passed_less < _LESS_TWICE:
                return False
        self._kept, self._rate, self._running = trial.limit, window.rate, window.running
        if trial.reason == "queue" and not self._excess(window):
            self._wait(now)  # the batch is full, and the queue is short
        else:
            self._look_again()
        return True

    def _fail(self, now: float, trial: Trial, window: Window) -> None:
        """The number that is kept was better."""
        if trial.reason in {"queue", "memory"}:
            self._told_at = now + self._hold_s
        if trial.reason == "queue" and _alone(window):
            self._needed += 1.0 - trial.limit / self._kept
        elif self._phase == "doubling" and trial.reason == "more" and not self._risen:
            self._phase = "halving"
        else:
            if trial.reason in {"more", "less"} and (
                self._excess(window) or window.rate < _CLEARLY * self._rate
            ):
                self._hold_s = _LONGEST_HOLD_S
            self._phase = "holding"
            self._turn = "less" if trial.reason == "more" else "more"
            if trial.reason == "more":
                self._needed /= 2.0  # a longer queue brings nothing: perhaps a shorter one will do
        self._wait(now)

    def _wait(self, now: float) -> None:
        """No trial for a while, unless the search is still on."""
        self._passed_less = 0
        if self._phase == "holding":
            self._next_at = now + self._hold_s
            self._hold_s = min(2.0 * self._hold_s, _LONGEST_HOLD_S)

    def _look_again(self) -> None:
        self._passed_less = 0
        self._hold_s = _HOLD_S
        self._next_at = self._told_at = -math.inf

    def _told_by(self, now: float, window: Window) -> Trial | None:
        """What the servers' state in `window`, of the number that is kept, says should be tried."""
        if self._kept == 1 or now < self._told_at:
            return None
        if window.preempted:
            return Trial(max(1, int(self._kept * _PREEMPTED)), "memory")
        excess = self._excess(window)
        return Trial(max(1, self._kept - math.ceil(0.5 * excess)), "queue") if excess else None

    def _next_trial(self, window: Window) -> Trial | None:
        """What else to try after `window`, of the number that is kept; None: nothing is worth a try."""
        more = self._kept < self.cap and window.memory_used < _MEMORY_FULL
        less = self._kept > _FEW
        if self._phase == "doubling" and not more:
            self._phase = "holding" if self._risen else "halving"
        if self._phase == "halving" and not less:
            self._phase = "holding"
        if self._phase != "holding":
            doubling = self._phase == "doubling"
            return self._more(2.0) if doubling else self._less(2.0)
        if more and (self._turn == "more" or not less):
            return self._more(_STEP)
        self._turn = "more"  # what the next turn is where this one is passed over
        return self._less(_STEP) if less and window.seen < _SEEN else None

    def _more(self, factor: float) -> Trial:
        return Trial(min(max(self._kept + 1, round(self._kept * factor)), self.cap), "more")

    def _less(self, factor: float) -> Trial:
        return Trial(max(round(self._kept / factor), _FEW), "less")

    def _excess(self, window: Window) -> int:
        """How many of our requests wait in too long a queue; 0: it is short."""
        ours = min(1.0, window.limit / max(window.running + window.waiting, 1.0))
        waiting = ours * window.waiting - self._needed * window.limit
        long = _TOO_LONG if self._phase == "doubling" else _LONG
        if waiting <= long * window.running + _QUEUED * window.servers:
            return 0
        return math.ceil(waiting - _SHORT * window.running - 0.5 * _QUEUED * window.servers)


def _crowded(window: Window) -> bool:
    """Whether requests wait in too long a queue that is not ours alone."""
    return not _alone(window) and window.waiting > _LONG * window.running + _QUEUED * window.servers


def _alone(window: Window) -> bool:
    """Whether no other client has requests at the servers worth counting."""
    return window.running + window.waiting <= _OTHERS * window.limit
