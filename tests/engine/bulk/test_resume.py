"""Stopped, failed or killed at any moment: the same command ends with the same bytes (C2, C12)."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bulk import ClassifyResult, classify
from engine.errors import InterruptedRunError, ModelError
from engine.scheduler import Limits
from engine.stopping import StopSignal
from tests.support.bulk import (
    PROMPT,
    Student,
    environment,
    files_of,
    read_out,
    rows_on_disk,
    write_ndjson,
)

TEXTS = [f"comment {n}" if n % 3 else f"refuse {n}" if n % 2 else f"babble {n}" for n in range(120)]
TEXTS[50:55] = ["comment 49", "", "comment 49", "comment 49", "comment 49"]


def run(path: Path, out: Path, student: Student, **options: Any) -> ClassifyResult:
    return asyncio.run(classify(PROMPT, student, path, out, **options))


@settings(max_examples=10, deadline=None)
@given(
    moments=st.lists(st.integers(1, 60), max_size=3), part_rows=st.integers(1, 130), seed=st.integers(0, 9)
)
def test_stopping_loses_and_repeats_nothing(moments: list[int], part_rows: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_ndjson(Path(folder) / "rows.ndjson", TEXTS)
        whole, out = Path(folder) / "whole", Path(folder) / "out"
        run(path, whole, Student(), part_rows=part_rows)
        asked: list[str] = []
        for moment in moments:
            stop = StopSignal()
            student = Student(seed=seed)
            student.on_request = lambda _, s=student, at=moment, stop=stop: (  # type: ignore[misc]
                stop.request() if len(s.seen) >= at else None
            )
            try:
                run(path, out, student, part_rows=part_rows, stop=stop, limits=Limits(concurrency=4))
            except InterruptedRunError:
                asked += student.seen
                assert len(rows_on_disk(out)) >= len(asked)
            else:
                asked += student.seen
        last = Student(seed=seed + 1)
        result = run(path, out, last, part_rows=part_rows)
        asked += last.seen
        assert files_of(out) == files_of(whole)
        assert result.rows == len(TEXTS)
        assert len(asked) == len(set(asked))


@settings(max_examples=10, deadline=None)
@given(moment=st.integers(1, 110), part_rows=st.integers(1, 130), max_batch=st.integers(1, 9))
def test_a_model_that_breaks_costs_what_was_in_flight(moment: int, part_rows: int, max_batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_ndjson(Path(folder) / "rows.ndjson", TEXTS)
        whole, out = Path(folder) / "whole", Path(folder) / "out"
        run(path, whole, Student(), part_rows=part_rows)

        def fail(_: str) -> None:
            if len(student.seen) >= moment:
                raise ModelError("gone")

        student = Student(max_batch=max_batch, on_request=fail)
        with pytest.raises(ModelError, match="gone"):
            run(path, out, student, part_rows=part_rows, limits=Limits(concurrency=10))
        again = Student()
        run(path, out, again, part_rows=part_rows)
        assert files_of(out) == files_of(whole)
        repeated = [text for text in again.seen if text in set(student.seen) and text != "comment 49"]
        assert len(repeated) <= 10


def test_cancelling_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "whole", Student(), part_rows=30)

    async def cancelled() -> None:
        enough = asyncio.Event()
        student = Student(on_request=lambda _: enough.set() if len(student.seen) > 70 else None)
        task = asyncio.create_task(classify(PROMPT, student, path, tmp_path / "out", part_rows=30))
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    run(path, tmp_path / "out", Student(), part_rows=30)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_stop_before_the_start_begins_nothing(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    stop = StopSignal()
    stop.request()
    with pytest.raises(InterruptedRunError):
        run(path, tmp_path / "out", Student(), stop=stop)
    assert not (tmp_path / "out").exists()


def test_what_a_kill_leaves_is_cleared_up(tmp_path: Path) -> None:
    """A part written but not in the manifest, journals of finished parts, half-written files."""
    texts = [*TEXTS[:90], *(f"comment {n}" for n in range(90, 120))]  # the last part has no failures
    path = write_ndjson(tmp_path / "rows.ndjson", texts)
    out = tmp_path / "out"
    run(path, tmp_path / "whole", Student(), part_rows=30)
    student = Student()
    student.on_request = lambda _: stop.request() if len(student.seen) > 70 else None
    stop = StopSignal()
    with pytest.raises(InterruptedRunError):
        run(path, out, student, part_rows=30, stop=stop, limits=Limits(concurrency=1))
    (out / "part-00003.parquet").write_bytes(b"PAR1 old")
    (out / "failures-00003.parquet").write_bytes(b"PAR1 old")
    (out / "open-00000.log").write_bytes(b"old")
    (out / ".pld-0123456789abcdef.tmp").write_bytes(b"old")
    run(path, out, Student(), part_rows=30)
    assert files_of(out) == files_of(tmp_path / "whole")


CHILD = """
import asyncio, sys
from pathlib import Path
from engine.bulk import classify
from engine.scheduler import Limits
from tests.support.bulk import PROMPT, Student

