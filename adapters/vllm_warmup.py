"""One request ahead of all others, so that they find the beginning of their prompts in a cache."""

from __future__ import annotations

import asyncio
from collections import deque

_ANSWERS = 3  # layers with a sliding window may keep a prefix only from the third request on
_FAILURES = 5
_PATIENCE_S = 20.0  # by then it matters little: a server at work on a long prompt queues the others behind it


class WarmUp:
    """Lets the first requests with one prefix to one server go one at a time, then all.

    All may go as soon as an answer came whose prefix the server had in its cache (or would not say), and
    after three answers or five failures whatever they said: a server that caches nothing must not be asked
    one by one. After 20 s they go in any case, as the wait counts into each one's deadline. Who goes alone
    gives the turn back, however it ends; it then passes to the next that waits.
    """

    def __init__(self) -> None:
        self.over = False
        self._answers = _ANSWERS
        self._failures = _FAILURES
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._patience: asyncio.TimerHandle | None = None

    async def turn(self) -> bool:
        """Wait until a request may go. True: it goes alone, and has to `give_back`."""
        loop = asyncio.get_running_loop()
        while not self.over:
            if not self._busy:
                self._busy = True
                if self._patience is None:
                    self._patience = loop.call_later(_PATIENCE_S, self._end)
                return True
            waiter = loop.create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                else:  # it was called, and does not go
                    self._call_next()
                raise
        return False

    def give_back(self, warm: bool | None) -> None:
        """The request that went alone is done. `warm`: its prefix was cached, as far as the answer says;
        None: it brought no answer."""
        self._busy = False
        if warm is None:
            self._failures -= 1
        else:
            self._answers -= 1
        if warm or not self._answers or not self._failures:
            self._end()
        else:
            self._call_next()

    def _end(self) -> None:
        self.over = True
        if self._patience is not None:
            self._patience.cancel()
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if not self.over:
                    break
