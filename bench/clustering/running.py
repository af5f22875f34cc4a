"""Starting measured processes, and turning repeated runs into rows."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bench.clustering.data import Kind, embeddings
from bench.clustering.job import Job, Run
from bench.scheduler.running import spread


@dataclass(frozen=True, eq=False)
class Measured:
    """Runs of one backend on one set of vectors, and the labels and core flags of the last."""

    runs: list[Run]
    labels: npt.NDArray[np.int64] = field(repr=False)
    core: npt.NDArray[np.bool_] = field(repr=False)

    def equals(self, other: Measured) -> bool:
        """Whether labels, numbering included, and core flags are the same."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.core, other.core)

    @property
    def cpu_s(self) -> float:
        """The median of the runs."""
        return statistics.median(run.cpu_s for run in self.runs)


@dataclass(frozen=True)
class Input:
    """Vectors in a file."""

    kind: Kind
    n: int
    dim: int
    path: Path

    def measure(
        self,
        backend: str,
        settings: Sequence[tuple[float, int]],
        *,
        threads: int,
        repeats: int = 1,
        mapped: bool = False,
    ) -> Measured:
        """Run `backend` in `repeats` processes, one after the other.

        Raises `RuntimeError` where one fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            labels = str(Path(folder) / "labels.npz")
            job = Job(str(self.path), labels, backend, tuple(settings), threads, mapped)
            runs = [_run(job) for _ in range(repeats)]
            with np.load(labels) as found:
                return Measured(runs, found["labels"], found["core"])

    def row(self, name: str, backend: str, found: Measured, *, threads: int) -> dict[str, Any]:
        """The figures of `found`; `ratio` is CPU to the half-GEMM limit of the same process."""
        runs = found.runs
        return {
            "name": name,
            "n": self.n,
            "d": self.dim,
            "data": self.kind,
            "backend": backend,
            "threads": threads,
            "runs": len(runs),
            **spread("seconds", [run.seconds for run in runs], 3),
            **spread("cpu_s", [run.cpu_s for run in runs], 3),
            "peak_mb": round(max(run.peak_mb for run in runs)),
            "added_mb": round(max(run.added_mb for run in runs)),
            **spread("ratio", [run.ratio(self.n, self.dim) for run in runs], 3),
            "sgemm_gflops": round(statistics.median(run.sgemm_gflops for run in runs), 1),
            "clusters": runs[-1].clusters,
            "noise": runs[-1].noise,
        }


@contextmanager
def made_up(kind: Kind, n: int, dim: int) -> Iterator[Input]:
    """`embeddings` in a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, embeddings(kind, n, dim))
        yield Input(kind, n, dim, path)


def _run(job: Job) -> Run:
    command = [sys.executable, "-W", "ignore", "-m", "bench.clustering.child"]
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, orjson.dumps(job.to_json()).decode()], capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job.backend}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
    return Run(**orjson.loads(done.stdout))
