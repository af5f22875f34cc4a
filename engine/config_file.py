"""The configuration file: read, validated, and what is wrong with it in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.config import (
    ClusterConfig,
    Config,
    DataConfig,
    EmbedderConfig,
    ModelConfig,
    PriceConfig,
    ResolveConfig,
    RunConfig,
    TaskConfig,
    nearest,
)
from engine.errors import ConfigError


def load_config(path: str | Path) -> Config:
    """Read and validate a configuration file. Raises `ConfigError` with one clear line."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such configuration file") from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{path}: is a folder; name the .toml file in it") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not a TOML file: it is not UTF-8 text") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    return parse_config(raw, base=path.resolve().parent, source=str(path))


def parse_config(raw: dict[str, Any], *, base: Path, source: str = "configuration") -> Config:
    """Validate an already parsed configuration; `base` is where its relative paths start."""
    if "base" in raw:
        raise ConfigError(f"{source}: unknown key 'base'{nearest('base', _TABLES)}")
    try:
        return Config.model_validate({**raw, "base": base})
    except ValidationError as exc:
        raise ConfigError(f"{source}: {_first_problem(exc)}") from exc


_TABLES = {name: field for name, field in Config.model_fields.items() if name != "base"}


def _first_problem(exc: ValidationError) -> str:
    # an unknown key is often the cause of the others (a misspelt required key), so it goes first
    errors = sorted(exc.errors(), key=lambda e: e["type"] != "extra_forbidden")
    error = errors[0]
    where = [str(part) for part in error["loc"] if part != "[key]"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if error["type"] == "extra_forbidden":
        *table, key = where
        place = f" in [{'.'.join(table)}]" if table else ""
        return f"unknown key {key!r}{place}{nearest(key, _known_keys(table))}{more}"
    if error["type"] == "missing":
        return f"{'.'.join(where)} is missing{more}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(where)}: {message}{more}" if where else f"{message}{more}"


def _known_keys(table: list[str]) -> list[str]:
    if not table:
        return list(_TABLES)
    tables: dict[str, type[BaseModel]] = {
        "task": TaskConfig,
        "data": DataConfig,
        "embedder": EmbedderConfig,
        "cluster": ClusterConfig,
        "resolve": ResolveConfig,
        "run": RunConfig,
        "prices": PriceConfig,
    }
    return list(tables.get(table[0], ModelConfig).model_fields)
