"""Ways to keep answers that the response cache is measured against; see `bench.journals`."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar
from zlib import crc32

from engine.ports import Record
from engine.store import ResponseStore, RunJournal
from engine.types import Failure

_ENTRY = struct.Struct("<32sII")
_INDEX_AT = 8192

_T = TypeVar("_T")


class Kept(Protocol):
    """What is measured of a journal. Each is opened with the folder that it may use."""

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | Failure]: ...

    async def commit(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None: ...


class Nothing:
    """Keeps nothing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:  # noqa: ARG002
        return {}

    async def commit(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None: ...


class _Threaded(ABC):
    """Work in one thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._executor = ThreadPoolExecutor(1)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return await self._run(lambda: self._find(keys))

    async def commit(self, records: Sequence[Record]) -> None:
        await self._run(lambda: self._keep(records))

    @abstractmethod
    def _find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]: ...

    @abstractmethod
    def _keep(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None:
        self._executor.shutdown()


class Log(_Threaded):
    """A log with checksums, one write and one sync per group; nothing can be found in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._fd = os.open(folder / "log", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:  # noqa: ARG002
        return {}

    def _keep(self, records: Sequence[Record]) -> None:
        os.write(self._fd, b"".join(chain.from_iterable(map(_entry, records))))
        os.fdatasync(self._fd)

    def close(self) -> None:
        super().close()
        os.close(self._fd)


class IndexedLog(Log):
    """The log, with its keys in a dictionary until thousands have gathered, and then in SQLite.

    For one process, and without what it takes to mend the log and to make the index anew.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._end = os.fstat(self._fd).st_size
        self._recent: dict[bytes, int] = {}
        self._db = sqlite3.connect(folder / "index", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",  # it can be made anew
            "PRAGMA cache_size = -32000",
            "CREATE TABLE IF NOT EXISTS places (tail INTEGER, place INTEGER, PRIMARY KEY (tail, place))"
            " WITHOUT ROWID",
        ):
            self._db.execute(statement)

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        recent = self._recent
        places = [recent[key] for key in keys if key in recent]
        query = f"SELECT group_concat(place) FROM places WHERE tail IN ({','.join('?' * len(keys))})"  # noqa: S608
        if text := self._db.execute(query, [_tail(key) for key in keys]).fetchone()[0]:
            places += map(int, text.split(","))
        found = {}
        for place in places:
            entry = os.pread(self._fd, place & 0xFFFFFF, place >> 24)
            key, checksum, _ = _ENTRY.unpack_from(entry)
            payload = entry[_ENTRY.size :]
            if crc32(payload, crc32(key)) != checksum:
                raise RuntimeError("the log is damaged")
            found[key] = payload
        return found

    def _keep(self, records: Sequence[Record]) -> None:
        super()._keep(records)
        for record in records:
            size = _ENTRY.size + len(record.payload or b"")
            self._recent.setdefault(record.key, self._end << 24 | size)
            self._end += size
        if len(self._recent) >= _INDEX_AT:
            self._index()

    def _index(self) -> None:
        places = sorted([(_tail(key), place) for key, place in self._recent.items()])
        self._db.execute("BEGIN")
        for start in range(0, len(places), 450):
            part = places[start : start + 450]
            self._db.execute(
                f"INSERT OR IGNORE INTO places VALUES {','.join(['(?, ?)'] * len(part))}",  # noqa: S608
                list(chain.from_iterable(part)),
            )
        self._db.execute("COMMIT")
        self._recent = {}

    def close(self) -> None:
        super().close()
        self._index()
        self._db.close()


class Rows(_Threaded):
    """SQLite the usual way: a row per answer, its key the primary key, `executemany`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._reader = ThreadPoolExecutor(1)
        self._write, self._read = (
            sqlite3.connect(folder / "rows", isolation_level=None, check_same_thread=False) for _ in range(2)
        )
        self._write.execute("PRAGMA journal_mode = WAL")
        self._write.execute("PRAGMA synchronous = FULL")
        columns = "key BLOB PRIMARY KEY, payload BLOB, request_id TEXT, stage TEXT, model TEXT, cost_usd REAL"
        self._write.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns})")

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: self._find(keys))

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        query = f"SELECT key, payload FROM answers WHERE key IN ({','.join('?' * len(keys))})"  # noqa: S608
        return dict(self._read.execute(query, keys))

    def _keep(self, records: Sequence[Record]) -> None:
        self._write.execute("BEGIN IMMEDIATE")
        self._write.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
            [(r.key, r.payload, r.request_id, r.stage, r.model, r.cost_usd) for r in records],
        )
        self._write.execute("COMMIT")

    def close(self) -> None:
        super().close()
        self._reader.shutdown()
        self._write.close()
        self._read.close()


class Cache(RunJournal):
    """What the engine uses."""

    def __init__(self, folder: Path) -> None:
        self._opened = ResponseStore(folder)
        super().__init__(self._opened, "run")

    def close(self) -> None:
        self._opened.close()


def _entry(record: Record) -> tuple[bytes, bytes]:
    payload = record.payload or b""
    return _ENTRY.pack(record.key, crc32(payload, crc32(record.key)), len(payload)), payload


def _tail(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big", signed=True)
