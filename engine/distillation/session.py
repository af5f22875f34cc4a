"""What compilation and evaluation both work in: a locked run directory, a journal, a scheduler, lanes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import Config, ModelConfig
from engine.events import EventSink
from engine.ports import AnyChatModel, BatchModel, Embedder
from engine.scheduler import Budget, ChatLane, Lane, Limits, Scheduler
from engine.stopping import StopSignal
from engine.store import ResponseStore, RunDirectory, RunJournal
from engine.types import Embedding, EmbedRequest


@dataclass
class Session:
    """One process at work in one run directory."""

    run: RunDirectory
    config: Config
    scheduler: Scheduler
    emit: EventSink
    stop: StopSignal
    retry_failed: bool = False
    _chat: list[tuple[AnyChatModel, ModelConfig, ChatLane]] = field(default_factory=list)

    def chat(self, model: AnyChatModel, settings: ModelConfig) -> ChatLane:
        """The lane of a model in its role; roles that share a model and its settings share its limits."""
        for known, limits, lane in self._chat:
            if known is model and limits == settings:
                return lane
        lane = self._lane(model, settings)
        self._chat.append((model, settings, lane))
        return lane

    def _lane(self, model: AnyChatModel, settings: ModelConfig) -> ChatLane:
        # the one place that knows of two kinds of model
        if isinstance(model, BatchModel):
            return self.scheduler.batch(model, retry_failed=self.retry_failed)
        return self.scheduler.chat(model, limits_of(settings))

    def embed(self, embedder: Embedder, settings: ModelConfig) -> Lane[EmbedRequest, Embedding]:
        """The lane of the embedder."""
        return self.scheduler.embed(embedder, limits_of(settings))


def limits_of(settings: ModelConfig) -> Limits:
    """The limits that a model's configuration sets."""
    return Limits(
        concurrency=settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        timeout_s=settings.timeout_s,
    )


def cache_folder(config: Config, run: Path) -> Path:
    """Where the response cache lies: beside the runs, shared by them, unless the configuration says
    otherwise.
    """
    if config.run.cache is not None:
        return config.base / config.run.cache
    return run.resolve().parent / ".pld-cache"


@asynccontextmanager
async def open_session(
    run: RunDirectory,
    config: Config,
    *,
    emit: EventSink,
    stop: StopSignal,
    max_cost_usd: float | None,
    retry_failed: bool,
) -> AsyncIterator[Session]:
    """Open the journal and a scheduler for a run directory that the caller has locked.

    The cap on cost is the run's: what earlier calls spent in this directory counts.
    """
    store = ResponseStore(cache_folder(config, run.path))
    try:
        journal = RunJournal(store, run.run_id, retry_failed=retry_failed)
        budget = None
        if max_cost_usd is not None:
            budget = Budget(max_cost_usd, spent_usd=await journal.spent_usd())
        scheduler = Scheduler(
            journal,
            emit=emit,
            budget=budget,
            seed=config.run.seed,
        )
        stop.on_request(scheduler.request_stop)
        yield Session(run, config, scheduler, emit, stop, retry_failed)
    finally:
        store.close()


async def close_all(models: Sequence[AnyChatModel | Embedder]) -> None:
    """Close each model once, also where roles share one."""
    closed: list[object] = []
    for model in models:
        if not any(model is one for one in closed):
            closed.append(model)
            await model.aclose()
