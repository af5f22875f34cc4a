"""The compiled prompt in its run directory: `prompt.json`, and `prompt.md` as the student gets it.

Beside it `calibration.json`: how sure this student may be of its answers to it.
"""

from __future__ import annotations

from pathlib import Path

from engine.confidence import Calibration
from engine.errors import RunError
from engine.prompt import CompiledPrompt
from engine.store.rundir import RunDirectory

CALIBRATION = "calibration.json"


def save_prompt(run: RunDirectory, prompt: CompiledPrompt) -> None:
    """Write both files; `prompt.md` last, so a run that was killed between them is seen as not compiled."""
    run.write_json("prompt.json", prompt.to_json())
    run.write_bytes("prompt.md", prompt.text.encode("utf-8", "surrogatepass"))


def load_prompt(run: str | Path) -> CompiledPrompt:
    """The prompt of a compiled run.

    Raises `RunError` where there is none yet, or where `prompt.md` no longer holds the text that was
    compiled.
    """
    directory = RunDirectory.open(run)
    if not directory.has("prompt.md"):
        raise RunError(f"{directory.path}: holds no compiled prompt yet; run `pld compile`")
    prompt = CompiledPrompt.from_json(directory.read_json("prompt.json"), f"{directory.path}/prompt.json")
    if directory.read_bytes("prompt.md") != prompt.text.encode("utf-8", "surrogatepass"):
        raise RunError(
            f"{directory.path}/prompt.md: differs from prompt.json, which says where each instruction comes "
            "from; compile again to restore it"
        )
    return prompt


def load_optional_prompt(run: RunDirectory, name: str) -> CompiledPrompt | None:
    """A prompt kept by `--ablation` under `ablation/NAME.json`, or None."""
    path = f"ablation/{name}.json"
    if not run.has(path):
        return None
    return CompiledPrompt.from_json(run.read_json(path), f"{run.path}/{path}")


def save_calibration(run: RunDirectory, calibration: Calibration) -> None:
    """Write `calibration.json`."""
    run.write_json(CALIBRATION, calibration.to_json())


def load_calibration(run: str | Path) -> Calibration | None:
    """What validation said of the student's confidence; None where the run has none.

    Raises `RunError` where the file is none that this version writes.
    """
    directory = RunDirectory.open(run)
    if not directory.has(CALIBRATION):
        return None
    return Calibration.from_json(directory.read_json(CALIBRATION), f"{directory.path}/{CALIBRATION}")
