"""The response cache: one SQLite file, shared by all runs and safe for several processes.

Answers are shared by content (C3); failures belong to the run that gave them up. A commit returns after
SQLite has synced its write-ahead log (`synchronous=FULL`), so what it was given survives `kill -9` and a
power cut (C2). Reads and writes have a thread and a connection each: a lookup never waits for a sync.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from engine.errors import CorruptStoreError, RunError
from engine.ports import Record
from engine.types import Failure

FILE_NAME = "responses.sqlite"
SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 60.0
_KEYS_PER_QUERY = 500  # every SQLite build takes 999 parameters

_USAGE = "input_tokens, output_tokens, thinking_tokens, cached_tokens, estimated, cost_usd, created_s"
_USAGE_TYPES = """
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, thinking_tokens INTEGER NOT NULL,
    cached_tokens INTEGER, estimated INTEGER NOT NULL, cost_usd REAL NOT NULL, created_s REAL NOT NULL
"""
_SCHEMA = f"""
CREATE TABLE responses (
    key BLOB PRIMARY KEY, payload BLOB NOT NULL, run_id TEXT NOT NULL, request_id TEXT NOT NULL,
    stage TEXT NOT NULL, model TEXT NOT NULL, {_USAGE_TYPES}
);
CREATE TABLE failures (
    run_id TEXT NOT NULL, key BLOB NOT NULL, request_id TEXT NOT NULL, stage TEXT NOT NULL,
    model TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, {_USAGE_TYPES}, PRIMARY KEY (run_id, key)
);
CREATE TABLE spending (run_id TEXT PRIMARY KEY, cost_usd REAL NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""
# The first answer stays: other runs may have built on it.
_PUT_ANSWER = f"""
INSERT INTO responses (key, payload, run_id, request_id, stage, model, {_USAGE})
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING
"""  # noqa: S608 - the names are constants of this module
_PUT_FAILURE = f"""
INSERT OR REPLACE INTO failures (key, run_id, request_id, stage, model, reason, detail, {_USAGE})
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608
_SPEND = """
INSERT INTO spending (run_id, cost_usd) VALUES (?, ?)
ON CONFLICT (run_id) DO UPDATE SET cost_usd = cost_usd + excluded.cost_usd
"""

_T = TypeVar("_T")


class ResponseStore:
    """`ResponseCache` in `folder/responses.sqlite`; created, private to the user, where it is missing.

    Opening raises `CorruptStoreError` for a damaged file and `RunError` for one that cannot be used. Close it
    with `close`, or use it as a context manager.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / FILE_NAME
        _make_private(self.path)
        self._writer = _Worker(self.path, "pld-cache-write")
        try:
            self._reader = _Worker(self.path, "pld-cache-read")
        except BaseException:
            self._writer.close()
            raise

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being written and let go of the file. Calling it twice is harmless."""
        self._writer.close()
        self._reader.close()

    async def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The payloads of those keys that are known."""
        return await self._reader.run(lambda db: dict(_select_answers(db, keys)))

    async def lookup(self, keys: Sequence[bytes], run_id: str | None) -> Mapping[bytes, bytes | Failure]:
        """The payloads of those keys that are known, and the failures of `run_id` (None: no failures)."""

        def read(db: sqlite3.Connection) -> dict[bytes, bytes | Failure]:
            found: dict[bytes, bytes | Failure] = {}
            if run_id is not None:
                found.update(_select_failures(db, keys, run_id))
            found.update(_select_answers(db, keys))  # last: an answer counts, whatever failed before or after
            return found

        return await self._reader.run(read)

    async def commit(self, records: Sequence[Record], run_id: str) -> None:
        """Keep all `records` in one transaction; returns when they are on disk."""
        if records:
            await self._writer.run(lambda db: _insert(db, records, run_id))

    async def spent_usd(self, run_id: str) -> float:
        """What this run has paid so far for all outcomes it committed, in US dollars."""

        def read(db: sqlite3.Connection) -> float:
            row = db.execute("SELECT cost_usd FROM spending WHERE run_id = ?", (run_id,)).fetchone()
            return float(row[0]) if row else 0.0

        return await self._reader.run(read)


class RunJournal:
    """`Journal` of one run over a shared `ResponseStore`.

    With `retry_failed` no failure is reported, so that each is asked again.
    """

    def __init__(self, store: ResponseStore, run_id: str, *, retry_failed: bool = False) -> None:
        self._store = store
        self._run_id = run_id
        self._retry_failed = retry_failed

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | Failure]:
        """What is known of these keys: payloads, and failures this run has already given up."""
        return await self._store.lookup(keys, None if self._retry_failed else self._run_id)

    async def commit(self, records: Sequence[Record]) -> None:
        """Keep all records or raise; returns when they are on disk."""
        await self._store.commit(records, self._run_id)

    async def spent_usd(self) -> float:
        """What this run has paid so far, in US dollars: a resumed run's budget starts from it."""
        return await self._store.spent_usd(self._run_id)


