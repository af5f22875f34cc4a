"""Which server of a model gets the next request: probed, awake, with the least to do or the right cache."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from adapters.http import Server
from adapters.vllm_warmup import WarmUp
from engine.errors import ModelError
from engine.types import TRANSIENT, AttemptFailure, Request

_REST_S = 5.0
_REST_OF_A_STRANGER_S = 60.0
_PROBE_S = 120.0
_MOST_PREFIXES = 256
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
        self._warm_ups.clear()


Probe = Callable[[Replica, Request], Awaitable[AttemptFailure | None]]
"""Asks a server what it is, ahead of a request; what is wrong with it just now, None: nothing. Raises
`ModelError` where it is of no use."""


class Replicas:
    """The servers of one model, each probed before its first request and whenever it was away.

    A server that does not answer its probe rests for 5 s; the requests that would have gone there go to the
    others meanwhile. One that is of no use (it serves another model) ends the run, unless others are at work:
    then it is left alone for a minute, and `remarks` say so.

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
        self._probed = asyncio.Event()  # replaced each time: it is for those that wait now
        self._failure = AttemptFailure("unreachable", "no server is up", TRANSIENT)

    async def take(self, request: Request, prefix: bytes) -> Replica | AttemptFailure:
        """The server for a request, to be given back; or why there is none. Raises as the probe does."""
        waited = False
        while True:
            found = self._find()
            if found is None and waited:
                return self._failure
            if found is None:
                found = min(self._all, key=lambda one: one.resting_until)
            if isinstance(found, Replica):
                await self._ask(found, request)
                waited = True
            elif isinstance(found, asyncio.Event):
                await found.wait()
                waited = True
            else:
                return self._taken(found, request.group, prefix)

    def give_back(self, replica: Replica, prefix: bytes) -> None:
        """A request that was given the replica has ended."""
        replica.in_flight -= 1
        self._prefixes[prefix] -= 1
        if not self._prefixes[prefix]:
            del self._prefixes[prefix]

    def away(self, replica: Replica) -> None:
        """It cannot be reached: it is asked what it is before it gets another request."""
        replica.ready = False
        replica.resting_until = self._monotonic() + _REST_S

    # --- choosing ---------------------------------------------------------------------------------

    def _find(self) -> Sequence[Replica] | Replica | asyncio.Event | None:
        """The servers that are ready, or one to be probed first, or what to wait for; None: all rest."""
        if all(one.ready for one in self._all):
            return self._all
        now = self._monotonic()
        for one in self._all:
            if not one.ready and not one.probing and one.resting_until <= now:
                return one
        ready = [one for one in self._all if one.ready]
        if ready:
            return ready
        return self._probed if any(one.probing for one in self._all) else None

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

    async def _ask(self, replica: Replica, request: Request) -> None:
        """Probe a server; it is ready then, or rests."""
        replica.probing = True
        rest_s = _REST_S
        try:
            async with asyncio.timeout(_PROBE_S):
                failure = await self._probe(replica, request)
        except TimeoutError:
            failure = AttemptFailure("no_answer", f"it answers nothing within {_PROBE_S:g} s", TRANSIENT)
        except ModelError as exc:
            if not any(one.ready for one in self._all):
                raise
            failure = AttemptFailure("unusable", "it serves another model, or nobody", TRANSIENT)
            rest_s = _REST_OF_A_STRANGER_S
            if str(exc) not in self.remarks:
                self.remarks.append(str(exc))
        finally:
            replica.probing = False
            probed, self._probed = self._probed, asyncio.Event()
            probed.set()
        if failure is None:
            replica.is_back()
        else:
            self._failure = failure
            replica.resting_until = self._monotonic() + rest_s
