"""The vLLM that is installed: which program, which version, which device. vLLM itself is never imported here:
it lives in an environment of its own, and importing it takes half a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError

_ASK_S = 30.0
# the package alone: `import vllm` would load torch
_QUESTION = """
from importlib.metadata import version
from importlib.util import find_spec
print(version("vllm"))
print(find_spec("vllm").submodule_search_locations[0])
"""
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either of them under WSL 2
_HOW_TO = (
    "install it in an environment of its own (python3 -m venv vllm-env && vllm-env/bin/pip install vllm), "
    "and name it: --vllm vllm-env/bin/vllm"
)


@dataclass(frozen=True)
class Installation:
    """A `vllm` program. `version` is None, and `retention` False, where its Python does not tell."""

    program: Path
    version: str | None
    retention: bool
    """Whether it has `--prefix-cache-retention-interval`."""
    gpu: bool
    """Whether it will run on a GPU, as far as that shows from outside."""


def find_vllm(given: Path | None) -> Installation:
    """The `vllm` program: the one given (it, or its environment's folder), else that on PATH, else that
    beside this Python. Raises `ModelError` where there is none, saying how to install it.
    """
    program = _program(given)
    version, package = _ask(program)
    return Installation(
        program=program,
        version=version,
        retention=package is not None and _has_retention(package),
        gpu="cpu" not in (version or "") and any(map(os.path.exists, _DEVICES)),
    )


def _program(given: Path | None) -> Path:
    if given is not None:
        program = given / "bin" / "vllm" if given.is_dir() else given
        if not os.access(program, os.X_OK) or program.is_dir():
            raise ModelError(f"--vllm {given}: there is no vllm program; {_HOW_TO}")
        return program.absolute()
    found = shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))
    if found is None:
        raise ModelError(f"vLLM is not installed: no `vllm` on PATH; {_HOW_TO}")
    return Path(found).absolute()


def _ask(program: Path) -> tuple[str | None, Path | None]:
    """Version and folder of the package that a program belongs to, from the Python that runs it."""
    try:
        with program.open("rb") as script:
            first = os.fsdecode(script.readline(4096)).strip()
    except OSError:
        return None, None
    python = first.removeprefix("#!").strip()
    if not first.startswith("#!") or "python" not in Path(python).name or not os.access(python, os.X_OK):
        return None, None
    try:
        answer = subprocess.run(  # noqa: S603 - the Python that will run it anyway
            [python, "-I", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=True,
        )
        version, folder = answer.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
    return version, Path(folder)


def _has_retention(package: Path) -> bool:
    # read from the package, as development versions say too little in their number
    try:
        return "prefix_cache_retention_interval" in (package / "engine" / "arg_utils.py").read_text("utf-8")
    except OSError:
        return False
