"""C2: `kill -9` in each phase, then the same command: the same artifacts, and hardly anything sent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.distillation.test_pipeline import artifacts
from tests.support import corpus

pytestmark = pytest.mark.slow

CONCURRENCY = 16
MAX_UNCOMMITTED = 256
LIMITS = "".join(
    f'[{role}]\nmodel = "local:"\nconcurrency = {CONCURRENCY}\n'
    for role in ("teacher", "embedder", "student")
)


def child(folder: Path, phase: str, count: int) -> int:
    """Run a compilation that dies in `phase`; its exit status, negative for a signal."""
    command = [sys.executable, "-m", "tests.support.killable", str(folder / "pld.toml"), str(folder / "run")]
    command += [str(folder / "answers.log"), phase, str(count)]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=120).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The artifacts of an uninterrupted run from an empty cache."""
    folder = tmp_path_factory.mktemp("whole")
    corpus.write(folder, corpus.rows(600), LIMITS)
    assert child(folder, "none", 0) == 0
    return artifacts(folder / "run")


@pytest.mark.parametrize(
    ("phase", "counts"),
    [
        ("extraction", [1, 120, 60]),
        ("embedding", [1, 20]),
        ("clustering", [0]),
        ("synthesis", [1]),
        ("general", [1]),
        ("resolution", [1, 3]),
        ("student", [1, 200, 700]),
        ("verdict", [0]),
    ],
)
def test_killed_and_resumed(phase: str, counts: list[int], whole: dict[str, bytes], tmp_path: Path) -> None:
    corpus.write(tmp_path, corpus.rows(600), LIMITS)
    for count in counts:
        assert child(tmp_path, phase, count) == -signal.SIGKILL
    assert child(tmp_path, "none", 0) == 0
    assert artifacts(tmp_path / "run") == whole
    answered = Counter((tmp_path / "answers.log").read_text().splitlines())
    repeated = sum(times - 1 for times in answered.values())
    assert repeated <= len(counts) * (CONCURRENCY + MAX_UNCOMMITTED)
    # far below the bound as well: a bound that is never neared would hide a journal that keeps nothing
    assert repeated < 0.5 * len(answered)
