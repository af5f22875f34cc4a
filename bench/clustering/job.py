"""What one measured process is given, and what it tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """Cluster the rows of the .npy file `vectors` in each of `settings`, (eps, min_samples).

    `backend` is "sklearn", "faiss", "blocked" or "ivf". Labels and core flags of the first setting go
    to the .npz file `labels`. `mapped` reads the vectors through a memory map, else they are loaded first.
    """

    vectors: str
    labels: str
    backend: str
    settings: tuple[tuple[float, int], ...]
    threads: int = 1
    mapped: bool = False

    def to_json(self) -> dict[str, Any]:
        """As the child reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Job:
        """What `to_json` wrote."""
        settings = tuple((float(eps), int(least)) for eps, least in found["settings"])
        return cls(**{**found, "settings": settings})


@dataclass(frozen=True)
class Run:
    """What one process took, and found in the first setting.

    `start_cpu_s` are CPU seconds of its imports and of a warm-up on a few rows; `seconds` and `cpu_s` those
    of the call alone, over all threads. `peak_mb` is the resident memory of the whole process at its highest
    during the call: interpreter, libraries, vectors (with a memory map, the pages of it that were read) and
    what the call took; `added_mb` is that less what was resident when the call began. `sgemm_gflops` is what
    one thread does in a single-precision matrix product, the mean of before and after.
    """

    start_cpu_s: float
    seconds: float
    cpu_s: float
    peak_mb: float
    added_mb: float
    sgemm_gflops: float
    clusters: int
    noise: int
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As the child prints it."""
        return asdict(self)

    def ratio(self, n: int, dim: int) -> float:
        """CPU seconds to the half-GEMM limit: n²·d operations (half of a product's, by symmetry)."""
        return self.cpu_s / (n * n * dim / (self.sgemm_gflops * 1e9))
