"""The response cache on disk: the journal's contract, several processes, damage, sudden death (C2, C3)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import CorruptStoreError, RunError
from engine.ports import Journal
from engine.store.cache import FILE_NAME, ResponseStore, RunJournal
from tests.contracts.journal import JournalContract, answered, gave_up, key

ROOT = Path(__file__).resolve().parents[3]


class TestRunJournal(JournalContract):
    @pytest.fixture(autouse=True)
    def _open(self, tmp_path: Path) -> Iterator[None]:
        with ResponseStore(tmp_path / "cache") as self.store:
            yield

    def journal(self, run_id: str, *, retry_failed: bool = False) -> Journal:
        return RunJournal(self.store, run_id, retry_failed=retry_failed)


class TestRunJournalOfTwoProcesses(JournalContract):
    """Every journal has a store of its own on the same file, as two processes would."""

    @pytest.fixture(autouse=True)
    def _open(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path / "cache"
        self.stores: list[ResponseStore] = []
        yield
        for store in self.stores:
            store.close()

    def journal(self, run_id: str, *, retry_failed: bool = False) -> Journal:
        self.stores.append(ResponseStore(self.folder))
        return RunJournal(self.stores[-1], run_id, retry_failed=retry_failed)


def test_answers_outlive_the_store(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        asyncio.run(RunJournal(store, "a").commit([answered(1), gave_up(2)]))
    with ResponseStore(tmp_path) as store:
        assert asyncio.run(store.get([key(1), key(2)])) == {key(1): b"answer 1"}
        assert set(asyncio.run(RunJournal(store, "a").lookup([key(1), key(2)]))) == {key(1), key(2)}


def test_what_a_run_has_spent(tmp_path: Path) -> None:
    async def check(store: ResponseStore) -> None:
        journal = RunJournal(store, "a")
        assert await journal.spent_usd() == 0.0
        await journal.commit([answered(1, cost_usd=0.25), answered(2, cost_usd=0.5), gave_up(3)])
        other = RunJournal(store, "b")
        await other.commit([answered(2, cost_usd=9.0), answered(4, cost_usd=1.0)])
        await journal.commit([answered(3, cost_usd=0.1)])
        assert await journal.spent_usd() == pytest.approx(0.85)
        assert await other.spent_usd() == pytest.approx(10.0), "paid, though the answer was there by then"

    with ResponseStore(tmp_path) as store:
        asyncio.run(check(store))


def test_folder_and_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with ResponseStore(tmp_path / "cache") as store:
            asyncio.run(RunJournal(store, "a").commit([answered(1)]))
            assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
            names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").iterdir()}
    finally:
        os.umask(before)
    assert names == dict.fromkeys((FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"), 0o600)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    store.close()
    store.close()


# --- what can be wrong with the file -----------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, " * 100)
    with pytest.raises(CorruptStoreError, match=r"damaged.*move it away") as caught:
        ResponseStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_found_when_it_is_read(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        asyncio.run(RunJournal(store, "a").commit([answered(n, b"x" * 200) for n in range(500)]))
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    for start in range(2 * 4096, len(data) - 4096, 4096):
        data[start : start + 2000] = b"\xee" * 2000
    path.write_bytes(data)

    async def read(store: ResponseStore) -> None:
        await store.get([key(n) for n in range(500)])

    with pytest.raises(CorruptStoreError, match="damaged"), ResponseStore(tmp_path) as store:
        asyncio.run(read(store))


def test_a_file_of_another_format(tmp_path: Path) -> None:
    ResponseStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RunError, match="format 99, this version of pld uses 1"):
        ResponseStore(tmp_path)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be opened"):
        ResponseStore(tmp_path / "file" / "cache")


# --- several processes -------------------------------------------------------------------------------

_WRITER = """
import asyncio, sys
from engine.ports import Record
from engine.store.cache import ResponseStore, RunJournal
from engine.types import Usage

def record(n):
    return Record(n.to_bytes(32, "big"), f"r{n}", "s", "m", b"answer %d" % n, None, Usage(), 0.0)

async def main(folder, run_id, first, count, group):
    with ResponseStore(folder) as store:
        journal = RunJournal(store, run_id)
        for n in range(first, first + count, group):
            await journal.commit([record(i) for i in range(n, n + group)])
            print(n + group - 1, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
"""


def _writer(folder: Path, run_id: str, first: int, count: int, group: int) -> subprocess.Popen[str]:
    arguments = [str(folder), run_id, str(first), str(count), str(group)]
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_processes_create_and_write_one_cache_together(tmp_path: Path) -> None:
    writers = [_writer(tmp_path, f"run{i}", 1000 * i, 100, 5) for i in range(2)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with ResponseStore(tmp_path) as store:
        keys = [key(1000 * i + n) for i in range(2) for n in range(100)]
        assert len(asyncio.run(store.get(keys))) == 200


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    writer = _writer(tmp_path, "run", 0, 1_000_000, 7)
    assert writer.stdout is not None
    acknowledged = -1
    for _ in range(40):
        acknowledged = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = int((writer.stdout.read().split() or [acknowledged])[-1])
    writer.stdout.close()
    assert writer.wait(60) == -signal.SIGKILL
    with ResponseStore(tmp_path) as store:
        found = asyncio.run(store.get([key(n) for n in range(acknowledged + 100)]))
        assert {key(n) for n in range(acknowledged + 1)} <= set(found)
        assert len(found) % 7 == 0, "a group is there as a whole or not at all"
        asyncio.run(RunJournal(store, "run").commit([answered(10**9)]))
