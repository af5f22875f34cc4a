"""The benchmark of clustering, small: its figures are no use at this size, but its checks hold at any."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.clustering import (
    measure_approximate,
    measure_backends,
    measure_curve,
    measure_grid,
    measure_speed,
)
from bench.clustering.data import Kind, embeddings
from bench.clustering.running import made_up


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_made_up_embeddings_are_unit_rows_and_the_same_each_time(kind: Kind) -> None:
    rows = embeddings(kind, 3000, 96)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(rows, embeddings(kind, 3000, 96))
    near = np.mean(rows @ rows.T >= 0.6)
    assert (near > 0.02) == (kind == "dense")


def test_the_command_compares_with_scikit_learn() -> None:
    options = ["--rows", "300", "--dim", "16", "--repeats", "1", "--data", "sparse", "--json"]
    done = CliRunner().invoke(app, ["clustering", "speed", *options])
    assert done.exit_code == 0, done.output
    rows = orjson.loads(done.stdout)["results"]
    assert [row["backend"] for row in rows] == ["sklearn", "faiss", "blocked"]
    assert {(row["part"], row["n"], row["d"], row["data"]) for row in rows} == {("speed", 300, 16, "sparse")}
    assert all(row["labels_equal"] for row in rows[1:])
    assert all(row["cpu_s"] > 0 and row["ratio"] > 0 and row["peak_mb"] > 0 for row in rows)


@pytest.mark.parametrize("arguments", [["nothing"], ["speed", "--data", "thick"]])
def test_what_the_command_refuses(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["clustering", *arguments])
    assert done.exit_code == 2
    assert "nothing" in done.output or "sparse or dense" in done.output


def test_what_fails_in_a_process_is_told() -> None:
    with made_up("sparse", 50, 8) as data:
        data.path.unlink()
        with pytest.raises(RuntimeError, match=r"blocked: [\s\S]*No such file"):
            data.measure("blocked", [(0.4, 6)], threads=1)


@pytest.mark.slow
def test_every_part_finds_equal_labels() -> None:
    assert all(row.get("labels_equal", True) for row in measure_speed(1000, 32, repeats=2, threads=2))
    for row in measure_grid(1000, 32, repeats=1, threads=1):
        assert row.get("labels_equal", True)
    assert [row["n"] for row in measure_curve(400, 16, threads=1, kinds=["dense"])] == [
        100,
        200,
        400,
        1000,
        2000,
    ]
    assert all(
        row["labels_equal"] for row in measure_backends(1000, 32, repeats=1, threads=1, kinds=["dense"])
    )


@pytest.mark.slow
def test_the_approximation_is_put_beside_the_exact_labels() -> None:
    exact, ivf = measure_approximate(400, 64, threads=1, kinds=["sparse"])
    assert (exact["backend"], ivf["backend"]) == ("blocked", "ivf")
    assert ivf["recall"] > 0.95
    assert ivf["adjusted_rand"] > 0.8
