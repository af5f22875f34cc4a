"""Answers of the keyword-rule models, so that a whole pipeline can run over HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import orjson

from adapters.local import LocalEmbedder, LocalStudent, LocalTeacher, load_local
from bench.fake_server.wire import CallError, ChatCall, EmbedCall, phase_of
from engine.types import Answer, AttemptFailure, FinishReason, FloatVector, Request, Usage

AskedT = TypeVar("AskedT")
GivenT = TypeVar("GivenT")

_BATCH = 16  # enough to spare most thread switches, few enough that no answer waits long for its neighbours
_CHARACTERS_PER_TOKEN = 4  # by which the local models count


class LocalAnswers:
    """Served by name: a model whose name contains `teacher`, `student` or `embedder`."""

    def __init__(self, fit: Path) -> None:
        """Raises `CorruptStoreError` where the file is not a fit of the local models."""
        known = load_local(fit)
        self._dim = known.dim
        self._chat = {
            "teacher": _Batched(LocalTeacher(known).complete),
            "student": _Batched(LocalStudent().complete),
        }
        self._embed = LocalEmbedder(known).embed

    async def aclose(self) -> None:
        """Stop answering."""
        for model in self._chat.values():
            await model.aclose()

    async def chat(self, call: ChatCall) -> Answer:
        """The model's answer, cut at the request's limit. Raises `CallError`."""
        role = next((name for name in self._chat if name in call.model), None)
        if role is None:
            raise CallError(404, f"The model {call.model!r} does not exist; known: teacher, student.")
        outcome = await self._chat[role].ask(_for_local(call.request))
        if isinstance(outcome, AttemptFailure):
            raise CallError(400, f"{outcome.reason}: {outcome.detail}")
        if call.choice_field is not None:
            outcome = replace(outcome, text=orjson.dumps({call.choice_field: outcome.text}).decode())
        return cut(outcome, call.request.max_output_tokens)

    async def embed(self, call: EmbedCall) -> tuple[list[FloatVector], Usage]:
        """Unit vectors, filled up with zeros to the dimensions asked for. Raises `CallError`."""
        if "embedder" not in call.model:
            raise CallError(404, f"The model {call.model!r} does not exist; known: embedder.")
        size = call.dimensions or self._dim
        if size < self._dim:
            raise CallError(400, f"This embedder has at least {self._dim} dimensions.", "dimensions")
        vectors: list[FloatVector] = []
        tokens = 0
        for outcome in await self._embed(call.texts):
            if isinstance(outcome, AttemptFailure):
                raise CallError(400, f"{outcome.reason}: {outcome.detail}")
            vectors.append(np.pad(outcome.vector, (0, size - self._dim)))
            tokens += outcome.usage.input_tokens
        return vectors, Usage(tokens)


def cut(answer: Answer, max_tokens: int) -> Answer:
    """The answer as a server leaves it that stops at `max_tokens`."""
    if answer.usage.output_tokens <= max_tokens:
        return answer
    return replace(
        answer,
        text=answer.text[: max_tokens * _CHARACTERS_PER_TOKEN],
        usage=replace(answer.usage, output_tokens=max_tokens),
        finish_reason=FinishReason.LENGTH,
    )


def _for_local(request: Request) -> Request:
    """The schema under the name that the local teacher knows: Gemini's schemas have a title instead."""
    if request.schema is None:
        return request
    return replace(request, schema=replace(request.schema, name=phase_of(request.schema)))


class _Batched(Generic[AskedT, GivenT]):
    """Asks a batch function for whatever has come together while it was busy."""

    def __init__(self, ask_all: Callable[[Sequence[AskedT]], Awaitable[Sequence[GivenT]]]) -> None:
        self._ask_all = ask_all
        self._waiting: deque[tuple[AskedT, asyncio.Future[GivenT]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, asked: AskedT) -> GivenT:
        """The answer to one request. Raises what the batch function raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[GivenT] = loop.create_future()
        self._waiting.append((asked, future))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return await future

    async def aclose(self) -> None:
        """Drop what waits."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        try:
            while self._waiting:
                # a future is done already where its client has hung up
                batch = [pair for pair in self._take() if not pair[1].done()]
                if batch:
                    await self._answer(batch)
        finally:
            self._worker = None

    def _take(self) -> list[tuple[AskedT, asyncio.Future[GivenT]]]:
        return [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]

    async def _answer(self, batch: list[tuple[AskedT, asyncio.Future[GivenT]]]) -> None:
        try:
            given = await self._ask_all([asked for asked, _ in batch])
        except Exception as exc:  # noqa: BLE001 - it is raised where the answer is waited for
            for _, future in batch:
                if not future.done():
                    future.set_exception(exc)
            return
        for (_, future), outcome in zip(batch, given, strict=True):
            if not future.done():
                future.set_result(outcome)
