"""The response cache on disk: the journal's contract, several processes, sudden death (C2, C3)."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ports import Journal, Record
from engine.store import cache_answers
from engine.store.cache import FILE_NAME, ResponseStore, RunJournal
from engine.store.cache_sql import connect
from engine.types import Failure, Usage
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


def test_a_key_has_32_bytes(tmp_path: Path) -> None:
    short = Record(b"short", "r", "s", "m", b"", None, Usage(), 0.0)
    with ResponseStore(tmp_path) as store:
        with pytest.raises(ValueError, match="32 bytes"):
            asyncio.run(store.commit([short], "a"))
        with pytest.raises(ValueError, match="32 bytes"):
            asyncio.run(store.get([b"short"]))


def test_every_commit_is_synced(tmp_path: Path) -> None:
    db = connect(tmp_path / FILE_NAME)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: also the log, at each commit"
    db.close()


# --- any sequence of commits, in stores that share the file ------------------------------------------

_KEYS = range(12)
_commits = st.tuples(
    st.integers(0, 2),  # which store
    st.sampled_from(["run a", "run b"]),
    st.lists(
        st.tuples(st.sampled_from(_KEYS), st.one_of(st.none(), st.binary(max_size=20), st.just(b"x" * 2000))),
        max_size=6,
    ),
)


@settings(max_examples=40)
@given(index_at=st.integers(1, 12), steps=st.lists(st.one_of(st.integers(0, 2), _commits), max_size=12))
def test_every_store_knows_the_first_answers(index_at: int, steps: list[int | tuple[int, str, Any]]) -> None:
    """A number closes a store and opens it anew; after each step all stores know what a dictionary knows."""
    answers: dict[bytes, bytes] = {}
    failures: dict[tuple[str, bytes], Failure] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_answers, "_INDEX_AT", index_at)
        stores = [ResponseStore(folder) for _ in range(3)]
        for step in steps:
            if isinstance(step, int):
                stores[step].close()
                stores[step] = ResponseStore(folder)
                continue
            number, run_id, items = step
            records = [gave_up(n) if payload is None else answered(n, payload) for n, payload in items]
            asyncio.run(stores[number].commit(records, run_id))
            for record in records:
                if record.payload is not None:
                    answers.setdefault(record.key, record.payload)
                elif record.failure is not None:
                    failures[run_id, record.key] = record.failure
            for store in stores:
                found = asyncio.run(store.lookup([key(n) for n in _KEYS], "run a"))
                assert (
                    found
                    == {k: failure for (run, k), failure in failures.items() if run == "run a"} | answers
                )
        for store in stores:
            store.close()


# --- several processes -------------------------------------------------------------------------------

_WRITER = """
import asyncio, sys
from engine.ports import Record
from engine.store import cache_answers
from engine.store.cache import ResponseStore, RunJournal
from engine.types import Usage

cache_answers._INDEX_AT = 100

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

# reads and writes the same keys as the others, in an order of its own; what it has seen must stay
_RIVAL = """
import asyncio, random, sys
from engine.ports import Record
from engine.store import cache_answers
from engine.store.cache import ResponseStore
from engine.types import Usage

cache_answers._INDEX_AT = 50

async def main(folder, name, count, rounds):
    rng = random.Random(name)
    keys = [n.to_bytes(32, "big") for n in range(count)]
    seen = {}
    with ResponseStore(folder) as store:
        input()
        for number in range(rounds):
            group = rng.sample(keys, 9)
            mine = b"%s in round %d" % (name.encode(), number)
            await store.commit([Record(k, "r", "s", "m", mine, None, Usage(), 0.5) for k in group], name)
            found = await store.get(keys)
            assert not set(group) - set(found), "what was committed is not found"
            assert all(found[k] == payload for k, payload in seen.items()), "an answer has changed"
            seen = found
    for k in keys:
        print(k.hex(), seen.get(k, b"").decode(), sep="\t")

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def _child(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_create_and_write_one_cache_together(tmp_path: Path) -> None:
    writers = [_child(_WRITER, tmp_path, f"run{i}", 1000 * i, 300, 5) for i in range(2)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with ResponseStore(tmp_path) as store:
        keys = [key(1000 * i + n) for i in range(2) for n in range(300)]
        assert len(asyncio.run(store.get(keys))) == 600


@pytest.mark.parametrize("rounds", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_processes_that_ask_the_same_agree_on_the_first_answers(tmp_path: Path, rounds: int) -> None:
    count = rounds * 3
    rivals = [_child(_RIVAL, tmp_path, name, count, rounds) for name in ("one", "two", "three")]
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    printed = [rival.communicate(timeout=300)[0] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    with ResponseStore(tmp_path) as store:
        found = asyncio.run(store.get([key(n) for n in range(count)]))
        assert all(asyncio.run(store.spent_usd(name)) == rounds * 9 * 0.5 for name in ("one", "two", "three"))
    for seen in (dict(line.split("\t") for line in text.splitlines()) for text in printed):
        assert all(found[bytes.fromhex(k)].decode() == payload for k, payload in seen.items() if payload)


@pytest.mark.parametrize("groups", [40, 3])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, groups: int) -> None:
    for kill in range(2):
        first = 1_000_000 * kill
        writer = _child(_WRITER, tmp_path, "run", first, 1_000_000, 7)
        assert writer.stdout is not None
        acknowledged = -1
        for _ in range(groups):
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = int((writer.stdout.read().split() or [acknowledged])[-1])
        writer.communicate()
        assert writer.wait(60) == -signal.SIGKILL
        with ResponseStore(tmp_path) as store:
            found = asyncio.run(store.get([key(n) for n in range(first, acknowledged + 100)]))
            assert {key(n) for n in range(first, acknowledged + 1)} <= set(found)
            assert len(found) % 7 == 0, "a group is there as a whole or not at all"
            asyncio.run(RunJournal(store, "run").commit([answered(10**9)]))