path, out, log = map(Path, sys.argv[1:])
student = Student(log=log, on_request=lambda text: asyncio.sleep(0.002))
asyncio.run(classify(PROMPT, student, path, out, part_rows=400, limits=Limits(concurrency=16)))
"""


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    # a third repeats an earlier text, near or far
    own = [n if n % 3 else n // 2 + (n // 2 % 3 == 0) for n in range(4500)]
    texts = [f"comment {n}" if n % 11 else f"refuse {n}" for n in own]
    distinct = len(set(texts))
    path = write_ndjson(tmp_path / "rows.ndjson", texts)
    run(path, tmp_path / "whole", Student(), part_rows=400)
    out, log = tmp_path / "out", tmp_path / "asked.log"
    log.touch()
    kills = 0
    for moment in (1, 150, 390, 420, 900, 1500, 2600):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(out), str(log)], env=environment()
        )
        while child.poll() is None and len(log.read_bytes().splitlines()) < moment:
            time.sleep(0.002)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills >= 5, "three at least are asked for"
    last = Student(log=log)
    result = run(path, out, last, part_rows=400)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert (result.rows, result.duplicates) == (4500, 4500 - distinct)
    assert distinct == 3000
    asked = log.read_bytes().splitlines()
    assert len(set(asked)) == distinct
    assert len(asked) - distinct <= kills * (16 + 256)
    labelled, failed = read_out(out)
    assert sorted([*labelled["row"], *failed["row"]]) == list(range(4500))


MEMORY = """
import asyncio, sys
from pathlib import Path
import polars as pl
import psutil
from engine.bulk import classify
from engine.events import StageProgress
from tests.support.bulk import PROMPT, Student

rows = 200_000
path, out = map(Path, sys.argv[1:])
texts = (f"a comment about {k} and {k * 7}, long enough to be seen " * 3 for k in range(rows))
pl.DataFrame({"text": texts}).write_parquet(path, row_group_size=10_000)
student = Student(max_batch=512)
student.seen = type("Nothing", (list,), {"extend": lambda self, texts: None})()
peaks = [0, 0, 0, 0]

def listen(event):
    if isinstance(event, StageProgress):
        quarter = min(3, 4 * event.done // rows)
        peaks[quarter] = max(peaks[quarter], psutil.Process().memory_info().rss)

asyncio.run(classify(PROMPT, student, path, out, part_rows=2_000, emit=listen))
print(*peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "rows.parquet"), str(tmp_path / "out")],
        env={**environment(), "POLARS_MAX_THREADS": "2", "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(peak) / 1e6 for peak in child.stdout.split()]
    # the texts of a quarter take 9 MB, what Python makes of them twice as much
    assert peaks[3] < peaks[1] + 15, peaks
