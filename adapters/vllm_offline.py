"""vLLM in this process: its own engine on this machine's GPU, no server between.

vLLM is imported when the first request comes, off the event loop: that and the model take half a minute to
minutes. Its scheduler runs in this process too (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): nothing is left behind
when this process dies, and Ctrl-C does not end the engine under a batch that is to be finished.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from adapters.offline_address import OfflineAddress
from adapters.vllm_engine import Engine
from adapters.vllm_ledger import CacheLedger
from adapters.vllm_length import Fitted, Length, Room
from adapters.vllm_servers import ServerCounters, ServerFacts
from engine.config import TooLong
from engine.ports import FREE, CacheReceipt
from engine.types import Answer, AttemptFailure, ChatOutcome, Message, Request

DEFAULT_MAX_INPUT_TOKENS = 32_000
_BATCH = 1024
_WARM_UPS = 3  # layers with a sliding window may take so many until they keep a prefix
_MOST_REMEMBERED = 256
_MARGIN = 64  # where a row meets the template, other tokens may come about
_HERE = "this process"

T = TypeVar("T")


class VllmOffline:
    """A `ChatModel` in process: batches of up to 1,024 requests through `vllm.LLM.chat`.

    The answer to a request with choices is held to them, with the log-probabilities of its tokens, as behind
    a server. The first request with a prefix that others share goes ahead of its batch: they find it cached.
    A request that is too long for the model's context fails, or loses its middle (`too_long="cut"`).

    The first request raises `ModelError` where vLLM is not installed, or cannot load the model.
    """

    max_batch = _BATCH
    price = FREE

    def __init__(
        self, address: OfflineAddress, *, too_long: TooLong = "fail", max_input_tokens: int | None = None
    ) -> None:
        """`address` names the model, and what vLLM's engine is told beside it."""
        self.name = address.name + ("#cut" if too_long == "cut" else "")
        self.max_input_tokens = max_input_tokens or DEFAULT_MAX_INPUT_TOKENS
        self._address = address
        self._engine: Engine | None = None
        self._beside = _Beside(self)
        self._length = Length(self._beside, too_long)
        self._ledger = CacheLedger()
        self._frames: dict[tuple[Message, ...], int | None] = {}
        self._warm: dict[tuple[Message, ...], None] = {}  # the oldest first
        # one thread: the engine takes one caller at a time
        self._thread: ThreadPoolExecutor | None = None

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """See `engine.ports.ChatModel`."""
        if not requests:
            return []
        context = (await self._with_engine(lambda engine: engine)).max_model_len
        self._ledger.asked(time.monotonic())
        fitted = [await self._fitted(request, context) for request in requests]
        asked = [one.request for one in fitted if isinstance(one, Fitted)]
        answers = iter(await self._with_engine(lambda engine: self._answers(engine, asked)))
        return [self._noted(one, next(answers)) if isinstance(one, Fitted) else one for one in fitted]

    async def receipt(self) -> CacheReceipt | None:
        """See `engine.ports.Receipting`; None once it is closed. The time to a first token is not told."""
        return None if self._engine is None else await self._ledger.receipt(self._beside)

    async def aclose(self) -> None:
        """Free the device's memory. Calling it twice is harmless; the next request loads the model anew."""
        if self._thread is not None:
            await self._off_the_loop(self._close)
            thread, self._thread = self._thread, None
            thread.shutdown(wait=False)

    async def _fitted(self, request: Request, context: int) -> Fitted | AttemptFailure:
        answer_tokens = request.max_output_tokens
        room = context - answer_tokens
        *before, last = request.messages
        frame = await self._frame_tokens((*before, Message(last.role, "")))
        # no tokenizer makes more tokens of a text than its bytes
        if frame is None or frame + len(last.content.encode("utf-8", "surrogatepass")) + _MARGIN <= room:
            return Fitted(request)
        counted = await self._beside.token_ids(_HERE, request.messages)
        if counted is None or len(counted) <= room:
            return Fitted(request)
        return await self._length.refused(request, Room(_HERE, context, answer_tokens)) or Fitted(request)

    async def _frame_tokens(self, messages: tuple[Message, ...]) -> int | None:
        """The tokens of a request without its row: counted once, as it is most of what there is to count."""
        if messages not in self._frames:
            counted = await self._beside.token_ids(_HERE, messages)
            if len(self._frames) >= _MOST_REMEMBERED:
                del self._frames[next(iter(self._frames))]
            self._frames[messages] = None if counted is None else len(counted)
        return self._frames[messages]

    def _noted(self, fitted: Fitted, outcome: ChatOutcome) -> ChatOutcome:
        if not isinstance(outcome, Answer):
            return outcome
        prefix = _digest(fitted.request.messages[:-1])
        self._ledger.answered(prefix, _HERE, fitted.request, outcome.usage, time.monotonic())
        return replace(outcome, cut_characters=fitted.cut_characters)

    # --- in the thread ----------------------------------------------------------------------------

    async def _with_engine(self, work: Callable[[Engine], T]) -> T:
        """What `work` finds with the engine, which is loaded where it is not."""

        def run() -> T:
            if self._engine is None:
                self._engine = Engine(self._address)
            return work(self._engine)

        return await self._off_the_loop(run)

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            # processes that vLLM starts inherit the mask: Ctrl-C is for pld alone, which lets a batch finish
            self._thread = ThreadPoolExecutor(
                1, "vllm", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            )
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _answers(self, engine: Engine, requests: Sequence[Request]) -> list[ChatOutcome]:
        """The outcomes in order; the first with a prefix that others share, and that is new, goes ahead."""
        prefixes = [request.messages[:-1] for request in requests]
        shared = Counter(prefixes)
        ahead = [n for n, prefix in enumerate(prefixes) if shared[prefix] > 1 and self._is_new(prefix)]
        found = {n: _warmed(engine, requests[n]) for n in ahead}
        rest = [n for n in range(len(requests)) if n not in found]
        found.update(zip(rest, engine.chat([requests[n] for n in rest]), strict=True))
        return [found[n] for n in range(len(requests))]

    def _is_new(self, prefix: tuple[Message, ...]) -> bool:
        if prefix in self._warm:
            return False
        self._warm[prefix] = None
        if len(self._warm) > _MOST_REMEMBERED:
            del self._warm[next(iter(self._warm))]
        return True

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        self._warm.clear()
        if engine is not None:
            engine.close()


