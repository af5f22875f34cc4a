"""The composition root: model addresses to models. The only place that knows which adapter a scheme means.

An address is `SCHEME:REST`.

- `local:` has no rest: it names the keyword-rule models of `adapters.local`, which need no key, account or
  GPU. Their teacher and embedder are fitted on the training rows, into `local.json` of the run.
- `openai:NAME` is a model of api.openai.com, `openai:NAME@http://host:port/v1[,…]` one of other servers that
  speak OpenAI's API.
- `vllm:NAME@http://host:port/v1[,…]` is a model behind one vLLM server or several replicas.
- `vllm-offline:PATH` is a model that vLLM runs in this process, settings of its engine behind it
  (`vllm-offline:PATH?max_model_len=8192`).
- `gemini:NAME` is a model of Google's Gemini API, or of Vertex AI where GOOGLE_GENAI_USE_VERTEXAI (or
  GOOGLE_GENAI_USE_ENTERPRISE) is `true`; `gemini:NAME@http://host:port` one of a server that speaks the
  Gemini API.
- `answer-files:DIR` is a folder where requests are written and answers read, as files;
  `answer-files:NAME@DIR` names the model in the requests.

See `adapters.accounts` for where keys come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.accounts import key_hint_of, key_of, known_price, on_vertex
from adapters.addresses import RemoteAddress, parse_answer_files
from adapters.local import FIT_FILE, LocalEmbedder, LocalFit, LocalStudent, LocalTeacher, fit_local
from adapters.offline_address import parse_offline
from adapters.openai_models import level_of
from adapters.schemes import (
    check_answer_files,
    check_settings,
    in_process,
    is_answer_files,
    is_local,
    remote_of,
    scheme_of,
    urls_of,
)
from engine.config import ChatRole, Config, EmbedderConfig, ModelConfig, PriceConfig
from engine.errors import BudgetError, ConfigError
from engine.ports import AnyChatModel, ChatModel, Embedder, Models
from engine.store import RunDirectory
from engine.types import Sample

if TYPE_CHECKING:
    from adapters.gemini_client import Access

__all__ = [
    "check_addresses",
    "check_model",
    "check_models",
    "is_local",
    "open_judged",
    "open_models",
    "open_student",
    "scheme_of",
    "settings_of",
]
_ROLES: tuple[ChatRole, ...] = ("teacher", "synthesizer", "resolver", "student")


# --- before anything is opened ----------------------------------------------------------------------


def check_addresses(config: Config) -> None:
    """Raise `UnknownModelError` for an address that no adapter knows; nothing is opened.

    `ConfigError` where answer files are to embed.
    """
    for settings in _all_settings(config):
        if is_answer_files(settings.model):
            check_answer_files(settings)


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
        check_answer_files(settings)
        return
    check_settings(settings)
    if in_process(settings.model):
        return
    address = remote_of(settings.model)
    key_of(address, settings)
    if max_cost_usd is not None and known_price(address, prices) is None:
        raise BudgetError(
            f"the price of {address.name} is unknown, so the cap of ${max_cost_usd:g} cannot be kept; add "
            f'[prices."{address.name}"] with input = … and output = … (US dollars per million tokens) to the '
            "configuration, choose another model, or run without a cap"
        )


def settings_of(settings: ModelConfig, address: str | None) -> ModelConfig:
    """The settings with another address in place of the configured one (None: that one).

    The key that was named for the configured servers goes to no others, and how much one kind of model may
    think, or what becomes of texts that are too long for it, says nothing of another.
    """
    if address is None or address == settings.model:
        return settings
    if is_answer_files(address):
        return ModelConfig(model=address, max_input_tokens=settings.max_input_tokens)
    key = settings.api_key_env if urls_of(address) == urls_of(settings.model) else None
    update = {"model": address, "api_key_env": key}
    if scheme_of(address) != scheme_of(settings.model):
        update |= {name: ModelConfig.model_fields[name].default for name in ("thinking", "too_long")}
    return settings.model_copy(update=update)


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
    check_settings(settings)
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
    if scheme_of(settings.model) == "vllm-offline":
        from adapters.vllm_offline import VllmOffline  # noqa: PLC0415 - likewise

        return VllmOffline(
            parse_offline(settings.model),
            too_long=settings.too_long,
            max_input_tokens=settings.max_input_tokens,
        )
    address = remote_of(settings.model)
    key, price, most = key_of(address, settings), known_price(address, prices), settings.max_input_tokens
    if scheme_of(settings.model) == "gemini":
        from adapters.gemini import GeminiChat  # noqa: PLC0415 - a second to load: only where it is used

        access = _access(address, settings, key)
        return GeminiChat(
            address.name, access, thinking=settings.thinking, price=price, max_input_tokens=most
        )
    hint = key_hint_of(address, settings)
    level = level_of(settings.model, settings.thinking)
    if scheme_of(settings.model) == "vllm":
        from adapters.vllm import VllmChat  # noqa: PLC0415 - aiohttp only where it is used

        return VllmChat(
            address,
            thinking=level,
            too_long=settings.too_long,
            api_key=key,
            key_hint=hint,
            price=price,
            max_input_tokens=most,
        )
    from adapters.openai_compatible import OpenAICompatibleChat  # noqa: PLC0415 - likewise

    return OpenAICompatibleChat(
        address, thinking=level, api_key=key, key_hint=hint, price=price, max_input_tokens=most
    )


def _open_answer_files(settings: ModelConfig, base: Path) -> AnyChatModel:
    from adapters.answer_files import AnswerFiles  # noqa: PLC0415 - it shares code with the HTTP adapter

    check_answer_files(settings)
    address = parse_answer_files(settings.model)
    return AnswerFiles(
        base / address.folder,
        name=address.name,
        model=address.model,
        max_input_tokens=settings.max_input_tokens,
    )


def _open_embedder(settings: EmbedderConfig, prices: Mapping[str, PriceConfig]) -> Embedder:
    address = remote_of(settings.model)
    key, price, dimensions = key_of(address, settings), known_price(address, prices), settings.dimensions
    if scheme_of(settings.model) == "gemini":
        from adapters.gemini import GeminiEmbedder  # noqa: PLC0415 - likewise

        access = _access(address, settings, key)
        return GeminiEmbedder(address.name, access, dimensions=dimensions, price=price)
    from adapters.openai_compatible import OpenAICompatibleEmbedder  # noqa: PLC0415 - likewise

    hint = key_hint_of(address, settings)
    return OpenAICompatibleEmbedder(address, dimensions=dimensions, api_key=key, key_hint=hint, price=price)


def _access(address: RemoteAddress, settings: ModelConfig, key: str | None) -> Access:
    from adapters.gemini_client import Access  # noqa: PLC0415 - likewise

    vertex, hint = on_vertex(address), key_hint_of(address, settings)
    return Access(url=address.urls[0], vertex=vertex, api_key=key, key_hint=hint)


def _all_settings(config: Config) -> tuple[ModelConfig, ...]:
    return (*(config.role(role) for role in _ROLES), config.embedder)
