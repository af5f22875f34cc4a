"""What users import: the names, that they are there, and that `import engine` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adapters
import engine
from engine import errors

ROOT = Path(__file__).resolve().parents[2]
VENDORS = {"aiohttp", "google", "openai", "vllm"}
HEAVY = {*VENDORS, "faiss", "matplotlib", "numba", "rich", "scipy", "sklearn", "typer"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_names_of_the_engine() -> None:
    assert sorted(engine.__all__) == [
        "ClassifyResult",
        "CompileResult",
        "CompiledPrompt",
        "Config",
        "Evaluation",
        "PldError",
        "StopSignal",
        "SweepResult",
        "classify",
        "classify_sync",
        "compile_prompt",
        "compile_prompt_sync",
        "evaluate",
        "evaluate_sync",
        "load_calibration",
        "load_config",
        "load_prompt",
        "sweep",
        "sweep_sync",
    ]
    assert dir(engine) == sorted(engine.__all__)


def test_the_names_of_the_adapters() -> None:
    assert adapters.__all__ == ["open_models", "open_student"]
    assert all(callable(getattr(adapters, name)) for name in adapters.__all__)


@pytest.mark.parametrize("name", engine.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(engine, name)
    assert found.__name__ == name
    assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'compile'"):
        engine.compile  # noqa: B018
    with pytest.raises(ImportError, match="compile_all"):
        exec("from engine import compile_all")  # noqa: S102


def test_the_engine_is_imported_in_a_moment() -> None:
    assert not loaded_by("import engine") & {*HEAVY, "numpy", "polars", "pydantic"}


def test_no_name_of_the_engine_loads_what_only_some_runs_need() -> None:
    assert not loaded_by("from engine import *") & HEAVY


def test_the_adapters_load_no_vendor_before_it_is_asked_for() -> None:
    assert not loaded_by("import adapters") & VENDORS


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    raised = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert all(issubclass(kind, errors.PldError) for kind in raised.values())
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in raised)
    codes = {name: kind.exit_code for name, kind in raised.items() if kind.exit_code != 1}
    assert codes == {
        "ConfigError": 2,
        "UnknownModelError": 2,
        "InterruptedRunError": 130,
        "AwaitingAnswers": 75,
    }


def test_the_typed_usage_file_uses_every_public_name() -> None:
    tree = ast.parse((ROOT / "tests/typing/usage.py").read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert used >= {*engine.__all__, *adapters.__all__}
