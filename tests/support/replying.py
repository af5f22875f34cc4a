"""A chat model that answers by the whole request, and a lane to it: for tests of single stages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config_file import parse_config
from engine.distillation.templating import TaskContext
from engine.ports import FREE, Price
from engine.scheduler import Lane, Scheduler
from engine.types import Answer, ChatOutcome, Request
from tests.support.fakes import InMemoryJournal


@dataclass
class Replying:
    """A `ChatModel` that `reply` speaks for. `seen` are the requests, in the order of sending."""

    reply: Callable[[Request], ChatOutcome]
    latency_s: Callable[[Request], float] = lambda asked: 0.0
    name: str = "replying"
    max_batch: int = 1
    max_input_tokens: int = 100_000
    price: Price | None = FREE
    seen: list[Request] = field(default_factory=list)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        self.seen.extend(requests)
        await asyncio.sleep(max(map(self.latency_s, requests)))
        return [self.reply(asked) for asked in requests]

    async def aclose(self) -> None:
        pass


def lane_to(model: Replying) -> Lane[Request, Answer]:
    """A lane of its own; to be called in a running event loop."""
    return Scheduler(InMemoryJournal()).chat(model)


def is_second(asked: Request) -> bool:
    """Whether a request shows the model what was wrong with its first answer."""
    return len(asked.messages) == 4


def as_json(**fields: Any) -> Answer:
    return Answer(json.dumps(fields))


def config_for(labels: Sequence[str] | Mapping[str, str] = ("spam", "none"), **tables: Any) -> Config:
    """The smallest configuration, with some tables given."""
    given = list(labels) if not isinstance(labels, Mapping) else dict(labels)
    task = {"name": "mail", "description": "Is this mail spam?", "labels": given}
    return parse_config({"task": task, "data": {"file": "mail.csv", "split": "split"}, **tables}, base=Path())


def context_for(*labels: str) -> TaskContext:
    return TaskContext(config_for(labels or ("spam", "none")))
