"""What the tests of bulk classification share: a student that follows its text, and reading `out` back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from engine.fences import read_one
from engine.ports import FREE, Price
from engine.prompt import CompiledPrompt
from engine.types import Answer, AttemptFailure, ChatOutcome, FinishReason, Request, Usage

LABELS = ("fine", "rude", "spam")
PROMPT = CompiledPrompt("Say how a comment reads.", dict.fromkeys(LABELS, ""))
MALFORMED = "malformed"


def expected(text: str) -> str:
    """The label that the student gives a text, or the reason why it gives none."""
    if text.startswith("refuse"):
        # several reasons: a job whose first answers all fail alike is stopped
        return f"refused-{_number(text) % 7}"
    if text.startswith("babble"):
        return MALFORMED
    return LABELS[_number(text) % len(LABELS)]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")


@dataclass
class Student:
    """A `ChatModel` whose answer depends on the text alone, its timing on `seed`.

    `seen` are the texts in the order of asking; `log` is a file that gets a line for each. `on_request` is
    called with the text, and may raise or return something to wait for.
    """

    seed: int = 0
    max_batch: int = 1
    price: Price | None = FREE
    name: str = "student"
    max_input_tokens: int = 1_000_000
    log: Path | None = None
    on_request: Callable[[str], Any] = lambda text: None
    seen: list[str] = field(default_factory=list)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        texts = [read_one(asked.messages[-1].content, "input").text for asked in requests]
        self.seen.extend(texts)
        if self.log is not None:
            with self.log.open("ab") as log:
                log.write(b"".join(f"{_number(text)}\n".encode() for text in texts))
        for text in texts:
            if (wait := self.on_request(text)) is not None:
                await wait
        for _ in range((_number(texts[0]) + self.seed) % 7):
            await asyncio.sleep(0)
        return [self._answer(text) for text in texts]

    def _answer(self, text: str) -> ChatOutcome:
        verdict = expected(text)
        if verdict.startswith("refused"):
            return AttemptFailure(verdict, "half a pair: \ud800")
        if verdict == MALFORMED:
            cut = FinishReason.LENGTH if _number(text) % 2 else FinishReason.STOP
            return Answer("none of them", Usage(7, 2), cut)
        number = _number(text)
        if number % 5 == 0:  # some servers tell no probabilities
            return Answer(verdict, Usage(7, 1))
        share = 0.5 + (number % 49) / 100
        rest = (1 - share) / (len(LABELS) - 1)
        logprobs = {label: math.log(share if label == verdict else rest) for label in LABELS}
        return Answer(verdict, Usage(7, 1), label_logprobs=logprobs)

    async def aclose(self) -> None:
        """Nothing is held."""


def write_ndjson(path: Path, texts: Sequence[object], first_id: int = 0) -> Path:
    """One object per text, with ids a0, a1, …; bytes are written as they are, as a broken line."""
    lines = [
        text if isinstance(text, bytes) else json.dumps({"id": f"a{first_id + index}", "text": text}).encode()
        for index, text in enumerate(texts)
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_out(out: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All labelled rows and all failures, in the order of the files."""
    parts = [pl.read_parquet(path) for path in sorted(out.glob("part-*.parquet"))]
    failures = [pl.read_parquet(path) for path in sorted(out.glob("failures-*.parquet"))]
    return pl.concat(parts), pl.concat(failures) if failures else pl.DataFrame({"row": [], "reason": []})


def files_of(out: Path) -> dict[str, bytes]:
    """Every file of a finished classification but the lock, with its bytes."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.lock"}


def rows_on_disk(out: Path) -> set[int]:
    """Rows that a kill would not cost, read from the files alone."""
    parts = json.loads((out / "manifest.json").read_bytes())["parts"]
    rows = {part["first_row"] + n for part in parts for n in range(part["rows"])}
    finished = {part["number"] for part in parts}
    for path in out.glob("open-*.log"):
        if int(path.stem.removeprefix("open-")) in finished:
            continue
        data, at = path.read_bytes(), 0
        while at < len(data):
            rows.add(int.from_bytes(data[at : at + 8], "little"))
            at += 17 + int.from_bytes(data[at + 9 : at + 13], "little")
    return rows


def environment() -> dict[str, str]:
    """The environment of a child process that imports the engine and these tests."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root}
