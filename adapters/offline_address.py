"""Addresses of models that vLLM runs in this process: `vllm-offline:MODEL[?SETTING=VALUE&…]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson

from engine.errors import UnknownModelError

_FORM = (
    "write vllm-offline:PATH with a model's folder (or its name on the Hugging Face Hub), settings of vLLM's "
    "engine behind it as in vllm-offline:PATH?max_model_len=8192&tensor_parallel_size=2"
)
_OURS = {"model", "enable_prefix_caching", "disable_log_stats"}


@dataclass(frozen=True, slots=True)
class OfflineAddress:
    """A model's folder or name, and settings of vLLM's engine, by their names in `vllm.EngineArgs`."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    written: str = ""

    @property
    def name(self) -> str:
        """What cache keys call it: the address as it was written."""
        return f"vllm-offline:{self.written or self.model}"


def parse_offline(address: str) -> OfflineAddress:
    """Take `vllm-offline:MODEL?SETTING=VALUE&…` apart; a value is JSON where it reads as that, else text.

    Raises `UnknownModelError` with one line that says what is wrong.
    """
    _, _, rest = address.partition(":")
    model, _, query = rest.partition("?")
    if not model or model != model.strip() or not rest.isprintable() or "://" in model:
        raise UnknownModelError(f"vllm-offline: {model!r} is no model; {_FORM}")
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        pairs = parse_qsl(part, keep_blank_values=True)
        name, value = pairs[0] if len(pairs) == 1 else ("", "")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not value or name in options:
            raise UnknownModelError(f"vllm-offline: {part!r} is no setting; {_FORM}")
        if name in _OURS:
            raise UnknownModelError(f"vllm-offline: {name} is pld's to set; leave it out")
        options[name] = _value(value)
    return OfflineAddress(model, options, rest)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"True": True, "False": False}.get(text, text)
