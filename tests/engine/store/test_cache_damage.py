"""What can be wrong with the response cache's files: torn ends are mended, damage is never served (C2)."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptStoreError, RunError
from engine.store import cache_answers
from engine.store.cache import FILE_NAME, ResponseStore
from tests.contracts.journal import answered, gave_up, key

ROOT = Path(__file__).resolve().parents[3]
GROUPS, SIZE = 12, 5
WAL = f"{FILE_NAME}-wal"


def payload(n: int) -> bytes:
    return b"<%d>" % n * 30


def fill(store: ResponseStore, groups: range) -> None:
    for group in groups:
        numbers = range(group * SIZE, (group + 1) * SIZE)
        asyncio.run(store.commit([answered(n, payload(n)) for n in numbers], "run"))


def look(folder: Path, numbers: range = range(GROUPS * SIZE)) -> dict[int, bytes]:
    with ResponseStore(folder) as store:
        found = asyncio.run(store.lookup([key(n) for n in numbers], "run"))
    return {int.from_bytes(k, "big"): value for k, value in found.items() if isinstance(value, bytes)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as a killed process leaves them: half of the groups in the file, all in its log."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_answers, "_INDEX_AT", 3 * SIZE)
        with ResponseStore(folder / "open") as store:
            fill(store, range(GROUPS // 2))
        with ResponseStore(folder / "open") as store:
            fill(store, range(GROUPS // 2, GROUPS))
            (folder / "files").mkdir()
            for name in (FILE_NAME, WAL):
                shutil.copy(folder / "open" / name, folder / "files")
    return folder / "files"


@pytest.fixture(scope="module")
def closed(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as a process leaves it that has ended."""
    folder = tmp_path_factory.mktemp("closed") / "files"
    shutil.copytree(killed, folder)
    assert len(look(folder)) == GROUPS * SIZE
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    return folder


