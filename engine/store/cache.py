"""The response cache: one SQLite file, shared by all runs and safe for several processes.

Answers are shared by content (C3); failures belong to the run that gave them up. A commit returns after
SQLite has synced its write-ahead log (`synchronous=FULL`), so what it was given survives `kill -9` and a
power cut (C2); a log with a torn end is cut there by SQLite. Every answer has a checksum: a damaged file is
refused, never served.

SQLite alone, though a log of one's own looks cheaper: with answers appended in blocks and indexed later
(`engine.store.cache_answers`) it costs little more than such a log does once that can be searched, and far
less than a row per answer; recovery, locking and several processes are SQLite's. `bench/journals.py` measures
all of them. One thread and one connection do everything in order: a connection of its own for lookups would
have to read the index again after every commit of the other.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from engine.ports import Record
from engine.store.cache_answers import KEY_BYTES, Answers
from engine.store.cache_sql import connect, explained, insert_rows, marks, parts, transaction
from engine.types import Failure

FILE_NAME = "responses.sqlite"

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
        self._db = connect(self.path)
        self._answers = Answers(self._db)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pld-cache")

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being written and let go of the file. Calling it twice is harmless."""
        self._executor.shutdown(wait=True)
        self._db.close()

    async def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The payloads of those keys that are known."""
        return await self._run(lambda: self._answers.find(keys))

    async def lookup(self, keys: Sequence[bytes], run_id: str | None) -> Mapping[bytes, bytes | Failure]:
        """The payloads of those keys that are known, and the failures of `run_id` (None: no failures)."""

        def read() -> dict[bytes, bytes | Failure]:
            found: dict[bytes, bytes | Failure] = {}
            if run_id is not None:
                found.update(_find_failures(self._db, keys, run_id))
            found.update(self._answers.find(keys))  # last: an answer counts, whatever failed before or after
            return found

        return await self._run(read)

    async def commit(self, records: Sequence[Record], run_id: str) -> None:
        """Keep all `records` in one transaction; returns when they are on disk.

        Raises `ValueError` for a key that has not 32 bytes, and for a record that holds nothing.
        """
        if records:
            await self._run(lambda: self._commit(records, run_id))

    async def spent_usd(self, run_id: str) -> float:
        """What this run has paid so far for all outcomes it committed, in US dollars."""

        def read() -> float:
            row = self._db.execute("SELECT cost_usd FROM spending WHERE run_id = ?", (run_id,)).fetchone()
            return float(row[0]) if row else 0.0

        return await self._run(read)

    def _commit(self, records: Sequence[Record], run_id: str) -> None:
        answered: list[Record] = []
        failed: list[tuple[Record, Failure]] = []
        for record in records:
            if len(record.key) != KEY_BYTES:
                raise ValueError(f"the key of {record.request_id!r} has not {KEY_BYTES} bytes")
            if record.payload is not None:
                answered.append(record)
            elif record.failure is not None:
                failed.append((record, record.failure))
            else:
                raise ValueError(f"the record of {record.request_id!r} holds neither an answer nor a failure")
        try:
            with transaction(self._db):
                self._answers.add(answered, run_id)
                if failed:
                    _put_failures(self._db, failed, run_id)
                if spent := sum([record.cost_usd for record in records]):
                    self._db.execute(_SPEND, (run_id, spent))
        except BaseException:
            self._answers.forget()
            raise

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._explained, work)

    def _explained(self, work: Callable[[], _T]) -> _T:
        with explained(self.path):
            return work()


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


def _put_failures(db: sqlite3.Connection, failed: Sequence[tuple[Record, Failure]], run_id: str) -> None:
    columns = "run_id, key, request_id, stage, model, created_s, cost_usd, reason, detail"
    values: list[str | bytes | float] = []
    for record, failure in failed:
        values += (run_id, record.key, _storable(record.request_id), record.stage, record.model, time.time())
        values += (record.cost_usd, _storable(failure.reason), _storable(failure.detail))
    insert_rows(db, f"INSERT OR REPLACE INTO failures ({columns})", 9, values)


def _find_failures(db: sqlite3.Connection, keys: Sequence[bytes], run_id: str) -> dict[bytes, Failure]:
    if db.execute("SELECT 1 FROM failures WHERE run_id = ? LIMIT 1", (run_id,)).fetchone() is None:
        return {}
    found = {}
    for part in parts(keys):
        wanted = f"run_id = ? AND key IN ({marks(part)})"
        query = f"SELECT key, request_id, reason, detail FROM failures WHERE {wanted}"  # noqa: S608
        for key, request_id, reason, detail in db.execute(query, (run_id, *part)):
            found[key] = Failure(request_id, reason, detail)
    return found


def _storable(text: str) -> str:
    # half of a surrogate pair, which UTF-8 and so SQLite cannot carry, must not cost the whole commit
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
