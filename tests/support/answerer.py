"""Whoever answers requests files: the local models, and what the way back does to their answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from bench.fake_server.local import LocalAnswers
from bench.fake_server.wire_openai import OpenAIWire

WIRE = OpenAIWire()

Mess = Callable[[list[bytes], random.Random], bytes]
"""Lines of answers, without their ends -> the content of a file."""


def tidy(lines: list[bytes], rng: random.Random) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def messy(lines: list[bytes], rng: random.Random) -> bytes:
    """Shuffled, a tenth dropped, a tenth twice, some spoilt, some foreign, the last line torn.

    At least one line stays: a file without any line of its own answers nothing.
    """
    out = [lines[0]]
    for line in lines[1:]:
        fate = rng.random()
        if fate < 0.1:
            continue
        copies = 2 if rng.random() < 0.1 else 1
        if fate < 0.14:
            out.append(line.replace(b"{", b"(", 1))
        elif fate < 0.18:
            expired = {"custom_id": orjson.loads(line)["custom_id"], "error": {"code": "batch_expired"}}
            out += [orjson.dumps(expired)] * copies
        else:
            out += [line] * copies
    out += [b'{"custom_id":"%b","response":null}' % rng.randbytes(32).hex().encode() for _ in range(5)]
    out += [b"", b"not a line", b'{"custom_id": 7}']
    rng.shuffle(out)
    return b"\r\n".join([*out, lines[0][: len(lines[0]) // 2]])


class Answerer:
    """Answers every requests file of a folder that has no answers file yet.

    `mess` is done to the answers of every other file, so what is asked again comes back.
    `answered` holds, for each file, the ids that came back usable. `by_hand` may answer a body in place of
    the local models, with a text.
    """

    def __init__(
        self,
        folder: Path,
        fit: Path,
        mess: Mess = tidy,
        by_hand: Callable[[dict[str, Any]], str | None] = lambda body: None,
    ) -> None:
        self.folder = folder
        self.answered: list[set[str]] = []
        self.asked: list[list[str]] = []
        self._fit = fit
        self._mess = mess
        self._by_hand = by_hand
        self._rng = random.Random(7)

    def __call__(self) -> int:
        """How many requests were asked since the last call."""
        found = 0
        for number, path in enumerate(sorted(self.folder.glob("requests-*.jsonl")), start=1):
            target = path.with_name(path.name.replace("requests", "answers"))
            if target.exists():
                continue
            assert number == len(self.asked) + 1
            requests = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            lines = asyncio.run(self._answer(requests))
            content = (self._mess if number % 2 else tidy)(lines, self._rng)
            target.write_bytes(content)
            self.asked.append([request["custom_id"] for request in requests])
            self.answered.append(set(_usable(content)))
            found += len(requests)
        return found

    async def _answer(self, requests: list[dict[str, Any]]) -> list[bytes]:
        local = LocalAnswers(self._fit)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(local, request)) for request in requests]
        finally:
            await local.aclose()
        return [task.result() for task in tasks]

    async def _one(self, local: LocalAnswers, request: dict[str, Any]) -> bytes:
        call = WIRE.read_chat("local", orjson.dumps(request["body"]))
        written = self._by_hand(request["body"])
        if written is None:
            role = "student" if call.request.choices else "teacher"
            answer = await local.chat(replace(call, model=role))
            body = orjson.loads(WIRE.chat(role, answer, "1"))
        else:
            message = {"role": "assistant", "content": written}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return orjson.dumps(
            {
                "id": f"batch_req_{self._rng.random()}",
                "custom_id": request["custom_id"],
                "response": {"status_code": 200, "request_id": "x", "body": body},
                "error": None,
            }
        )


def _usable(content: bytes) -> Iterator[str]:
    for line in content.splitlines():
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(document, dict) and document.get("response"):
            yield document["custom_id"]
