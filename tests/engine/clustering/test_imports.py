"""What is heavy is loaded when it is used, and compiled loops need no folder to be kept in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import clustering
from tests.conftest import ROOT

HEAVY = ("faiss", "numba", "scipy", "sklearn")


def printed(code: str, where: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=where,
        env={**os.environ, "COLUMNS": "80", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(code: str) -> set[str]:
    listing = f"import sys; print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    return set(printed(f"{code}\n{listing}").splitlines()[-1].split()[1:])


HELP = """
import sys
from adapters.cli.main import main
sys.argv = ["pld", "--help"]
try:
    main()
except SystemExit as done:
    assert not done.code
"""


@pytest.mark.parametrize("code", ["import engine.clustering", "import engine.distillation.pipeline"])
def test_nothing_heavy_before_it_is_used(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_command_line_answers_without_them() -> None:
    assert not loaded_by(HELP) & {"faiss", "numba", "sklearn"}


def test_a_small_set_is_clustered_without_numba_and_scikit_learn() -> None:
    code = (
        "import numpy as np\nfrom engine.clustering import dbscan\n"
        "dbscan(np.eye(4, dtype=np.float32), eps=0.4, min_samples=2)"
    )
    assert not loaded_by(code) & {"numba", "sklearn"}


def test_every_name_is_there() -> None:
    for name in clustering.__all__:
        assert getattr(clustering, name).__doc__
    with pytest.raises(AttributeError, match=r"engine\.clustering.* has no attribute 'OPTICS'"):
        clustering.OPTICS  # noqa: B018


@pytest.fixture
def not_writable(tmp_path: Path) -> Path:
    """A copy of the engine beside which nothing can be kept, whoever runs the tests: files stand where
    folders would have to be.
    """
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "engine" / "clustering" / "__pycache__").write_text("no folder", encoding="ascii")
    return tmp_path


FLATTEN = """
import numpy as np
from engine.clustering import kernels
parent = np.array([[0, 0, 1, 3]], np.int32)
kernels.flatten(parent)
print(kernels.__file__, parent.tolist(), kernels.flatten._cache.cache_path)
"""


def test_loops_are_compiled_where_they_cannot_be_kept(not_writable: Path) -> None:
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/nowhere")
    done = printed(FLATTEN, not_writable, PYTHONDONTWRITEBYTECODE="1", **nowhere)
    assert done.startswith(str(not_writable))
    assert done.endswith("[[0, 0, 0, 3]] None")


def test_loops_are_kept_where_numba_is_told_to(not_writable: Path) -> None:
    kept = not_writable / "kept"
    printed(FLATTEN, not_writable, HOME="/dev/null/nowhere", NUMBA_CACHE_DIR=str(kept))
    assert list(kept.rglob("kernels.flatten-*"))
