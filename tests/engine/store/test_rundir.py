"""The run directory: one writer, durable writes, equal bytes for equal content, private to the user."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptStoreError, RunError, RunLockedError
from engine.store.rundir import LOCK, MANIFEST, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """A locked run directory."""
    run = RunDirectory.create(tmp_path / "runs" / "one")
    with run.lock():
        yield run


def files(run: RunDirectory) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}


# --- one writer ----------------------------------------------------------------------------------

HOLDER = """
import sys, time
from engine.store.rundir import RunDirectory
run = RunDirectory.create(sys.argv[1])
with run.lock():
    run.write_bytes("state.bin", b"old")
    (run.path / "rounds").mkdir()
    for folder in (run.path, run.path / "rounds"):
        (folder / ".pld-0123456789abcdef.tmp").write_bytes(b"half a fi")
    print("locked", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed its first line; it is killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_works_here_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with another_process(HOLDER, path) as process:
        run = RunDirectory.open(path)
        with pytest.raises(RunLockedError, match=rf"\(pid {process.pid}\)"), run.lock():
            pass
        run_id = run.run_id
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with run.lock():
            assert run.run_id == run_id
            assert files(run) == {LOCK, "state.bin"}
            assert run.read_bytes("state.bin") == b"old"
            assert str(os.getpid()) in (path / LOCK).read_text()


def test_two_objects_of_one_process_do_not_both_get_the_lock(run: RunDirectory) -> None:
    with pytest.raises(RunLockedError, match=str(os.getpid())), RunDirectory.open(run.path).lock():
        pass
    with pytest.raises(RunLockedError), run.lock():
        pass
    run.write_bytes("still-mine", b"")  # the failed attempts took nothing away


def test_the_run_id_stays_and_differs_between_runs(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "a", "b"):
        run = RunDirectory.create(tmp_path / name)
        with run.lock():
            ids.append(run.run_id)
    assert ids[0] == ids[1] != ids[2]
    assert all(len(run_id) == 32 for run_id in ids)


def test_a_lock_file_that_a_killed_process_left_empty_is_filled(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    (run.path / LOCK).touch()
    with pytest.raises(CorruptStoreError, match="damaged"):
        _ = run.run_id
    with run.lock():
        assert len(run.run_id) == 32


def test_writing_needs_the_lock(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    with pytest.raises(RunError, match="needs the lock"):
        run.write_bytes("a", b"")
    with run.lock():
        run.write_bytes("a", b"")
    with pytest.raises(RunError, match="needs the lock"):
        run.remove("a")


# --- folders -------------------------------------------------------------------------------------


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            run = RunDirectory.create(tmp_path / f"{umask}" / "run")
            with run.lock():
                run.write_json("rounds/deep/01.json", {})
                run.write_parquet("rules.parquet", pl.DataFrame({"a": [1]}))
                run.write_npy("vectors.npy", np.zeros(3))
        finally:
            os.umask(before)
        for path in [run.path, *run.path.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_folder_of_other_things_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RunError, match="choose another folder"):
        RunDirectory.create(tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="no such run directory"):
        RunDirectory.open(tmp_path / "x")
    with pytest.raises(RunError, match=r"cannot be created|no such"):
        RunDirectory.create(tmp_path / "photo.jpg" / "run")
    # an empty folder is fine, and a copied run that lost its lock file is still one
    (tmp_path / "empty").mkdir(mode=0o755)
    run = RunDirectory.create(tmp_path / "empty")
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    with run.lock():
        run.write_manifest({"a": 1})
    (run.path / LOCK).unlink()
    assert RunDirectory.open(run.path).read_manifest() == {"a": 1}


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "."])
def test_names_stay_inside(run: RunDirectory, name: str) -> None:
    with pytest.raises(RunError, match="does not name a file"):
        run.write_bytes(name, b"")


# --- content -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), JSON.filter(lambda v: "Infinity" not in json.dumps(v))), st.binary(), st.text()
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any], data: bytes, text: str
) -> None:
    run = RunDirectory.create(tmp_path_factory.mktemp("run"))
    with run.lock():
        run.write_json("a.json", value)
        first = run.read_bytes("a.json")
        run.write_json("a.json", dict(reversed(value.items())))
        assert run.read_bytes("a.json") == first
        assert run.read_json("a.json") == json.loads(first) == value
        run.write_bytes("b", data)
        assert run.read_bytes("b") == data
        run.write_text("c.md", text)
        assert run.read_text("c.md") == text


def test_equal_tables_give_equal_bytes_however_they_were_made(run: RunDirectory) -> None:
    frame = pl.DataFrame(
        {"n": range(5000), "text": [str(i * 37 % 501) for i in range(5000)], "x": [0.5] * 5000}
    )
    ways = (
        frame,
        pl.concat([frame[:7], frame[7:]], rechunk=False),
        frame.reverse().sort("n"),
        frame.filter(pl.col("n") >= 0).clone(),
    )
    written = set()
    for way in ways:
        run.write_parquet("t.parquet", way)
        written.add(run.read_bytes("t.parquet"))
        assert run.read_parquet("t.parquet").equals(frame)
    assert len(written) == 1


