"""What is answered of parts that are not complete: with it, `kill -9` costs a few hundred rows, not parts (C2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import orjson

from engine.bulk.parts import Entry
from engine.errors import RunError
from engine.ports import Clock
from engine.scheduler.clock import SystemClock
from engine.scheduler.shielded import finish

MAX_UNCOMMITTED = 256
"""So many answers wait for the disk at most."""

_MAX_WAIT_S = 1.0
_PREFIX = "open-"


class Journal:
    """One file for each open part, `open-00003.ndjson`, with a line for each answered row.

    `append` keeps in memory, `commit` on disk; `committed(rows, failed)` is called for what has got there.
    The caller holds the directory's lock. A line that a kill cut short is dropped by `load`.
    """

    def __init__(self, folder: Path, committed: Callable[[int, int], None], clock: Clock | None = None) -> None:
        self._folder = folder
        self._committed = committed
        self._clock = clock or SystemClock()
        self._lines: dict[int, list[bytes]] = {}
        self._rows = 0
        self._failed = 0
        self._made: set[int] = set()
        self._last = self._clock.monotonic()
        self._lock = asyncio.Lock()

    def parts(self) -> set[int]:
        """The numbers of the parts that have a file."""
        names = (path.stem.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*.ndjson"))
        return {int(name) for name in names if name.isdecimal()}

    def load(self, number: int) -> list[Entry]:
        """The entries of a part, and none where it has no file. Cuts off what is not a whole line.

        Raises `RunError` where the file cannot be read.
        """
        path = self._path(number)
        entries: list[Entry] = []
        good = 0
        try:
            data = path.read_bytes()
            for line in data.splitlines(keepends=True):
                try:
                    entries.append(_entry(line))
                except ValueError:
                    break
                good += len(line)
            if good < len(data):
                os.truncate(path, good)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise RunError(f"{path}: cannot be read: {exc.strerror}") from exc
        self._made.add(number)
        return entries

    def append(self, number: int, entry: Entry) -> None:
        """Add one entry of a part; on disk after the next `commit`."""
        self._lines.setdefault(number, []).append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self._rows += 1
        self._failed += len(entry) == 3

    @property
    def due(self) -> bool:
        """Whether enough has come together for a commit, or the last one is long ago."""
        return self._rows >= MAX_UNCOMMITTED or self._clock.monotonic() - self._last >= _MAX_WAIT_S

    async def commit(self) -> None:
        """Bring everything appended so far to the disk. Raises `RunError` where it cannot be written."""
        async with self._lock:
            await finish(self._commit())

    async def _commit(self) -> None:
        lines, rows, failed = self._lines, self._rows, self._failed
        self._lines, self._rows, self._failed = {}, 0, 0
        if lines:
            await asyncio.to_thread(self._write, lines)
            self._committed(rows, failed)
        self._last = self._clock.monotonic()

    def _write(self, lines: dict[int, list[bytes]]) -> None:
        for number in sorted(lines):
            path = self._path(number)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(b"".join(lines[number]))
                    file.flush()
                    os.fsync(fd)
                if number not in self._made:
                    self._sync_folder()
                    self._made.add(number)
            except OSError as exc:
                raise RunError(f"{path}: cannot be written: {exc.strerror}; what is saved is complete") from exc

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _path(self, number: int) -> Path:
        return self._folder / file_name(number)


def file_name(number: int) -> str:
    """The journal file of a part."""
    return f"{_PREFIX}{number:05d}.ndjson"


def _entry(line: bytes) -> Entry:
    """One line. Raises `ValueError` where it is not whole."""
    if not line.endswith(b"\n"):
        raise ValueError("cut short")
    match orjson.loads(line):
        case [int(index), str(reason), str(detail)]:
            return (index, reason, detail)
        case [int(index), int(label), float() | None as confidence, float() | None as margin]:
            return (index, label, confidence, margin)
    raise ValueError("not an entry")
