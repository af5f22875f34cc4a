"""A drop-in for scikit-learn's class: its checks, its parameters and attributes, its result elsewhere."""

from __future__ import annotations

import doctest
import inspect
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from scipy import sparse
from sklearn import cluster
from sklearn.base import clone
from sklearn.metrics import pairwise_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import check_estimator

from engine.clustering import DBSCAN, estimator
from engine.clustering.exact import Backend

BACKENDS: list[Backend] = ["auto", "faiss", "blocked"]


def rows_of(seed: int = 0, n: int = 150, dim: int = 20) -> npt.NDArray[np.float64]:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((5, dim))
    return centres[random.integers(5, size=n)] + 0.3 * random.standard_normal((n, dim))


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    np.testing.assert_array_equal(found.core_sample_indices_, expected.core_sample_indices_)
    theirs, own = expected.components_, found.components_
    if sparse.issparse(theirs):
        theirs, own = theirs.toarray(), own.toarray()
    np.testing.assert_array_equal(own, theirs)
    assert found.n_features_in_ == expected.n_features_in_
    assert found.labels_.dtype == expected.labels_.dtype
    assert found.core_sample_indices_.dtype == expected.core_sample_indices_.dtype


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scikit_learns_own_checks(backend: Backend, metric: str) -> None:
    checks = check_estimator(DBSCAN(metric=metric, backend=backend), on_skip=None)
    done = [check["check_name"] for check in checks if check["status"] == "passed"]
    left_out = {check["check_name"] for check in checks if check["status"] != "passed"}
    assert len(done) > 40
    # what needs pandas, or an environment of its own
    assert left_out <= {"check_sample_weights_pandas_series", "check_array_api_input"}


def test_the_constructor_is_scikit_learns_and_a_backend() -> None:
    theirs = inspect.signature(cluster.DBSCAN).parameters
    own = inspect.signature(DBSCAN).parameters
    assert [*theirs, "backend"] == list(own)
    for name, parameter in theirs.items():
        assert own[name].default == parameter.default
        assert own[name].kind == parameter.kind
    assert isinstance(DBSCAN(), cluster.DBSCAN)


def test_parameters_are_kept_cloned_and_shown() -> None:
    found = DBSCAN(0.3, min_samples=4, metric="cosine", n_jobs=2, backend="blocked")
    assert found.get_params() == {
        **cluster.DBSCAN(0.3, min_samples=4, metric="cosine", n_jobs=2).get_params(),
        "backend": "blocked",
    }
    other = clone(found).set_params(backend="faiss", eps=0.4)
    assert (other.backend, other.eps, found.backend, found.eps) == ("faiss", 0.4, "blocked", 0.3)
    assert repr(other) == "DBSCAN(backend='faiss', eps=0.4, metric='cosine', min_samples=4, n_jobs=2)"


EXISTING_CODE = """
import numpy as np
{statement}
from sklearn.datasets import make_blobs
from sklearn.preprocessing import StandardScaler

centers = [[1, 1], [-1, -1], [1, -1]]
X, labels_true = make_blobs(n_samples=750, centers=centers, cluster_std=0.4, random_state=0)
X = StandardScaler().fit_transform(X)
db = DBSCAN(eps=0.3, min_samples=10).fit(X)
labels = db.labels_
core_samples_mask = np.zeros_like(labels, dtype=bool)
core_samples_mask[db.core_sample_indices_] = True
n_clusters = len(set(labels)) - (1 if -1 in labels else 0)
texts = np.random.default_rng(0).standard_normal((300, 64)).astype("float32")
grouped = DBSCAN(eps=0.6, min_samples=2, metric="cosine", n_jobs=-1).fit_predict(texts)
"""