class _Worker:
    """One thread with one connection: SQLite work off the event loop, in order."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        with _explained(path):
            self._db = _connect(path)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, work)

    def _call(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with _explained(self._path):
            return work(self._db)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        self._db.close()


def _make_private(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of the database
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as exc:
        raise RunError(f"{path}: the response cache cannot be opened: {exc.strerror}") from exc


def _connect(path: Path) -> sqlite3.Connection:
    # each connection is used by one thread at a time: its worker's, after this one opened it
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if _version(db) == 0:
            _create(db)
        _check_version(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    if (version := _version(db)) != SCHEMA_VERSION:
        raise RunError(
            f"{path}: the response cache has format {version}, this version of pld uses {SCHEMA_VERSION}; "
            "name another cache folder"
        )
    db.execute("SELECT 1 FROM responses LIMIT 1").fetchone()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _create(db: sqlite3.Connection) -> None:
    with _transaction(db):
        if _version(db) == 0:  # another process may have been first
            for statement in _SCHEMA.split(";"):
                db.execute(statement)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE: a transaction that turns from reading to writing cannot wait for another writer
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:  # locked, disk full, no permission: the file itself is sound
        # SQLite calls many a full disk (a quota, a limit on files) an I/O error
        full = exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        advice = "; make room if the disk is full, and run the same command again" if full else ""
        raise RunError(f"{path}: the response cache cannot be used: {exc}{advice}") from exc
    except sqlite3.DatabaseError as exc:
        raise CorruptStoreError(
            f"{path}: the response cache is damaged ({exc}); move it away and run again "
            "(its answers will be asked for again)"
        ) from exc


def _insert(db: sqlite3.Connection, records: Sequence[Record], run_id: str) -> None:
    answers, failures = [], []
    now = time.time()
    for r in records:
        u = r.usage
        cost = (
            u.input_tokens,
            u.output_tokens,
            u.thinking_tokens,
            u.cached_tokens,
            u.estimated,
            r.cost_usd,
            now,
        )
        origin = (_storable(r.request_id), r.stage, r.model)
        if r.payload is not None:
            answers.append((r.key, r.payload, run_id, *origin, *cost))
        elif r.failure is not None:
            why = (_storable(r.failure.reason), _storable(r.failure.detail))
            failures.append((r.key, run_id, *origin, *why, *cost))
        else:
            raise ValueError(f"the record of {r.request_id!r} holds neither an answer nor a failure")
    with _transaction(db):
        db.executemany(_PUT_ANSWER, answers)
        db.executemany(_PUT_FAILURE, failures)
        if spent := sum(r.cost_usd for r in records):
            db.execute(_SPEND, (run_id, spent))


def _storable(text: str) -> str:
    # half of a surrogate pair, which UTF-8 and so SQLite cannot carry, must not cost the whole commit
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _select_answers(db: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for part in _parts(keys):
        marks = ",".join("?" * len(part))
        yield from db.execute(f"SELECT key, payload FROM responses WHERE key IN ({marks})", part)  # noqa: S608


def _select_failures(
    db: sqlite3.Connection, keys: Sequence[bytes], run_id: str
) -> Iterator[tuple[bytes, Failure]]:
    for part in _parts(keys):
        marks = ",".join("?" * len(part))
        query = f"SELECT key, request_id, reason, detail FROM failures WHERE run_id = ? AND key IN ({marks})"  # noqa: S608
        for key, request_id, reason, detail in db.execute(query, (run_id, *part)):
            yield key, Failure(request_id, reason, detail)


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[start : start + _KEYS_PER_QUERY]
