"""What every client is given: requests like those of teacher extraction, made as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from engine.types import Message, Request

_RULE = "Read the message and decide what it is about; say why in one sentence before you name the label. "
SYSTEM = Message("system", _RULE * 24)  # with the row below: about 600 tokens
MAX_OUTPUT_TOKENS = 64
MODEL = "fake"


@dataclass(frozen=True, slots=True)
class Task:
    """One job of one client. `requests` None: as many as go into `seconds`.

    `folder` is where a client that keeps answers keeps them, `output` the file for all answers in the end;
    `tuned` asks for the settings of long jobs. The rest is for this project's own client: its limits,
    `adaptive` for none at all, `throttle` for asyncio-throttle in place of its own pace.
    """

    client: str
    url: str
    requests: int | None
    concurrency: int
    folder: str
    tuned: bool = False
    seconds: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_s: float | None = None
    adaptive: bool = False
    throttle: bool = False
    output: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the command line of the client's process."""
        return asdict(self)


def row_text(number: int) -> str:
    """The text of one row: its number makes it different from all others."""
    return f"message {number}: " + f"the parcel of order {number} has not arrived and nobody answers. " * 6


def rows(task: Task) -> Iterator[int]:
    """The numbers of a task's rows."""
    number = 0
    while task.requests is None or number < task.requests:
        yield number
        number += 1


def request(number: int) -> Request:
    """The same row for this project's own scheduler."""
    return Request(str(number), (SYSTEM, Message("user", row_text(number))), MAX_OUTPUT_TOKENS)


def messages(number: int) -> list[dict[str, str]]:
    """The same row as OpenAI's API wants it."""
    return [
        {"role": "system", "content": SYSTEM.content},
        {"role": "user", "content": row_text(number)},
    ]