def test_existing_code_runs_with_the_import_changed() -> None:
    spaces: list[dict[str, Any]] = []
    for statement in ("from sklearn.cluster import DBSCAN", "from engine.clustering import DBSCAN"):
        spaces.append({})
        exec(EXISTING_CODE.format(statement=statement), spaces[-1])  # noqa: S102
    theirs, own = spaces
    assert own["n_clusters"] == theirs["n_clusters"] == 3
    for name in ("labels", "core_samples_mask", "grouped"):
        np.testing.assert_array_equal(own[name], theirs[name])
    assert len(set(own["grouped"])) > 2


def test_the_example_in_the_docstring() -> None:
    examples = doctest.DocTestFinder().find(DBSCAN, "DBSCAN", module=False)
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False) == doctest.TestResults(failed=0, attempted=4)


def test_in_a_pipeline_and_pickled() -> None:
    rows = rows_of()
    found = make_pipeline(Normalizer(), DBSCAN(0.4, backend="blocked")).fit(rows)
    expected = make_pipeline(Normalizer(), cluster.DBSCAN(0.4)).fit(rows)
    assert_same(found[-1], expected[-1])
    assert found[-1].labels_.max() > 1
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - made here
    assert_same(again[-1], expected[-1])
    np.testing.assert_array_equal(found.fit_predict(rows), expected.fit_predict(rows))


@pytest.mark.parametrize("dim", [3, 20])  # with 3 columns scikit-learn's k-d tree does it
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_gives_its_columns_names(dim: int, backend: Backend) -> None:
    table = pl.DataFrame(rows_of(dim=dim), schema=[f"x{k}" for k in range(dim)])
    found = DBSCAN(1.5, backend=backend).fit(table)
    assert found.feature_names_in_.tolist() == table.columns
    assert_same(found, cluster.DBSCAN(1.5).fit(table))
    assert not hasattr(found.fit(table.to_numpy()), "feature_names_in_")


