"""The SQLite file of the response cache: how it is opened, what its tables are, what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import CorruptStoreError, RunError
from engine.store.rundir import sync_folder

SCHEMA_VERSION = 2
_BUSY_TIMEOUT_S = 60.0
_CACHE_KIB = 32_000  # the pages of the index stay in memory, up to some millions of answers
_CHECKPOINT_PAGES = 4000
_PARAMETERS = 900  # every SQLite build takes 999

_SCHEMA = f"""
CREATE TABLE responses (
    id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, stage TEXT NOT NULL, model TEXT NOT NULL,
    created_s REAL NOT NULL, cost_usd REAL NOT NULL, answers INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE places (tail INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (tail, place)) WITHOUT ROWID;
CREATE TABLE indexed (up_to INTEGER NOT NULL);
INSERT INTO indexed (up_to) VALUES (0);
CREATE TABLE failures (
    run_id TEXT NOT NULL, key BLOB NOT NULL, request_id TEXT NOT NULL, stage TEXT NOT NULL,
    model TEXT NOT NULL, created_s REAL NOT NULL, cost_usd REAL NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, PRIMARY KEY (run_id, key)
) WITHOUT ROWID;
CREATE TABLE spending (run_id TEXT PRIMARY KEY, cost_usd REAL NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 - a number of this module

_T = TypeVar("_T")


class DamagedError(Exception):
    """What the file holds contradicts itself; `explained` tells the user."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the cache, for one thread at a time; where there is none, create it, private to the user.

    Raises `CorruptStoreError` for a damaged file and `RunError` for one that cannot be used.
    """
    _make_private(path)
    with explained(path):
        db = sqlite3.connect(
            path, _BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=500
        )
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    if _version(db) == 0:
        with transaction(db):
            if _version(db) == 0:  # another process may have been first
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
    if (version := _version(db)) != SCHEMA_VERSION:
        raise RunError(
            f"{path}: the response cache has format {version}, this version of pld uses {SCHEMA_VERSION}; "
            "move it away or name another cache folder"
        )
    db.execute("SELECT 1 FROM responses LIMIT 1").fetchone()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _make_private(path: Path) -> None:
    folder = path.parent
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in missing:  # SQLite syncs the folder of its files, and no more
            sync_folder(one.parent)
        # SQLite gives its -wal and -shm files the mode of the database
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as exc:
        raise RunError(f"{path}: the response cache cannot be opened: {exc.strerror}") from exc


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; on disk when the block is left."""
    # IMMEDIATE: a transaction that turns from reading to writing cannot wait for another writer
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have ended it
            db.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into one line that names the file and says what to do."""
    try:
        yield
    except (sqlite3.DatabaseError, DamagedError, UnicodeDecodeError) as exc:
        code = exc.sqlite_errorcode & 0xFF if isinstance(exc, sqlite3.OperationalError) else None
        # the file is sound where it is locked, the disk full or access refused; not where a table is missing
        if code is not None and code != sqlite3.SQLITE_ERROR:
            # SQLite calls many a full disk (a quota, a limit on files) an I/O error
            full = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
            advice = "; make room if the disk is full, and run the same command again" if full else ""
            raise RunError(f"{path}: the response cache cannot be used: {exc}{advice}") from exc
        # SQLite may cite what it cannot read
        what = "".join(char if char.isprintable() else "?" for char in str(exc))
        raise CorruptStoreError(
            f"{path}: the response cache is damaged ({what}); move it away and run again "
            "(its answers will be asked for again)"
        ) from exc


def insert_rows(db: sqlite3.Connection, into: str, columns: int, values: Sequence[Any]) -> None:
    """`into` is an INSERT up to VALUES; `values` the rows, one after the other; many rows to a statement.

    Each execution lets go of the interpreter lock and has to get it back from a busy event loop, so that
    `executemany`, one execution per row, is several times dearer.
    """
    row = f"({marks(range(columns))})"
    for part in parts(values, _PARAMETERS // columns * columns):
        db.execute(f"{into} VALUES {marks(range(len(part) // columns), row)}", part)


def marks(values: Sequence[object], mark: str = "?") -> str:
    """As many marks as there are values."""
    return ",".join([mark] * len(values))


def parts(items: Sequence[_T], size: int = _PARAMETERS) -> Iterator[Sequence[_T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
