"""Which server of a model gets the next request: probed, awake, with the least to do or the right cache."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from adapters.http import Server
from adapters.vllm_warmup import WarmUp
from engine.errors import ModelError
from engine.types import TRANSIENT, AttemptFailure, Request, rate_limited

_REST_S = 5.0
_REST_OF_A_STRANGER_S = 60.0
_PROBE_S = 120.0
_OUTAGE_S = 600.0  # time for a server to be started anew, a large model to be loaded
_LOST = (
    f"no server of the model answers any more: everything waits for one to come back, {_OUTAGE_S / 60:g} "
    "minutes at most"
)
_MOST_PREFIXES = 256
_FAILURES = 5  # in a row
# how much more than the mean a server may have in flight for the sake of its cache
_SPILL_SHARE, _SPILL = 1.25, 4


@dataclass(slots=True, eq=False)
class Replica:
    """One server. `ready` once its probe has succeeded, until it cannot be reached.

    `context` is the most tokens of a prompt with its answer, None where it does not say.
    """

    server: Server
    context: int | None = None
    ready: bool = False
    probing: bool = False
    resting_until: float = 0.0
    in_flight: int = 0
    sent: int = 0
    answers: int = 0
    failures: int = 0
    _warm_ups: OrderedDict[bytes, WarmUp] = field(default_factory=OrderedDict, repr=False)

    @property
    def base(self) -> str:
        return self.server.base

    def warm_up(self, prefix: bytes) -> WarmUp:
        """That of a prefix; of the prefixes that were not asked for longest it is forgotten."""
        found = self._warm_ups.get(prefix)
        if found is None:
            found = self._warm_ups[prefix] = WarmUp()
            if len(self._warm_ups) > _MOST_PREFIXES:
                self._warm_ups.popitem(last=False)
        else:
            self._warm_ups.move_to_end(prefix)
        return found

    def is_back(self) -> None:
        """It has been probed: it may be another process than before, and its cache empty."""
        self.ready = True
        self.failures = 0
        self._warm_ups.clear()


Probe = Callable[[Replica, Request], Awaitable[AttemptFailure | None]]
"""Asks a server what it is, ahead of a request; what is wrong with it just now, None: nothing. Raises
`ModelError` where it is of no use."""


class Replicas:
    """The servers of one model, each probed before its first request and whenever it was away.

    A probe is a task of its own: no request waits for one while another server is ready, and none cuts it
    short with its own deadline. A server that does not answer its probe rests for 5 s; the requests that
    would have gone there go to the others meanwhile. One that fails five times in a row is probed too: behind
    a gateway it fails at once, and has the least in flight. One that is of no use (it serves another model)
    ends the run, unless others are at work: then it is left alone for a minute, and `remarks` say so.

    While the last of the servers is away, for ten minutes at most, everyone is asked to wait, which costs no
    request an attempt: a server that is started anew takes minutes.

    Of those that are ready, the one with the least in flight is taken. Requests of one group, or with one
    prefix of several that are in use, prefer one server, by rendezvous hashing, for what it has in its cache:
    until it has clearly more in flight than the mean.
    """

    def __init__(
        self, servers: Sequence[Server], probe: Probe, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.remarks: list[str] = []
        self._all = [Replica(server) for server in servers]
        self._probe = probe
        self._monotonic = monotonic
        self._prefixes: Counter[bytes] = Counter()
        self._probes: set[asyncio.Task[None]] = set()
        self._probed = asyncio.Event()  # replaced each time: it is for those that wait now
        self._error: ModelError | None = None  # of a probe, while no server is ready
        self._fault: BaseException | None = None  # what no probe should raise
        self._failure = AttemptFailure("unreachable", "no server is up", TRANSIENT)
        self._lost_at: float | None = None  # the last server that was ready

    async def take(self, request: Request, prefix: bytes) -> Replica | AttemptFailure:
        """The server for a request, to be given back; or why there is none. Raises as the probe does."""
        waited = False
        while True:
            if self._fault is not None:
                raise self._fault
            ready = self._ready(request)
            if ready:
                return self._taken(ready, request.group, prefix)
            if not self._probes:  # all rest
                if waited:
                    error, self._error = self._error, None
                    if error is not None:
                        raise error
                    return self._nobody()
                self._begin_probe(min(self._all, key=lambda one: one.resting_until), request)
            await self._probed.wait()
            waited = True

    def give_back(self, replica: Replica, prefix: bytes) -> None:
        """A request that was given the replica has ended."""
        replica.in_flight -= 1
        self._prefixes[prefix] -= 1
        if not self._prefixes[prefix]:
            del self._prefixes[prefix]

    def told(self, replica: Replica, *, alive: bool, busy: bool = False) -> None:
        """A request has shown that the server is alive, or has failed for want of that; `busy`: it has asked
        to wait."""
        if alive:
            replica.answers += 1
            replica.failures = 0
            return
        replica.failures += 1
        if replica.failures >= _FAILURES and replica.ready and not (busy and self._is_last(replica)):
            self.away(replica)

    def away(self, replica: Replica) -> None:
        """It is asked what it is before it gets another request."""
        now = self._monotonic()
        if replica.ready and self._is_last(replica):
            self._lost_at = now
            if _LOST not in self.remarks:
                self.remarks.append(_LOST)
        replica.ready = False
        replica.resting_until = now + _REST_S

    async def aclose(self) -> None:
        """End the probes that are under way. Calling it twice is harmless."""
        probes = tuple(self._probes)
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    # --- choosing ---------------------------------------------------------------------------------

    def _ready(self, request: Request) -> Sequence[Replica]:
        """The servers that are ready; those that have rested are being probed then."""
        ready = [one for one in self._all if one.ready]
        if len(ready) < len(self._all):
            now = self._monotonic()
            for one in self._all:
                if not one.ready and not one.probing and one.resting_until <= now:
                    self._begin_probe(one, request)
        return ready

    def _is_last(self, replica: Replica) -> bool:
        return not any(one.ready and one is not replica for one in self._all)

    def _nobody(self) -> AttemptFailure:
        lost_at = self._lost_at
        if lost_at is None or self._monotonic() - lost_at > _OUTAGE_S:
            return self._failure
        return replace(self._failure, retry=rate_limited(_REST_S))

    def _taken(self, ready: Sequence[Replica], group: str, prefix: bytes) -> Replica:
        found = ready[0] if len(ready) == 1 else self._best(ready, group, prefix)
        found.in_flight += 1
        found.sent += 1
        self._prefixes[prefix] += 1
        return found

    def _best(self, ready: Sequence[Replica], group: str, prefix: bytes) -> Replica:
        least = min(ready, key=lambda one: (one.in_flight, one.sent))
        if group:
            wanted = group.encode("utf-8", "surrogatepass")
        elif len(self._prefixes) > 1 or (self._prefixes and prefix not in self._prefixes):
            wanted = prefix
        else:
            return least
        own = max(ready, key=lambda one: blake2b(one.base.encode() + b"\0" + wanted, digest_size=8).digest())
        mean = sum(one.in_flight for one in ready) / len(ready)
        return own if own.in_flight <= _SPILL_SHARE * mean + _SPILL else least

    # --- probing ----------------------------------------------------------------------------------

    def _begin_probe(self, replica: Replica, request: Request) -> None:
        if not self._probes:
            self._error = None
        task = asyncio.get_running_loop().create_task(self._ask(replica, request))
        replica.probing = True
        self._probes.add(task)

        def over(task: asyncio.Task[None]) -> None:
            replica.probing = False
            self._probes.discard(task)
            if not task.cancelled():
                self._fault = self._fault or task.exception()
            probed, self._probed = self._probed, asyncio.Event()
            probed.set()

        task.add_done_callback(over)

    async def _ask(self, replica: Replica, request: Request) -> None:
        """Probe a server; it is ready then, or rests."""
        rest_s = _REST_S
        try:
            async with asyncio.timeout(_PROBE_S):
                failure = await self._probe(replica, request)
        except TimeoutError:
            failure = AttemptFailure("no_answer", f"it answers nothing within {_PROBE_S:g} s", TRANSIENT)
        except ModelError as exc:  # raised where no server is ready once all have been asked
            failure = AttemptFailure("unusable", "it serves another model, or nobody", TRANSIENT)
            rest_s = _REST_OF_A_STRANGER_S
            self._error = exc
        if failure is None:
            replica.is_back()
        else:
            self._failure = failure
            replica.resting_until = self._monotonic() + rest_s
        if self._error is not None and any(one.ready for one in self._all):
            error, self._error = str(self._error), None
            if error not in self.remarks:
                self.remarks.append(error)
