"""The composition root: model addresses to models. The only place that knows which adapter a scheme means.

An address is `SCHEME:REST`.

- `local:` has no rest: it names the keyword-rule models of `adapters.local`, which need no key, account or
  GPU. Their teacher and embedder are fitted on the training rows, into `local.json` of the run.
- `openai:NAME` is a model of api.openai.com, `openai:NAME@http://host:port/v1[,…]` one of other servers that
  speak OpenAI's API.
- `gemini:NAME` is a model of Google's Gemini API, or of Vertex AI where GOOGLE_GENAI_USE_VERTEXAI (or
  GOOGLE_GENAI_USE_ENTERPRISE) is `true`; `gemini:NAME@http://host:port` one of a server that speaks the
  Gemini API.
- `answer-files:DIR` is a folder where requests are written and answers read, as files;
  `answer-files:NAME@DIR` names the model in the requests.

Keys come from the environment: OPENAI_API_KEY goes to api.openai.com, GEMINI_API_KEY (or GOOGLE_API_KEY) to
the Gemini API, and both nowhere else; any other server gets the key in the variable that `api_key_env`
names, or none. For Vertex AI the SDK finds project, location and credentials in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.addresses import (
    GEMINI_HOST,
    OPENAI_HOST,
    RemoteAddress,
    parse_answer_files,
    parse_gemini,
    parse_openai,
)
from adapters.gemini_models import check_thinking
from adapters.local import FIT_FILE, LocalEmbedder, LocalFit, LocalStudent, LocalTeacher, fit_local
from adapters.openai_models import level_of
from adapters.prices import price_of
from engine.config import ChatRole, Config, EmbedderConfig, ModelConfig, PriceConfig
from engine.errors import BudgetError, ConfigError, ModelError, UnknownModelError
from engine.ports import FREE, AnyChatModel, ChatModel, Embedder, Models, Price
from engine.store import RunDirectory
from engine.types import Sample

if TYPE_CHECKING:
    from adapters.gemini_client import Access

SCHEMES = {
    "local": "keyword-rule models that need no key, account or GPU (address: local:)",
    "openai": "models behind a server that speaks OpenAI's API (openai:NAME@http://host:port/v1; openai:NAME "
    "alone is one of api.openai.com)",
    "gemini": "models of Google's Gemini API or of Vertex AI (gemini:NAME)",
    "answer-files": "whoever answers files in OpenAI's batch format (answer-files:DIR, or "
    "answer-files:NAME@DIR)",
}
_PARSERS = {"openai": parse_openai, "gemini": parse_gemini}
_KEYS = {OPENAI_HOST: ("OPENAI_API_KEY",), GEMINI_HOST: ("GEMINI_API_KEY", "GOOGLE_API_KEY")}
_VERTEX = ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI")
# of no use where files are written, and nothing is sent
_NOT_FOR_FILES = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "timeout_s",
    "api_key_env",
    "thinking",
)
_ROLES: tuple[ChatRole, ...] = ("teacher", "synthesizer", "resolver", "student")


# --- before anything is opened ----------------------------------------------------------------------


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
    return scheme


def is_local(address: str) -> bool:
    """Whether an address names a local keyword-rule model."""
    return scheme_of(address) == "local"


def is_answer_files(address: str) -> bool:
    """Whether an address names a folder of requests and answers."""
    return scheme_of(address) == "answer-files"


def check_addresses(config: Config) -> None:
    """Raise `UnknownModelError` for an address that no adapter knows; nothing is opened.

    `ConfigError` where answer files are to embed.
    """
    for settings in _all_settings(config):
        if is_answer_files(settings.model):
            _check_answer_files(settings)


def check_models(config: Config, max_cost_usd: float | None) -> None:
    """Find what would stop a run before its first request, without opening or writing anything.

    Raises `UnknownModelError` for an address, `ConfigError` for a setting that the model does not take,
    `ModelError` for a key that is not in the environment, and `BudgetError` for a model without a known price
    under a cap (`max_cost_usd`, or the configuration's).
    """
    cap = config.run.max_cost_usd if max_cost_usd is None else max_cost_usd
    for settings in _all_settings(config):
        check_model(settings, config.prices, cap)


def check_model(settings: ModelConfig, prices: Mapping[str, PriceConfig], max_cost_usd: float | None) -> None:
    """`check_models` for one model, under the cap `max_cost_usd`."""
    if is_answer_files(settings.model):
        _check_answer_files(settings)
        return
    _check_thinking(settings)
    if is_local(settings.model):
        return
    address = _remote(settings.model)
    _key(address, settings)
    if max_cost_usd is not None and _price(address, prices) is None:
        raise BudgetError(
            f"the price of {address.name} is unknown, so the cap of ${max_cost_usd:g} cannot be kept; add "
            f'[prices."{address.name}"] with input = … and output = … (US dollars per million tokens) to the '
            "configuration, choose another model, or run without a cap"
        )


def settings_of(settings: ModelConfig, address: str | None) -> ModelConfig:
    """The settings with another address in place of the configured one (None: that one).

    The key that was named for the configured servers goes to no others, and how much one kind of model may
    think says nothing of another.
    """
    if address is None or address == settings.model:
        return settings
    if is_answer_files(address):
        return ModelConfig(model=address, max_input_tokens=settings.max_input_tokens)
    key = settings.api_key_env if _urls(address) == _urls(settings.model) else None
    thinking = settings.thinking if scheme_of(address) == scheme_of(settings.model) else None
    return settings.model_copy(update={"model": address, "api_key_env": key, "thinking": thinking})


# --- opening ----------------------------------------------------------------------------------------


def open_student(model: str | ModelConfig, prices: Mapping[str, PriceConfig] | None = None) -> ChatModel:
    """The student at an address, or with the settings of a configuration's `[student]`.

    `prices` goes before the built-in price table. Raises `UnknownModelError` for an address that no adapter
    knows, `ConfigError` for a setting that the model does not take and for a model that does not answer at
    once, and `ModelError` for a key that is not in the environment.
    """
    settings = ModelConfig(model=model) if isinstance(model, str) else model
    if is_answer_files(settings.model):
        raise ConfigError(
            f"{settings.model}: answers in files come hours later, and rows in bulk want a student that "
            "answers at once; name another one (--student), such as local: or openai:NAME@http://host:port/v1"
        )
    _check_thinking(settings)
    return LocalStudent() if is_local(settings.model) else _open_chat(settings, prices or {})


def open_judged(settings: ModelConfig, prices: Mapping[str, PriceConfig], base: Path) -> AnyChatModel:
    """The student that `evaluate` asks: like `open_student`, or one whose answers come in files.

    `base` is the configuration's folder. Raises as `open_student` does.
    """
    if is_answer_files(settings.model):
        return _open_answer_files(settings, base)
    return open_student(settings, prices)


def open_models(config: Config, train: Sequence[Sample], run: RunDirectory) -> Models:
    """All models of a run, for `engine.compile_prompt`.

    `train` are the training rows; where a role is local, its model is fitted on them, into `local.json` of
    the locked run directory `run`. Roles with the same settings share one model. Raises as `open_student`
    does, before anything is fitted.
    """
    for settings in _all_settings(config):
        check_model(settings, config.prices, None)
    opened = _Opened(config, train, run)
    return Models(
        teacher=opened.writer(config.role("teacher")),
        synthesizer=opened.writer(config.role("synthesizer")),
        resolver=opened.writer(config.role("resolver")),
        embedder=opened.embedder(config.embedder),
        student=LocalStudent() if is_local(config.student.model) else opened.other(config.student),
    )


class _Opened:
    """The models of one run, each opened when a role first needs it."""

    def __init__(self, config: Config, train: Sequence[Sample], run: RunDirectory) -> None:
        self._config = config
        self._train = train
        self._run = run
        self._others: dict[ModelConfig, AnyChatModel] = {}

    def writer(self, settings: ModelConfig) -> AnyChatModel:
        return self._local_writer if is_local(settings.model) else self.other(settings)

    def embedder(self, settings: EmbedderConfig) -> Embedder:
        if is_local(settings.model):
            return LocalEmbedder(self._fit)
        return _open_embedder(settings, self._config.prices)

    def other(self, settings: ModelConfig) -> AnyChatModel:
        if settings not in self._others:
            if is_answer_files(settings.model):
                self._others[settings] = _open_answer_files(settings, self._config.base)
            else:
                self._others[settings] = _open_chat(settings, self._config.prices)
        return self._others[settings]

    @cached_property
    def _local_writer(self) -> ChatModel:
        return LocalTeacher(self._fit)

    @cached_property
    def _fit(self) -> LocalFit:
        config = self._config
        fit = fit_local(self._train, config.labels, config.run.seed, config.embedder.dimensions)
        self._run.write_bytes(FIT_FILE, fit.document)
        return fit


def _open_chat(settings: ModelConfig, prices: Mapping[str, PriceConfig]) -> ChatModel:
    address = _remote(settings.model)
    key, price, most = _key(address, settings), _price(address, prices), settings.max_input_tokens
    if scheme_of(settings.model) == "gemini":
        from adapters.gemini import GeminiChat  # noqa: PLC0415 - a second to load: only where it is used

        access = _access(address, settings, key)
        return GeminiChat(
            address.name, access, thinking=settings.thinking, price=price, max_input_tokens=most
        )
    from adapters.openai_compatible import OpenAICompatibleChat  # noqa: PLC0415 - aiohttp only where it is used

    hint = _key_hint(address, settings)
    level = level_of(settings.model, settings.thinking)
    return OpenAICompatibleChat(
        address, thinking=level, api_key=key, key_hint=hint, price=price, max_input_tokens=most
    )


def _open_answer_files(settings: ModelConfig, base: Path) -> AnyChatModel:
    from adapters.answer_files import AnswerFiles  # noqa: PLC0415 - it shares code with the HTTP adapter

    _check_answer_files(settings)
    address = parse_answer_files(settings.model)
    return AnswerFiles(
        base / address.folder,
        name=address.name,
        model=address.model,
        max_input_tokens=settings.max_input_tokens,
    )


def _open_embedder(settings: EmbedderConfig, prices: Mapping[str, PriceConfig]) -> Embedder:
    address = _remote(settings.model)
    key, price, dimensions = _key(address, settings), _price(address, prices), settings.dimensions
    if scheme_of(settings.model) == "gemini":
        from adapters.gemini import GeminiEmbedder  # noqa: PLC0415 - likewise

        access = _access(address, settings, key)
        return GeminiEmbedder(address.name, access, dimensions=dimensions, price=price)
    from adapters.openai_compatible import OpenAICompatibleEmbedder  # noqa: PLC0415 - likewise

    hint = _key_hint(address, settings)
    return OpenAICompatibleEmbedder(address, dimensions=dimensions, api_key=key, key_hint=hint, price=price)


def _access(address: RemoteAddress, settings: ModelConfig, key: str | None) -> Access:
    from adapters.gemini_client import Access  # noqa: PLC0415 - likewise

    vertex, hint = _on_vertex(address), _key_hint(address, settings)
    return Access(url=address.urls[0], vertex=vertex, api_key=key, key_hint=hint)


def _check_answer_files(settings: ModelConfig) -> None:
    """Raise `ConfigError` for an embedder, and for a setting that files have no use for."""
    if isinstance(settings, EmbedderConfig):
        raise ConfigError(
            f"{settings.model}: answer files hold what models write, no vectors; choose local:, openai:NAME "
            "or gemini:NAME for [embedder]"
        )
    for name in _NOT_FOR_FILES:
        if getattr(settings, name) != ModelConfig.model_fields[name].default:
            raise ConfigError(f"{settings.model}: takes no `{name}`; whoever answers the files sees to that")


def _check_thinking(settings: ModelConfig) -> None:
    """Raise `ConfigError` where a model does not take the setting."""
    if settings.thinking is None:
        return
    match scheme_of(settings.model):
        case "gemini":
            check_thinking(_remote(settings.model).name, settings.thinking)
        case "openai":
            level_of(settings.model, settings.thinking)
        case _:
            raise ConfigError(
                f"{settings.model}: takes no `thinking`; that is for gemini: and openai: models"
            )


# --- keys and prices --------------------------------------------------------------------------------


def _remote(address: str) -> RemoteAddress:
    return _PARSERS[scheme_of(address)](address)


def _on_vertex(address: RemoteAddress) -> bool:
    """Whether the environment sends Google's models to Vertex AI, read as the SDK reads it."""
    told = next((os.environ[name] for name in _VERTEX if name in os.environ), "")
    return GEMINI_HOST in address.hosts and told.lower() in ("true", "1")


def _key_variables(address: RemoteAddress, settings: ModelConfig) -> tuple[str, ...]:
    """The environment variables that may hold the key; the first that is set counts."""
    if settings.api_key_env is not None:
        return (settings.api_key_env,)
    if _on_vertex(address):
        return ()
    return next((names for host, names in _KEYS.items() if host in address.hosts), ())


def _key(address: RemoteAddress, settings: ModelConfig) -> str | None:
    """The key for the servers of an address, None where they get none. Raises `ModelError` without it."""
    variables = _key_variables(address, settings)
    if not variables:
        return None
    for variable in variables:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(
                f"{settings.model}: what the environment variable {variable} holds cannot be a key"
            )
        if key:
            return key
    raise ModelError(
        f"{settings.model}: its key is missing: set the environment variable {' or '.join(variables)}"
    )


def _key_hint(address: RemoteAddress, settings: ModelConfig) -> str:
    variables = _key_variables(address, settings)
    if variables:
        return f"check the environment variable {' or '.join(variables)}"
    if _on_vertex(address):
        return (
            "set GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION, and log in with `gcloud auth "
            "application-default login`"
        )
    return "name the environment variable that holds the key in api_key_env"


def _price(address: RemoteAddress, prices: Mapping[str, PriceConfig]) -> Price | None:
    # a server on this machine may hand on to a provider: a name that has a price keeps it
    return price_of(address.name, prices) or (FREE if address.loopback else None)


def _urls(address: str) -> tuple[str, ...]:
    return _remote(address).urls if scheme_of(address) in _PARSERS else ()


def _all_settings(config: Config) -> tuple[ModelConfig, ...]:
    return (*(config.role(role) for role in _ROLES), config.embedder)