@pytest.mark.parametrize("given", [lambda rows: rows.tolist(), lambda rows: (rows * 10).astype(np.int16)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_and_whole_numbers(given: Any, backend: Backend) -> None:
    rows = given(rows_of())
    found = DBSCAN(0.1, metric="cosine", backend=backend).fit(rows)
    assert_same(found, cluster.DBSCAN(0.1, metric="cosine").fit(rows))


DELEGATED = {
    "precomputed": ({"metric": "precomputed", "eps": 1.5}, pairwise_distances),
    "precomputed, sparse": (
        {"metric": "precomputed", "eps": 1.5},
        lambda rows: sparse.csr_array(pairwise_distances(rows) * (pairwise_distances(rows) < 2.0)),
    ),
    "sparse": ({"metric": "cosine", "eps": 0.15}, sparse.csr_matrix),
    "sparse, euclidean": ({"eps": 1.8}, sparse.csr_array),
    "manhattan": ({"metric": "manhattan", "eps": 7.0}, np.asarray),
    "a function": ({"metric": lambda a, b: float(np.abs(a - b).max()), "eps": 0.9}, np.asarray),
    "minkowski": ({"metric": "minkowski", "p": 3, "eps": 1.2}, np.asarray),
    "a metric's parameters": ({"metric": "minkowski", "metric_params": {"p": 3}, "eps": 1.2}, np.asarray),
    "a k-d tree": ({"algorithm": "kd_tree", "eps": 1.8}, np.asarray),
    "a ball tree": ({"algorithm": "ball_tree", "eps": 1.8, "leaf_size": 10}, np.asarray),
}


@pytest.mark.parametrize("name", DELEGATED)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_handed_to_scikit_learn(name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, given = DELEGATED[name]
    rows = given(rows_of(n=80))
    weights = np.random.default_rng(0).uniform(0.0, 2.0, 80) if weighted else None
    expected = cluster.DBSCAN(min_samples=4, **parameters).fit(rows, sample_weight=weights)
    assert expected.labels_.max() > 0
    monkeypatch.delattr(estimator, "label")  # none of ours
    for backend in BACKENDS:
        found = DBSCAN(min_samples=4, backend=backend, **parameters).fit(rows, sample_weight=weights)
        assert_same(found, expected)


@pytest.mark.parametrize(
    "parameters",
    [
        {"metric": "cosine", "eps": 0.15},
        {"eps": 1.8},
        {"metric": "l2", "eps": 1.8},
        {"metric": "minkowski", "p": 2, "eps": 1.8},
        {"algorithm": "brute", "eps": 1.8},
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_computed_here(
    parameters: dict[str, Any], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of()
    weights = np.random.default_rng(0).uniform(-0.2, 2.0, len(rows))
    expected = [cluster.DBSCAN(**parameters).fit(rows, sample_weight=one) for one in (None, weights)]

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("handed to scikit-learn")

    monkeypatch.setattr(cluster.DBSCAN, "fit", refused)
    for weight, theirs in zip((None, weights), expected, strict=True):
        found = DBSCAN(**parameters, backend=backend).fit(rows, sample_weight=weight)
        assert_same(found, theirs)
        assert found.labels_.max() > 1


def test_few_columns_are_searched_with_a_tree_unless_a_backend_is_named() -> None:
    rows = rows_of(dim=3)
    expected = cluster.DBSCAN(0.5).fit(rows)
    for backend in BACKENDS:
        assert_same(DBSCAN(0.5, backend=backend).fit(rows), expected)


@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1, -2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_n_jobs(n_jobs: int | None, backend: Backend) -> None:
    rows = rows_of()
    found = DBSCAN(0.15, metric="cosine", n_jobs=n_jobs, backend=backend).fit(rows)
    assert_same(found, cluster.DBSCAN(0.15, metric="cosine").fit(rows))


def test_the_threads_of_faiss_are_as_they_were() -> None:
    import faiss  # noqa: PLC0415 - heavy, and only here

    before = faiss.omp_get_max_threads()
    DBSCAN(0.15, metric="cosine", n_jobs=before + 1, backend="faiss").fit(rows_of())
    assert faiss.omp_get_max_threads() == before


def test_weights_as_scikit_learn_takes_them() -> None:
    rows = rows_of()
    for weights in (2, [0.5] * 150, np.full(150, 3, np.int32), np.full(150, 0.1, np.float32)):
        expected = cluster.DBSCAN(1.8, min_samples=6).fit(rows, sample_weight=weights)
        assert_same(DBSCAN(1.8, min_samples=6).fit(rows, sample_weight=weights), expected)


def test_no_core_rows() -> None:
    found = DBSCAN(1e-6, metric="cosine").fit(rows_of())
    assert found.components_.shape == (0, 20)
    assert set(found.labels_) == {-1}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"backend": "cuda"}, "backend must be one of auto, faiss, blocked.*not 'cuda'"),
        ({"eps": 0.0}, "'eps' parameter of DBSCAN"),
        ({"eps": "wide"}, "'eps' parameter of DBSCAN"),
        ({"min_samples": 0}, "'min_samples' parameter of DBSCAN"),
        ({"min_samples": 2.5}, "'min_samples' parameter of DBSCAN"),
        ({"metric": "hamster"}, "'metric' parameter of DBSCAN"),
        ({"n_jobs": 0}, "n_jobs"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DBSCAN(**parameters).fit(rows_of())


@pytest.mark.parametrize(
    ("rows", "weights", "said"),
    [
        (np.full((3, 20), np.nan), None, "NaN"),
        (np.full((3, 20), np.inf), None, "infinity"),
        (np.ones(20), None, "Expected 2D array"),
        (np.ones((0, 20)), None, "0 sample"),
        (np.ones((3, 20)), np.ones(4), "sample_weight.shape"),
        (np.ones((3, 20)), [1, np.nan, 1], "NaN"),
    ],
)
def test_input_that_scikit_learn_refuses(rows: Any, weights: Any, said: str) -> None:
    for metric in ("cosine", "euclidean"):
        for kind in (cluster.DBSCAN, DBSCAN):
            with pytest.raises(ValueError, match=said):
                kind(metric=metric).fit(rows, sample_weight=weights)