def test_arrays_are_numpys_own_format(run: RunDirectory) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (
        matrix,
        np.asfortranarray(matrix),
        matrix[::2],
        matrix[:0],
        np.float64(3.5),
        np.array(["ä"]),
    ):
        run.write_npy("v.npy", np.asarray(array))
        expected = io.BytesIO()
        np.save(expected, np.asarray(array, order="C"))
        assert run.read_bytes("v.npy") == expected.getvalue()
        loaded = run.read_npy("v.npy")
        assert loaded.dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(loaded, array)
    with pytest.raises(RunError, match="Python objects"):
        run.write_npy("v.npy", np.array([{}]))


# --- what goes wrong -----------------------------------------------------------------------------

READERS: list[tuple[str, Callable[[RunDirectory, str], object], bytes]] = [
    ("a.json", RunDirectory.read_json, b'{"a": '),
    ("a.md", RunDirectory.read_text, b"caf\xe9"),
    ("a.parquet", RunDirectory.read_parquet, b"PAR1 not really PAR1"),
    ("a.npy", RunDirectory.read_npy, b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"),
    ("b.npy", RunDirectory.read_npy, b""),
    (MANIFEST, lambda run, _: run.read_manifest(), b"[]"),
]


@pytest.mark.parametrize(("name", "read", "damaged"), READERS)
def test_missing_and_damaged_files_are_one_clear_line(
    run: RunDirectory, name: str, read: Callable[[RunDirectory, str], object], damaged: bytes
) -> None:
    with pytest.raises(RunError, match=rf"{name}: is missing") as missing:
        read(run, name)
    assert not isinstance(missing.value, CorruptStoreError)
    run.write_bytes(name, damaged)
    with pytest.raises(CorruptStoreError, match=rf"{name}: is damaged") as found:
        read(run, name)
    assert "\n" not in str(found.value)


def test_a_cut_table_is_damaged_at_every_length(run: RunDirectory) -> None:
    run.write_parquet("t.parquet", pl.DataFrame({"a": range(100)}))
    run.write_npy("v.npy", np.arange(100))
    for name, read in (("t.parquet", run.read_parquet), ("v.npy", run.read_npy)):
        whole = run.read_bytes(name)
        for length in range(0, len(whole), 7):
            run.write_bytes(name, whole[:length])
            with pytest.raises(CorruptStoreError):
                read(name)


def test_a_write_that_fails_leaves_the_old_file(run: RunDirectory) -> None:
    frame = pl.DataFrame({"a": np.random.default_rng(0).random(9000)})
    writes: dict[str, Callable[[], None]] = {
        "a.bin": lambda: run.write_bytes("a.bin", bytes(9000)),
        "a.json": lambda: run.write_json("a.json", ["x" * 9000]),
        "a.parquet": lambda: run.write_parquet("a.parquet", frame),
        "a.npy": lambda: run.write_npy("a.npy", np.ones(9000)),
    }
    for name in writes:
        run.write_bytes(name, b"old")
    # the kernel really refuses files over 5,000 bytes from here on
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        for name, write in writes.items():
            with pytest.raises(RunError, match=f"cannot write {name}: File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(run) == {LOCK, *writes}
    assert {run.read_bytes(name) for name in writes} == {b"old"}


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only")],
)
def test_a_full_disk_and_refused_access_are_said(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    run.write_bytes("a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=f"cannot write a: .*{words}"):
        run.write_bytes("a", b"new")
    assert run.read_bytes("a") == b"old"
    assert files(run) == {LOCK, "a"}


def test_content_reaches_the_disk_before_the_name_and_the_folder_after(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
        sync(fd)

    def rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    run.write_bytes("a", b"12345")
    assert steps == ["file of 5", "rename", "folder"]


def test_values_that_json_cannot_hold_are_refused(run: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"a\.json: cannot be written as JSON"):
        run.write_json("a.json", {"a": object()})
    with pytest.raises(RunError, match="not valid Unicode"):
        run.write_text("a.md", "\ud800")
    assert files(run) == {LOCK}


def test_removing_is_idempotent(run: RunDirectory) -> None:
    run.write_bytes("a", b"")
    assert run.has("a")
    run.remove("a")
    run.remove("a")
    run.remove("no/such/folder")
    assert not run.has("a")


KILLED = """
import sys
from engine.store.rundir import RunDirectory
run = RunDirectory.create(sys.argv[1])
with run.lock():
    run.write_bytes("a", bytes(200_000))
    print("locked", flush=True)
    while True:
        for byte in range(256):
            run.write_bytes("a", bytes([byte]) * 200_000)
"""


@pytest.mark.slow
def test_a_file_is_whole_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    for attempt in range(6):
        run = RunDirectory(tmp_path / f"run-{attempt % 3}")
        with another_process(KILLED, run.path) as process:
            for _ in range(attempt * 40):
                assert len(set(run.read_bytes("a"))) == 1
            os.kill(process.pid, signal.SIGKILL)
        data = run.read_bytes("a")
        assert len(data) == 200_000
        assert len(set(data)) == 1
        with run.lock():
            assert files(run) == {LOCK, "a"}
