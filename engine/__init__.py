"""The engine of pld: compile a labelled set into a prompt, prove what it is worth, classify with it.

    from adapters import open_models, open_student
    from engine import classify, compile_prompt, evaluate, load_prompt

Models are passed in; nothing here knows a vendor, HTTP or a terminal. Names load when first used, so that
`import engine` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.blocking import classify_sync, compile_prompt_sync, evaluate_sync, sweep_sync
    from engine.bulk import ClassifyResult, classify
    from engine.config import Config
    from engine.config_file import load_config
    from engine.distillation.evaluation import Evaluation
    from engine.distillation.judging import evaluate
    from engine.distillation.pipeline import compile_prompt
    from engine.distillation.result import CompileResult
    from engine.distillation.sweeping import sweep
    from engine.distillation.swept import SweepResult
    from engine.errors import PldError
    from engine.prompt import CompiledPrompt
    from engine.stopping import StopSignal
    from engine.store.compiled import load_calibration, load_prompt

__all__ = [
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

_HOMES = {
    "ClassifyResult": "engine.bulk",
    "CompileResult": "engine.distillation.result",
    "CompiledPrompt": "engine.prompt",
    "Config": "engine.config",
    "Evaluation": "engine.distillation.evaluation",
    "PldError": "engine.errors",
    "StopSignal": "engine.stopping",
    "SweepResult": "engine.distillation.swept",
    "classify": "engine.bulk",
    "classify_sync": "engine.blocking",
    "compile_prompt_sync": "engine.blocking",
    "evaluate_sync": "engine.blocking",
    "sweep_sync": "engine.blocking",
    "compile_prompt": "engine.distillation.pipeline",
    "evaluate": "engine.distillation.judging",
    "sweep": "engine.distillation.sweeping",
    "load_calibration": "engine.store.compiled",
    "load_config": "engine.config_file",
    "load_prompt": "engine.store.compiled",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