@contextmanager
def copied(files: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        yield shutil.copytree(files, Path(temporary) / "cache")


def check_prefix(folder: Path, at_least: int) -> None:
    """The first groups are there, whole and right, and the cache goes on."""
    found = look(folder)
    assert found == {n: payload(n) for n in range(len(found))}
    assert len(found) % SIZE == 0
    assert len(found) >= at_least * SIZE
    with ResponseStore(folder) as store:
        fill(store, range(GROUPS))
    assert look(folder) == {n: payload(n) for n in range(GROUPS * SIZE)}


# --- a torn log is mended ----------------------------------------------------------------------------


def test_a_whole_log_is_read(killed: Path) -> None:
    with copied(killed) as folder:
        assert len((folder / WAL).read_bytes()) > 0
        check_prefix(folder, GROUPS)


@settings(max_examples=25)
@given(data=st.data())
def test_a_log_cut_anywhere(killed: Path, data: st.DataObject) -> None:
    with copied(killed) as folder:
        end = data.draw(st.integers(0, (folder / WAL).stat().st_size))
        os.truncate(folder / WAL, end)
        check_prefix(folder, GROUPS // 2)


@settings(max_examples=25)
@given(garbage=st.binary(min_size=1, max_size=9000))
def test_a_log_with_garbage_at_its_end(killed: Path, garbage: bytes) -> None:
    with copied(killed) as folder:
        with (folder / WAL).open("ab") as file:
            file.write(garbage)
        check_prefix(folder, GROUPS)


@settings(max_examples=25)
@given(data=st.data())
def test_a_log_with_a_byte_turned(killed: Path, data: st.DataObject) -> None:
    with copied(killed) as folder:
        turn_byte(folder / WAL, data)
        check_prefix(folder, GROUPS // 2)


def turn_byte(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)


# --- a damaged file is refused -----------------------------------------------------------------------


@settings(max_examples=100)
@given(data=st.data())
def test_no_turned_byte_is_ever_served(closed: Path, data: st.DataObject) -> None:
    with copied(closed) as folder:
        turn_byte(folder / FILE_NAME, data)
        complaint = ""
        found: dict[int, bytes] = {}
        try:
            found = look(folder)
        except RunError as exc:
            complaint = str(exc)
        assert not complaint or complaint.startswith(f"{folder / FILE_NAME}: the response cache ")
        assert complaint.isprintable()
        assert all(value == payload(n) for n, value in found.items())


@pytest.mark.parametrize("number", [0, 31, GROUPS * SIZE - 1])
@pytest.mark.parametrize("part", ["key", "checksum", "length", "payload"])
def test_a_bit_of_an_answer_is_noticed(closed: Path, number: int, part: str) -> None:
    with copied(closed) as folder:
        content = bytearray((folder / FILE_NAME).read_bytes())
        start = content.index(payload(number)) - 40
        content[start + {"key": 0, "checksum": 32, "length": 36, "payload": 50}[part]] ^= 1
        (folder / FILE_NAME).write_bytes(content)
        with pytest.raises(
            CorruptStoreError, match=r"responses.sqlite: .*damaged \(an answer .*move it away"
        ):
            look(folder)


def test_an_index_that_names_what_is_not_there(closed: Path) -> None:
    with copied(closed) as folder:
        db = sqlite3.connect(folder / FILE_NAME)
        with db:
            db.execute("DELETE FROM responses WHERE id = 2")
        db.close()
        with pytest.raises(CorruptStoreError, match="not there"):
            look(folder)


@pytest.mark.parametrize("table", ["responses", "places", "indexed", "failures"])
def test_a_table_that_is_missing(closed: Path, table: str) -> None:
    with copied(closed) as folder:
        db = sqlite3.connect(folder / FILE_NAME)
        db.execute(f"DROP TABLE {table}")
        db.close()
        with pytest.raises(CorruptStoreError, match=rf"damaged \(no such table: .*{table}\)"):
            look(folder)


def test_a_schema_that_cannot_be_read(closed: Path) -> None:
    with copied(closed) as folder:
        content = (folder / FILE_NAME).read_bytes()
        assert content.count(b"CREATE TABLE spending") == 1
        for text in (b"CREATE \xffABLE spending", b"CREATE TABLE\x12spending"):
            (folder / FILE_NAME).write_bytes(content.replace(b"CREATE TABLE spending", text))
            with pytest.raises(CorruptStoreError, match="damaged") as caught:
                look(folder)
            assert str(caught.value).isprintable()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, " * 100)
    with pytest.raises(CorruptStoreError, match=r"damaged.*move it away") as caught:
        ResponseStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_pages_are_found_when_they_are_read(closed: Path) -> None:
    with copied(closed) as folder:
        path = folder / FILE_NAME
        content = bytearray(path.read_bytes())
        for start in range(2 * 4096, len(content), 4096):
            content[start : start + 2000] = b"\xee" * 2000
        path.write_bytes(content)
        with pytest.raises(CorruptStoreError, match="damaged"):
            look(folder)


@pytest.mark.parametrize("pages", [1, 3, 8])
def test_a_file_cut_short(closed: Path, pages: int) -> None:
    with copied(closed) as folder:
        os.truncate(folder / FILE_NAME, pages * 4096)
        with pytest.raises(CorruptStoreError, match="damaged"):
            look(folder)


@pytest.mark.parametrize("version", [1, 99])
def test_a_file_of_another_format(tmp_path: Path, version: int) -> None:
    ResponseStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(RunError, match=f"has format {version}, this version of pld uses 2; move it away"):
        ResponseStore(tmp_path)


# --- no room, no permission --------------------------------------------------------------------------


@contextmanager
def little_room(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_loses_only_the_commit_that_failed(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        fill(store, range(3))
        many = [answered(n, b"x" * 1000) for n in range(1000, 1300)]
        with little_room(200_000), pytest.raises(RunError, match=r"responses\.sqlite.*make room"):
            asyncio.run(store.commit([*many, gave_up(0)], "run"))
        everything = [key(n) for n in range(2000)]
        assert len(asyncio.run(store.get(everything))) == 3 * SIZE
        assert asyncio.run(store.lookup([key(0)], "run")) == {key(0): payload(0)}
        asyncio.run(store.commit(many, "run"))
        assert len(asyncio.run(store.get(everything))) == 3 * SIZE + 300
    assert look(tmp_path, range(2000)) == {
        **{n: payload(n) for n in range(3 * SIZE)},
        **dict.fromkeys(range(1000, 1300), b"x" * 1000),
    }


# root may write anywhere: the child gives that up once it has read its modules
_VISITOR = """
import asyncio, os, sys
from engine.errors import RunError
from engine.store.cache import ResponseStore
if os.geteuid() == 0:
    os.setuid(65534)
try:
    ResponseStore(sys.argv[1]).close()
except RunError as exc:
    print(exc)
"""


@pytest.mark.parametrize("mode", [0o500, 0o700])
def test_a_folder_or_file_that_may_only_be_read(closed: Path, mode: int) -> None:
    with copied(closed) as folder:
        for path, rights in ((folder / FILE_NAME, 0o400), (folder, mode), (folder.parent, 0o755)):
            path.chmod(rights)
            if os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        command = [sys.executable, "-c", _VISITOR, str(folder)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        folder.chmod(0o700)
    wanted = f"{folder / FILE_NAME}: the response cache cannot be opened: {os.strerror(errno.EACCES)}"
    assert said.splitlines() == [wanted]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be opened"):
        ResponseStore(tmp_path / "file" / "cache")
