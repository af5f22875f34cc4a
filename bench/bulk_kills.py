"""A long bulk job with equal texts, killed on the way: every row exactly once, and memory that stays flat."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from bench.quality import Job, write_job
from bench.subprocesses import run_pld

_FILE_ROWS = 500_000
_LOOK_S = 0.5


@dataclass
class _Watched:
    """What the processes of a job took together. `memory` has (rows finished, resident MB) pairs."""

    rows: int
    cpu_s: float = 0.0
    wall_s: float = 0.0
    kills: int = 0
    memory: list[tuple[int, float]] = field(default_factory=list)

    def peak_mb(self, begin: float = 0.0, end: float = 1.0) -> float:
        """The most memory seen while a share of the rows from `begin` to `end` was finished."""
        seen = [mb for done, mb in self.memory if begin * self.rows <= done <= end * self.rows]
        return max(seen, default=0.0)


def measure(data: Path, name: str, rows: int, duplicates: float, kills: int) -> list[dict[str, Any]]:
    """`pld classify` with the local student over `rows` rows, a share of them repeating an earlier text,
    killed (SIGKILL) at equal distances.

    Raises `RuntimeError` where a row is missing or stands twice, equal texts have different labels, or a text
    was asked about twice.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_job(Job(name, 7, shuffled=False), data, folder)
        run_pld(["compile", config, "--run", folder / "run"], folder)
        numbers = numbers_of(rows, duplicates, seed=7)
        inputs = write_rows(pl.read_parquet(data / f"{name}.parquet", columns=["text"]), numbers, folder)
        out = folder / "out"
        seen = _Watched(rows)
        for kill in range(kills):
            _run(folder, inputs, out, seen, until=rows * (kill + 1) // (kills + 1))
        found = _run(folder, inputs, out, seen, until=None)
        check(out, numbers)
        distinct = len(np.unique(numbers))
        if found["duplicates"] != rows - distinct:
            raise RuntimeError(f"{rows - distinct} rows repeat a text, {found['duplicates']} were counted")
        return [
            {
                "name": "pld classify, local student",
                "rows": rows,
                "duplicates": found["duplicates"],
                "kills": seen.kills,
                "rows_per_s": round(rows / seen.wall_s),
                "cpu_us_per_row": round(1e6 * seen.cpu_s / rows, 1),
                "peak_mb": round(seen.peak_mb()),
                "peak_mb_second_quarter": round(seen.peak_mb(0.25, 0.5)),
                "peak_mb_last_quarter": round(seen.peak_mb(0.75, 1.0)),
                "limited_by": _limits(out),
            }
        ]


def numbers_of(rows: int, duplicates: float, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which text each row has: a new one, or with the chance `duplicates` one that came before."""
    rng = np.random.default_rng(seed)
    new = rng.random(rows) >= duplicates
    new[:1] = True
    known = np.cumsum(new)
    return np.where(new, known - 1, (rng.random(rows) * known).astype(np.int64))


def write_rows(
    source: pl.DataFrame, numbers: np.ndarray[Any, np.dtype[np.int64]], folder: Path
) -> list[Path]:
    """Parquet files with the texts of these numbers, in the words of a data set."""
    texts = source["text"].drop_nulls().to_list()
    random.Random(7).shuffle(texts)
    n = len(texts)
    paths = []
    for start in range(0, len(numbers), _FILE_ROWS):
        block = (
            f"{texts[k % n]} {' '.join(texts[(k // n + 31 * k) % n].split()[:6])} {k}"
            for k in numbers[start : start + _FILE_ROWS].tolist()
        )
        paths.append(folder / f"rows-{start // _FILE_ROWS:03d}.parquet")
        pl.DataFrame({"text": block}).write_parquet(paths[-1])
    return paths


def _run(
    folder: Path, inputs: Sequence[Path], out: Path, seen: _Watched, *, until: int | None
) -> dict[str, Any]:
    """One process; killed once `until` rows are finished. Returns what it prints, nothing of a killed one."""
    command = [sys.executable, "-c", "from adapters.cli.main import main; main()", "classify"]
    command += [str(folder / "run"), *map(str, inputs), "-o", str(out), "--json", "--quiet"]
    began = time.monotonic()
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as told:
        child = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=told)  # noqa: S603 - our own
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            done = _finished(out)
            seen.memory.append((done, _resident_mb(child.pid)))
            if until is not None and done >= until:
                child.kill()
                _, status, usage = os.wait4(child.pid, 0)
                break
            time.sleep(_LOOK_S)
        child.returncode = os.waitstatus_to_exitcode(status)
        seen.cpu_s += usage.ru_utime + usage.ru_stime
        seen.wall_s += time.monotonic() - began
        if child.returncode < 0 and until is not None:
            seen.kills += 1
            return {}
        printed.seek(0)
        told.seek(0)
        if child.returncode != 0:
            raise RuntimeError(told.read().decode(errors="replace").strip())
        document: dict[str, Any] = orjson.loads(printed.read())
    return document


def _resident_mb(pid: int) -> float:
    """Memory of a process in MB, 0 where the system does not tell (it does on Linux)."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def _finished(out: Path) -> int:
    """Rows that stand in finished parts."""
    with suppress(OSError, ValueError):
        document = orjson.loads((out / "manifest.json").read_bytes())
        return sum(part["rows"] for part in document["parts"])
    return 0


def check(out: Path, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """Raise `RuntimeError` unless each row stands exactly once, with the label of all rows of its text."""
    times = np.zeros(len(numbers), np.uint8)
    label = np.zeros(int(numbers.max()) + 1, np.uint64)
    for path in sorted(out.glob("*-*.parquet")):
        columns = ["row"] if path.name.startswith("failures-") else ["row", "label"]
        frame = pl.read_parquet(path, columns=columns)
        rows = frame["row"].to_numpy()
        np.add.at(times, rows, 1)
        if len(columns) > 1:
            found = frame["label"].hash(seed=1).to_numpy() | np.uint64(1)
            texts = numbers[rows]
            fresh = label[texts] == 0
            label[texts[fresh]] = found[fresh]
            if not np.array_equal(label[texts], found):
                raise RuntimeError(f"{path.name}: rows with equal texts have different labels")
    if not (times == 1).all():
        raise RuntimeError(f"{(times == 0).sum()} rows are missing, {(times > 1).sum()} stand more than once")


def _limits(out: Path) -> str:
    """What the job waited for most of the time, by its event log."""
    waits: Counter[str] = Counter()
    with (out / "events.jsonl").open("rb") as log:
        for line in log:
            with suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event["event"] == "stage_progress" and event["lane"]:
                    waits[event["lane"]["bottleneck"]] += 1
    return waits.most_common(1)[0][0] if waits else ""
