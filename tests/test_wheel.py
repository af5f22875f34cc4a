"""The wheel holds what it needs: built, installed in a fresh environment, used outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_holds_the_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "engine",
        "adapters",
        "bench",
    }
    assert "adapters/example/messages.csv" in names
    assert not any("/runs/" in name for name in names)
    templates = {path.name for path in (ROOT / "engine/distillation/templates").iterdir()}
    assert {Path(name).name for name in names if "/templates/" in name} == templates
    assert {"engine/py.typed", "adapters/py.typed", "bench/py.typed"} <= set(names)


def test_demo_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=False)
    python = fresh / "bin" / "python"
    site = next((fresh / "lib").glob("python*/site-packages"))
    # what the wheel depends on comes from here; the project itself only from the wheel
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, capture_output=True)
    where = subprocess.run(
        [
            python,
            "-c",
            "import engine, adapters, bench; print(engine.__file__, adapters.__file__, bench.__file__)",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert all(Path(path).is_relative_to(fresh) for path in where.split())
    done = subprocess.run(
        [fresh / "bin" / "pld", "demo", "--json", "--quiet"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["classify"]["classified"] == 1113
    assert document["evaluate"]["n"] == 224
    assert document["compile"]["verdict"]
    assert (tmp_path / "pld-demo" / "run" / "prompt.md").is_file()
