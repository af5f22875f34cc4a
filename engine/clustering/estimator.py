"""scikit-learn's DBSCAN, with the search replaced where this package has a faster one."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
from joblib import effective_n_jobs
from scipy import sparse
from sklearn import cluster
from sklearn.utils.validation import _check_sample_weight, validate_data

from engine.clustering.exact import Backend, label
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import Metric

AnyBackend: TypeAlias = Literal[Backend, "ivf"]

# scikit-learn's own "auto" searches rows of up to 15 values with a k-d tree, which beats any matrix product
_TREE_DIM = 15


class DBSCAN(cluster.DBSCAN):  # type: ignore[misc]  # scikit-learn ships no types
    """`sklearn.cluster.DBSCAN` for large dense data: the same parameters, attributes and labels.

    Cosine and Euclidean distance on dense rows are computed here; every other metric, sparse and precomputed
    input, the algorithms "ball_tree" and "kd_tree", and Euclidean distance of rows of up to 15 values (where
    "auto" means a k-d tree) are handed to scikit-learn.

    Labels, numbering included, and core samples are those of scikit-learn on the float64 copy of the data,
    pairs within 1e-12 of `eps` excepted. (On float32 data scikit-learn itself compares in float32, where
    rounding can put a pair within about 1e-6 of `eps` on the other side.) A zero row is at cosine distance 1
    from every other row and 0 from itself.

    Parameters
    ----------
    eps, min_samples, metric, metric_params, algorithm, leaf_size, p : as in scikit-learn
    n_jobs : int, default=None
        Threads. None and -1: all processors that this process may use; -2: all but one, and so on.
    backend : {"auto", "faiss", "blocked", "ivf"}, default="auto"
        "faiss" searches a neighbour graph with FAISS and walks it twice; it is kept in between where it
        takes no more memory than the data. "blocked" goes once over the upper triangle of the matrix of
        inner products, with numba: it leaves out what is settled and what an upper bound rules out. "auto"
        takes "faiss" for up to 3,000 distinct rows, for which it is done before numba's loops are loaded,
        and "blocked" above. Weights that are not whole numbers from 1 on, and a `min_samples` beyond about
        four times the number of columns, always take "faiss". These are exact. "ivf" compares only rows that
        an inverted file puts near each other, enough of them that 99 in 100 neighbours of a sampled row are
        found, where that takes a small part of all pairs; for cosine distance, and for 100,000 rows or more.

    Attributes
    ----------
    core_sample_indices_, components_, labels_, n_features_in_, feature_names_in_ : as in scikit-learn
    recall_ : float
        The share of a row's neighbours that it was compared with, on a sample; 1 unless `backend` is "ivf".

    Notes
    -----
    Time is O(n²·d) at worst, memory O(n·d). A memory-mapped float32 array of unit rows is not copied for
    the cosine.

    Examples
    --------
    >>> import numpy as np
    >>> from engine.clustering import DBSCAN
    >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    >>> DBSCAN(eps=0.1, min_samples=2, metric="cosine").fit_predict(rows)
    array([ 0,  0,  0, -1])
    """

    def __init__(
        self,
        eps: float = 0.5,
        *,
        min_samples: int = 5,
        metric: Any = "euclidean",
        metric_params: dict[str, Any] | None = None,
        algorithm: str = "auto",
        leaf_size: int = 30,
        p: float | None = None,
        n_jobs: int | None = None,
        backend: AnyBackend = "auto",
    ) -> None:
        super().__init__(
            eps=eps,
            min_samples=min_samples,
            metric=metric,
            metric_params=metric_params,
            algorithm=algorithm,
            leaf_size=leaf_size,
            p=p,
            n_jobs=n_jobs,
        )
        self.backend = backend

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803 - their name
        """Cluster the rows of `X` (n, d); `sample_weight` (n,) counts them several times or in part.

        Raises `ValueError` for a parameter outside its range and for input that scikit-learn would refuse.
        """
        self._validate_params()
        if self.backend not in get_args(AnyBackend):
            raise ValueError(
                f"backend must be one of {', '.join(get_args(AnyBackend))}, not {self.backend!r}"
            )
        metric = self._own_metric(X)
        if self.backend == "ivf" and metric != "cosine":
            raise ValueError(
                'backend "ivf" is for metric "cosine" and dense rows: leave it at "auto" for others'
            )
        if metric is None:
            super().fit(X, y, sample_weight)
            self.recall_ = 1.0
            return self
        given, X = X, validate_data(self, X, dtype=[np.float64, np.float32])  # noqa: N806
        if (
            metric == "euclidean"
            and X.shape[1] <= _TREE_DIM
            and (self.algorithm, self.backend) == ("auto", "auto")
        ):
            super().fit(given, y, sample_weight)  # as given: it may have names of columns
            self.recall_ = 1.0
            return self
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        found, self.recall_ = self._label(np.asarray(X), metric, weights)
        self.labels_ = found.labels.astype(np.intp, copy=False)
        self.core_sample_indices_ = np.flatnonzero(found.core)
        self.components_ = X[self.core_sample_indices_].copy()
        return self

    def _label(self, rows: Any, metric: Metric, weights: Any) -> tuple[Labelling, float]:
        setting, threads = Setting(float(self.eps), int(self.min_samples)), _threads(self.n_jobs)
        if self.backend == "ivf":
            # numba takes a second to import
            from engine.clustering.approximate import label_by_lists  # noqa: PLC0415

            near = label_by_lists(rows, setting, weights=weights, threads=threads)
            return near.labelling, near.recall
        (found,) = label(
            rows, [setting], metric=metric, weights=weights, backend=self.backend, threads=threads
        )
        return found, 1.0

    def _own_metric(self, X: Any) -> Metric | None:  # noqa: N803
        if sparse.issparse(X) or self.metric_params or self.algorithm not in {"auto", "brute"}:
            return None
        if self.metric == "cosine":
            return "cosine"
        if self.metric in ("euclidean", "l2") or (self.metric == "minkowski" and self.p in (None, 2)):
            return "euclidean"
        return None


def _threads(n_jobs: int | None) -> int | None:
    return None if n_jobs is None else int(effective_n_jobs(n_jobs))
