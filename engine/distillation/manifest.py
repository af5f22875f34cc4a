"""manifest.json: what went into a run, what came out, and what it took."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config_file import parse_config
from engine.errors import RunError
from engine.ports import Models
from engine.store import Dataset, RunDirectory
from engine.store.rundir import MANIFEST

FORMAT = 1
KIND = "compilation"
ROLES = ("teacher", "synthesizer", "resolver", "embedder", "student")
_PACKAGES = ("pld-engine", "numpy", "faiss-cpu", "scikit-learn", "polars")


class Manifest:
    """Collects the manifest of one compilation.

    Everything under `activity` (times, costs, what was sent and what came from the cache) may differ
    between two runs of the same inputs; everything else may not (C12).
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        models: Models,
        previous: Mapping[str, Any] | None,
        *,
        faithful: bool,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._models = {role: getattr(models, role).name for role in ROLES}
        self._previous = previous
        self._recipe = "faithful" if faithful else "pld"
        self.stages: dict[str, dict[str, Any]] = {}
        self.prompt: dict[str, Any] | None = None
        self.validation: dict[str, Any] | None = None

    def changes(self) -> Iterator[str]:
        """What differs from the compilation that this directory held before, a line each."""
        old = self._previous
        if old is None:
            return
        if old["data"]["sha256"] != self._dataset.sha256:
            yield "the data changed since the last compilation here; only what that changes is asked again"
        if old["config"] != self._settings():
            yield "the configuration changed since the last compilation here"
        renamed = [role for role in ROLES if old["models"][role] != self._models[role]]
        if renamed:
            yield (
                f"{', '.join(renamed)}: not the model of last time (local models are fitted anew when "
                "training rows change), so its earlier answers do not count"
            )

    def to_json(
        self, *, state: str, stages: Mapping[str, Mapping[str, Any]], seconds: float
    ) -> dict[str, Any]:
        """The document as it stands."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "state": state,
            "recipe": self._recipe,
            "task": self._config.task.name,
            "config": self._settings(),
            "base": str(self._config.base),
            "data": {
                "sha256": self._dataset.sha256,
                "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self._dataset.files],
                "rows": {
                    split: len(getattr(self._dataset, split)) for split in ("train", "validation", "test")
                },
                "set_aside": len(self._dataset.rejected),
            },
            "models": self._models,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
            "stages": self.stages,
            "prompt": self.prompt,
            "validation": self.validation,
            "activity": {"seconds": round(seconds, 3), "stages": stages},
        }

    def _settings(self) -> dict[str, Any]:
        return self._config.model_dump(mode="json", exclude_unset=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_task(run: RunDirectory, config: Config) -> dict[str, Any] | None:
    """The manifest that the directory holds, if any.

    Raises `RunError` where it belongs to another task: compiling there would overwrite somebody else's
    prompt.
    """
    if not run.has(MANIFEST):
        return None
    previous = _read(run)
    if previous["task"] != config.task.name:
        raise RunError(
            f"{run.path}: holds the task {previous['task']!r}, not {config.task.name!r}; "
            "choose another directory with --run"
        )
    return previous


def load_run_config(run: RunDirectory) -> Config:
    """The configuration that a run directory was compiled with. Raises `RunError` where there is none."""
    document = _read(run)
    return parse_config(document["config"], base=Path(document["base"]), source=str(run.path / MANIFEST))


def _read(run: RunDirectory) -> dict[str, Any]:
    document = run.read_manifest()
    if document.get("kind") != KIND:
        raise RunError(f"{run.path}: holds no compilation; choose another directory")
    found = document.get("format")
    if found != FORMAT:
        raise RunError(f"{run.path / MANIFEST}: format {found!r} is not known to this version ({FORMAT})")
    return document
