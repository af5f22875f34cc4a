"""The kinds of models there are, by the schemes of their addresses, and the settings that each kind takes."""

from __future__ import annotations

from adapters import gemini_models
from adapters.addresses import (
    RemoteAddress,
    parse_answer_files,
    parse_gemini,
    parse_openai,
    parse_vllm,
)
from adapters.offline_address import parse_offline
from adapters.openai_models import level_of
from engine.config import EmbedderConfig, ModelConfig
from engine.errors import ConfigError, UnknownModelError

SCHEMES = {
    "local": "keyword-rule models that need no key, account or GPU (address: local:)",
    "vllm": "models behind vLLM servers (vllm:NAME@http://host:port/v1, replicas with commas)",
    "vllm-offline": "models that vLLM runs in this process (vllm-offline:PATH, settings of its engine behind "
    "it as in vllm-offline:PATH?max_model_len=8192)",
    "openai": "models behind a server that speaks OpenAI's API (openai:NAME@http://host:port/v1; openai:NAME "
    "alone is one of api.openai.com)",
    "gemini": "models of Google's Gemini API or of Vertex AI (gemini:NAME)",
    "answer-files": "whoever answers files in OpenAI's batch format (answer-files:DIR, or "
    "answer-files:NAME@DIR)",
}
_PARSERS = {"openai": parse_openai, "vllm": parse_vllm, "gemini": parse_gemini}
# of no use where files are written, and nothing is sent
_NOT_FOR_FILES = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "timeout_s",
    "api_key_env",
    "thinking",
    "too_long",
)
_TAKES_TOO_LONG = ("vllm", "vllm-offline")


# --- addresses --------------------------------------------------------------------------------------


def scheme_of(address: str) -> str:
    """The scheme of a model address.

    Raises `UnknownModelError` for one that is not known, listing the known ones, and for a malformed address.
    """
    scheme, colon, rest = address.partition(":")
    if not colon or scheme not in SCHEMES:
        known = "; ".join(f"{name}: {what}" for name, what in SCHEMES.items())
        shown = address.partition("@")[0]  # what follows may hold a password
        raise UnknownModelError(f"{shown!r} is not the address of a known kind of model; known: {known}")
    if scheme == "local" and rest:
        raise UnknownModelError(f"{address!r}: the local models have no variants; write 'local:'")
    if scheme in _PARSERS:
        _PARSERS[scheme](address)
    if scheme == "answer-files":
        parse_answer_files(address)
    if scheme == "vllm-offline":
        parse_offline(address)
    return scheme


def is_local(address: str) -> bool:
    """Whether an address names a local keyword-rule model."""
    return scheme_of(address) == "local"


def in_process(address: str) -> bool:
    """Whether an address names a model that runs in this process: no server, no key, no price."""
    return scheme_of(address) in ("local", "vllm-offline")


def is_answer_files(address: str) -> bool:
    """Whether an address names a folder of requests and answers."""
    return scheme_of(address) == "answer-files"


def remote_of(address: str) -> RemoteAddress:
    """The parts of an address of a model behind a server. Raises `KeyError` for one that is not."""
    return _PARSERS[scheme_of(address)](address)


def urls_of(address: str) -> tuple[str, ...]:
    """The servers of an address; none where there is no server."""
    return remote_of(address).urls if scheme_of(address) in _PARSERS else ()


# --- settings ---------------------------------------------------------------------------------------


def check_answer_files(settings: ModelConfig) -> None:
    """Raise `ConfigError` for an embedder, and for a setting that files have no use for."""
    if isinstance(settings, EmbedderConfig):
        raise ConfigError(
            f"{settings.model}: answer files hold what models write, no vectors; choose local:, openai:NAME "
            "or gemini:NAME for [embedder]"
        )
    for name in _NOT_FOR_FILES:
        if getattr(settings, name) != ModelConfig.model_fields[name].default:
            raise ConfigError(f"{settings.model}: takes no `{name}`; whoever answers the files sees to that")


def check_settings(settings: ModelConfig) -> None:
    """Raise `ConfigError` for a setting that a model, other than answer files, does not take."""
    scheme = scheme_of(settings.model)
    if scheme == "vllm" and isinstance(settings, EmbedderConfig):
        openai = settings.model.replace("vllm:", "openai:", 1)
        raise ConfigError(f"{settings.model}: that is for models that write; for [embedder] write {openai}")
    if scheme == "vllm-offline" and isinstance(settings, EmbedderConfig):
        raise ConfigError(
            f"{settings.model}: that is for models that write; for [embedder] choose local:, openai:NAME or "
            "gemini:NAME"
        )
    if settings.too_long != "fail" and scheme not in _TAKES_TOO_LONG:
        takers = " and ".join(f"{name}:" for name in _TAKES_TOO_LONG)
        raise ConfigError(f"{settings.model}: takes no `too_long`; that is for {takers} models")
    if settings.thinking is None:
        return
    match scheme:
        case "gemini":
            gemini_models.check_thinking(remote_of(settings.model).name, settings.thinking)
        case "openai" | "vllm":
            level_of(settings.model, settings.thinking)
        case _:
            raise ConfigError(
                f"{settings.model}: takes no `thinking`; that is for gemini:, openai: and vllm: models"
            )
