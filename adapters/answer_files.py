"""A model whose answers come in files: `answer-files:DIR`, or `answer-files:NAME@DIR`.

Requests are written to `requests-NNN.jsonl` in OpenAI's batch format; whoever answers them, by whatever means
(a provider's batch jobs, `vllm run-batch`, a script), puts `answers-*.jsonl` beside them.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import orjson

from adapters.answer_folder import AnswerFolder, LineReader, shown
from adapters.answer_lines import RequestLines, read_line
from engine.errors import ModelError
from engine.ports import FREE, Price, Submission
from engine.store.rundir import sync_folder
from engine.types import NO_RETRY, Answer, AttemptFailure, ChatOutcome, Request

MAX_REQUESTS = 50_000
MAX_FILE_BYTES = 100_000_000
"""What one file holds at most, as OpenAI takes them: https://platform.openai.com/docs/guides/batch."""
MAX_TRIES = 3
"""After so many requests files without a usable answer a request is given up."""
DEFAULT_MAX_INPUT_TOKENS = 32_000

_LOCK = ".lock"
_SHOWN_FILES = 3

T = TypeVar("T")


class AnswerFiles:
    """A `BatchModel` in a folder; a requests file is a job.

    - Of several usable answers to one request the first counts, by file name and place.
    - A requests file is *open* until one of its requests has a line among the answers; while it is open,
      nothing in it is asked again. After that, what it lacks goes into the next file. A request that
      `MAX_TRIES` files have brought no usable answer to is given up as `unanswered`.
    - Several processes may use one folder: a lock lets one of them write at a time, and what one has asked
      the others do not ask again.
    - Nothing is written before the first `submit`. The folder is then made with mode 0700, files 0600.

    Nobody is billed here: whoever answers pays.
    """

    price: Price | None = FREE

    def __init__(
        self, folder: Path, *, name: str, model: str | None = None, max_input_tokens: int | None = None
    ) -> None:
        """`name` is the model's own, for cache keys; `model` the one in each request's body, None: there is
        none (vLLM then takes the model that it serves; OpenAI wants a name).
        """
        self.name = name
        self.max_input_tokens = max_input_tokens or DEFAULT_MAX_INPUT_TOKENS
        self._model = model
        self._folder = AnswerFolder(folder)
        self._mutex = threading.Lock()

    @property
    def remarks(self) -> Sequence[str]:
        """See `engine.ports.BatchModel`."""
        return tuple(self._folder.remarks)

    async def submit(self, requests: Sequence[Request]) -> Submission:
        """See `engine.ports.BatchModel`. Raises `ModelError` where the folder cannot be written."""
        return await self._run(lambda: self._submit(requests))

    async def poll(self, job: str) -> Literal["pending", "done", "failed"]:
        """`job` is the name of a requests file; one that is not there (any more) has failed."""
        return await self._run(lambda: self._poll(job))

    async def collect(self, requests: Sequence[Request]) -> Mapping[bytes, ChatOutcome]:
        """See `engine.ports.BatchModel`."""
        return await self._run(lambda: self._collect(requests))

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(self._explained, work)

    def _explained(self, work: Callable[[], T]) -> T:
        try:
            with self._mutex:
                return work()
        except OSError as exc:
            where = shown(Path(exc.filename) if exc.filename else self._folder.path)
            raise ModelError(
                f"{self.name}: {where}: {exc.strerror or type(exc).__name__}; put that right and run the "
                "same command again (what is answered is saved)"
            ) from exc

    # --- answers ----------------------------------------------------------------------------------

    def _collect(self, requests: Sequence[Request]) -> dict[bytes, ChatOutcome]:
        folder = self._folder
        folder.refresh()
        found: dict[bytes, ChatOutcome] = {}
        with LineReader() as reader:
            for request in requests:
                key = request.digest(self.name)
                outcome = self._outcome(key, request, reader)
                if not isinstance(outcome, Answer) and not _is_final(outcome):
                    outcome = self._given_up(key, outcome, reader) or outcome
                if outcome is not None:
                    found[key] = outcome
        return found

    def _outcome(self, key: bytes, request: Request, reader: LineReader) -> ChatOutcome | None:
        """The first usable answer; without one a failure that is final, else the last one."""
        failure: AttemptFailure | None = None
        for document in self._folder.answers_to(key, reader):
            outcome = read_line(request, document)
            if isinstance(outcome, Answer):
                return outcome
            if not _is_final(failure):
                failure = outcome
        return failure

    def _given_up(self, key: bytes, last: AttemptFailure | None, reader: LineReader) -> AttemptFailure | None:
        tries = self._folder.asked_in(key)
        if len(tries) < MAX_TRIES or any(self._folder.is_open(number, reader) for number in tries):
            return None
        told = "" if last is None else f" (the last: {last.reason})"
        return AttemptFailure(
            "unanswered", f"{len(tries)} requests files brought no usable answer{told}", NO_RETRY
        )

    def _poll(self, job: str) -> Literal["pending", "done", "failed"]:
        folder = self._folder
        folder.refresh()
        with LineReader() as reader:
            for number, file in folder.requests.items():
                if file.path.name == job:
                    return "pending" if folder.is_open(number, reader) else "done"
        return "failed"

    # --- requests ---------------------------------------------------------------------------------

    def _submit(self, requests: Sequence[Request]) -> Submission:
        _make_folder(self._folder.path)
        with self._alone(), LineReader() as reader:
            folder = self._folder
            folder.refresh()
            pending = [number for number in folder.requests if folder.is_open(number, reader)]
            jobs: dict[int, None] = {}
            fresh: list[tuple[bytes, Request]] = []
            before = 0
            for request in requests:
                key = request.digest(self.name)
                asked_in = folder.asked_in(key)
                under_way = [number for number in asked_in if number in pending]
                if under_way:
                    jobs[under_way[-1]] = None
                elif isinstance(self._outcome(key, request, reader), Answer):  # it has come just now
                    jobs.update(dict.fromkeys(asked_in[-1:]))
                    continue
                else:
                    fresh.append((key, request))
                before += len(asked_in) > len(under_way)
            first = max(folder.requests, default=0) + 1
            jobs.update(dict.fromkeys(self._write(fresh, first, reader)))
            numbers = sorted(jobs)
            waiting = [number for number in numbers if number >= first or number in pending]
        names = [folder.requests_path(number).name for number in numbers]
        return Submission(names, before, _to_do(folder, waiting))

    def _write(
        self, fresh: Sequence[tuple[bytes, Request]], number: int, reader: LineReader
    ) -> Iterator[int]:
        """Write requests files from `number` on; each is there completely, and for good, or not at all."""
        folder = self._folder
        render = RequestLines(self._model, with_temperature=not folder.refuses_temperature)
        lines = iter(fresh)
        entry = next(lines, None)
        line = b"" if entry is None else render(*entry)
        while entry is not None:
            before: dict[str, str] = {}
            path = folder.requests_path(number)
            with _written(path) as write:
                count = size = 0
                while entry is not None:
                    write(line)
                    count, size = count + 1, size + len(line)
                    key = entry[0]
                    if trace := folder.trace(key, reader):
                        before[key.hex()] = trace
                    entry = next(lines, None)
                    line = b"" if entry is None else render(*entry)
                    if count == MAX_REQUESTS or size + len(line) > MAX_FILE_BYTES:
                        break
                # it has to be there first: without it, old answers would pass for new ones
                _write_before(folder.before_path(number), before)
            yield number
            number += 1

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from writing here; the operating system takes the lock from a killed one."""
        fd = os.open(self._folder.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _is_final(outcome: ChatOutcome | None) -> bool:
    return isinstance(outcome, AttemptFailure) and outcome.retry.kind == "no"


def _to_do(folder: AnswerFolder, numbers: Sequence[int]) -> str:
    asked = [shown(folder.requests_path(number)) for number in numbers]
    answered = [shown(folder.path / f"answers-{number:03d}.jsonl") for number in numbers]
    if len(numbers) > _SHOWN_FILES:
        return (
            f"have the {len(numbers)} files from {asked[0]} to {asked[-1]} answered (OpenAI's batch format), "
            f"each into the file of its number, {answered[0]} and so on"
        )
    return f"have {_listed(asked)} answered (OpenAI's batch format) into {_listed(answered)}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


@contextmanager
def _written(path: Path) -> Iterator[Callable[[bytes], object]]:
    """A file that takes its name once it is whole and on disk. The caller holds the folder's lock."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            yield file.write
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_before(path: Path, before: Mapping[str, str]) -> None:
    if before:
        with _written(path) as write:
            write(orjson.dumps(before))
    else:
        path.unlink(missing_ok=True)  # of a process that was killed before it wrote the requests


def _make_folder(path: Path) -> None:
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # whatever the umask took away
        sync_folder(folder.parent)
