"""A compilation that kills itself: `python -m tests.support.killable CONFIG RUN LOG PHASE COUNT`.

Every request that a model has answered is appended to LOG, one line each, by a write that survives SIGKILL.
The COUNT-th answer of PHASE (`extraction`, `embedding`, `synthesis`, `resolution`, `student`) is followed
by SIGKILL, before the engine has seen it; PHASE `clustering` or `verdict` kills when that work begins;
`none` runs to the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import adapters
from engine.config import Config
from engine.distillation.pipeline import compile_prompt
from engine.events import Event, StageStarted
from engine.ports import ChatModel, Embedder, Models, Price, Within
from engine.store import RunDirectory
from engine.types import ChatOutcome, EmbedOutcome, EmbedRequest, Request, Sample


@dataclass
class Reaper:
    """Counts answers and kills the process when it is time."""

    log: int
    phase: str
    left: int

    def answered(self, phase: str, keys: Sequence[str]) -> None:
        os.write(self.log, "".join(f"{phase} {key}\n" for key in keys).encode())
        if phase == self.phase:
            self.left -= len(keys)
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def event(self, event: Event) -> None:
        stages = {"clustering": "clustering", "verdict": "evaluation"}
        if isinstance(event, StageStarted) and event.stage == stages.get(self.phase):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Mortal:
    """A chat model that reports what it answered."""

    inner: ChatModel
    reaper: Reaper
    max_batch: int = 8

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def max_input_tokens(self) -> int:
        return self.inner.max_input_tokens

    @property
    def price(self) -> Price | None:
        return self.inner.price

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        outcomes = await self.inner.complete(requests)
        for request in requests:
            phase = request.schema.name if request.schema else "student"
            self.reaper.answered(phase, [request.digest(self.name).hex()])
        return outcomes

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class MortalEmbedder:
    """An embedder that reports what it embedded."""

    inner: Embedder
    reaper: Reaper
    max_batch: int = 8

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def price(self) -> Price | None:
        return self.inner.price

    @property
    def within(self) -> Within:
        return self.inner.within

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        outcomes = await self.inner.embed(texts)
        for text in texts:
            self.reaper.answered("embedding", [EmbedRequest("", text).digest(self.name).hex()])
        return outcomes

    async def aclose(self) -> None:
        await self.inner.aclose()


def main(config: str, run: str, log: str, phase: str, count: str) -> None:
    reaper = Reaper(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), phase, int(count))

    def models(settings: Config, train: Sequence[Sample], directory: RunDirectory) -> Models:
        made = adapters.open_models(settings, train, directory)
        writer = Mortal(made.teacher, reaper)
        return replace(
            made,
            teacher=writer,
            synthesizer=writer,
            resolver=writer,
            embedder=MortalEmbedder(made.embedder, reaper),
            student=Mortal(made.student, reaper),
        )

    asyncio.run(compile_prompt(Path(config), models, run=run, emit=reaper.event))


if __name__ == "__main__":
    main(*sys.argv[1:])
