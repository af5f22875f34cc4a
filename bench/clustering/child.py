"""`python -m bench.clustering.child JOB`: one clustering in a process of its own, measured."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from threadpoolctl import threadpool_limits

from bench.clustering.job import Job, Run
from bench.memory import peak_mb, reset_peak, rss_mb
from engine.clustering import Setting
from engine.types import FloatVector

# Enough rows that all of a backend's machinery is compiled or loaded, and few enough to take no time.
_WARM_UP_ROWS = 5000
_GEMM_ROWS = 4096
_GEMM_REPEATS = 5


class _Found(NamedTuple):
    labels: npt.NDArray[np.int64]
    core: npt.NDArray[np.bool_]
    more: dict[str, Any]


def main() -> None:
    """Run the job in the first argument; print a `Run` as JSON."""
    job = Job.from_json(orjson.loads(sys.argv[1]))
    vectors = np.load(job.vectors, mmap_mode="r") if job.mapped else np.load(job.vectors)
    cluster = _BACKENDS[job.backend]
    with threadpool_limits(job.threads):
        cluster(vectors[:_WARM_UP_ROWS], job)
        start_cpu_s = time.process_time()
        rate = _sgemm_gflops(vectors)
        reset_peak()
        resident, began, cpu_began = rss_mb(), time.perf_counter(), time.process_time()
        found = cluster(vectors, job)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        peak = peak_mb()
        rate = (rate + _sgemm_gflops(vectors)) / 2
    np.savez(Path(job.labels), labels=found.labels, core=found.core)
    run = Run(
        start_cpu_s,
        seconds,
        cpu_s,
        peak,
        peak - resident,
        rate,
        int(found.labels.max(initial=-1)) + 1,
        int((found.labels < 0).sum()),
        found.more,
    )
    sys.stdout.write(orjson.dumps(run.to_json()).decode())


def _sgemm_gflops(vectors: FloatVector) -> float:
    rows = np.array(vectors[:_GEMM_ROWS])
    out = np.empty((len(rows), len(rows)), np.float32)
    taken = []
    with threadpool_limits(1):
        for _ in range(_GEMM_REPEATS):
            began = time.process_time()
            np.matmul(rows, rows[::-1].T, out=out)
            taken.append(time.process_time() - began)
    return float(2 * len(rows) ** 2 * rows.shape[1] / max(statistics.median(taken), 1e-9) / 1e9)


def _own(vectors: FloatVector, job: Job) -> _Found:
    from engine.clustering.exact import label  # noqa: PLC0415 - each child loads what it measures, no more

    settings = [Setting(*one) for one in job.settings]
    found = label(vectors, settings, metric="cosine", backend=job.backend, threads=job.threads)  # type: ignore[arg-type]  # a name of Job
    return _Found(found[0].labels, found[0].core, {})


def _ivf(vectors: FloatVector, job: Job) -> _Found:
    from engine.clustering.approximate import approximate_dbscan  # noqa: PLC0415 - as above

    eps, min_samples = job.settings[0]
    found = approximate_dbscan(vectors, eps, min_samples, threads=job.threads)
    more = {"recall": found.recall, "lists": found.lists, "probes": found.probes}
    return _Found(found.labelling.labels, found.labelling.core, more)


def _sklearn(vectors: FloatVector, job: Job) -> _Found:
    from sklearn.cluster import DBSCAN  # noqa: PLC0415 - as above

    eps, min_samples = job.settings[0]
    model = DBSCAN(eps=eps, min_samples=min_samples, metric="cosine", n_jobs=job.threads).fit(vectors)
    core = np.zeros(len(vectors), np.bool_)
    core[model.core_sample_indices_] = True
    return _Found(model.labels_.astype(np.int64), core, {})


_BACKENDS: dict[str, Callable[[FloatVector, Job], _Found]] = {
    "sklearn": _sklearn,
    "faiss": _own,
    "blocked": _own,
    "ivf": _ivf,
}


if __name__ == "__main__":
    main()