@lru_cache(maxsize=64)
def _digest(prefix: tuple[Message, ...]) -> bytes:
    return hashlib.sha256(repr(prefix).encode("utf-8", "backslashreplace")).digest()


def _warmed(engine: Engine, request: Request) -> ChatOutcome:
    """The outcome of a request whose prefix is kept then, as far as it can be."""
    (outcome,) = engine.chat([request])
    for _ in range(_WARM_UPS - 1 if engine.caching else 0):
        if not isinstance(outcome, Answer) or outcome.usage.cached_tokens:
            break
        (repeated,) = engine.chat([request])
        if isinstance(repeated, Answer) and repeated.usage.cached_tokens:
            break
    return outcome


class _Beside:
    """The engine, asked what a server is asked beside its requests."""

    fullest = 0.0

    def __init__(self, model: VllmOffline) -> None:
        self._model = model

    async def facts(self, base: str) -> ServerFacts:  # noqa: ARG002 - there is one
        return await self._model._with_engine(lambda engine: engine.facts)

    async def counters(self, base: str) -> ServerCounters | None:  # noqa: ARG002
        return None

    async def token_ids(self, base: str, messages: Sequence[Message]) -> list[int] | None:  # noqa: ARG002
        return await self._model._with_engine(lambda engine: engine.token_ids(messages))
