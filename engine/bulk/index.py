"""What became of each distinct text, on disk: memory does not grow with the rows (C5).

`texts.sqlite` holds hashes of texts, not texts. It is there while a classification is unfinished: once all
rows stand in parts nothing asks for it, and a hash lets who has a text tell whether it was among the rows.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.bulk.entries import Known
from engine.errors import CorruptStoreError, RunError

INDEX = "texts.sqlite"
INDEX_FILES = (INDEX, f"{INDEX}-wal", f"{INDEX}-shm")

_CACHE_KIB = 32 << 10
# SQLite takes at least so many in one statement
_MOST_AT_ONCE = 30_000


class TextIndex:
    """A map from `entries.digest` to `Known` in a locked folder. One thread at a time may use it.

    What `add` has taken survives the process; after a power cut the last additions may be missing, and those
    texts are asked about again. Raises `RunError` where the disk is full, and `CorruptStoreError`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX
        with self._errors():
            # SQLite makes files by the umask; its log gets the mode of the file beside it
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                self._db.execute(
                    "PRAGMA locking_mode = EXCLUSIVE"
                )  # the folder's lock is ours: no shared memory
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS texts "
                    "(hash BLOB PRIMARY KEY, known BLOB NOT NULL) WITHOUT ROWID"
                )
        except BaseException:
            self._db.close()
            raise

    def look_up(self, hashes: Sequence[bytes]) -> dict[bytes, Known]:
        """Those of the hashes that are known."""
        found: dict[bytes, Known] = {}
        with self._errors():
            for start in range(0, len(hashes), _MOST_AT_ONCE):
                some = hashes[start : start + _MOST_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._db.execute(
                    f"SELECT hash, known FROM texts WHERE hash IN ({marks})",  # noqa: S608 - question marks
                    some,
                )
                found.update((name, Known.unpack(known)) for name, known in rows)
        return found

    def add(self, known: Mapping[bytes, Known]) -> None:
        """Add texts; what is known of one already stays."""
        # in the order of the tree: each page is visited once
        rows = sorted((name, one.pack()) for name, one in known.items())
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", rows)

    def close(self) -> None:
        """Give the file back; calling it twice is harmless."""
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            raise RunError(
                f"{self._path}: {exc}; what is saved is complete, the same command goes on"
            ) from exc
        except OSError as exc:
            raise RunError(f"{self._path}: cannot be opened: {exc.strerror}") from exc
        except (sqlite3.DatabaseError, CorruptStoreError) as exc:
            raise CorruptStoreError(
                f"{self._path}: is damaged; delete it (and {INDEX}-wal) and run the same command again: "
                "texts of finished parts that come again are then asked about once more"
            ) from exc
