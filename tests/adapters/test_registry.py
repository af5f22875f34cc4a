"""From addresses to models: what is accepted, which key goes where, what is shared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.addresses import (
    GEMINI_HOST,
    GEMINI_URL,
    OPENAI_URL,
    RemoteAddress,
    parse_gemini,
    parse_openai,
)
from adapters.gemini import GeminiChat, GeminiEmbedder
from adapters.gemini_client import Access
from adapters.local import FIT_FILE, LocalEmbedder, LocalStudent, LocalTeacher
from adapters.openai_compatible import OpenAICompatibleChat, OpenAICompatibleEmbedder
from adapters.registry import (
    check_addresses,
    check_model,
    check_models,
    is_local,
    open_models,
    open_student,
    scheme_of,
    settings_of,
)
from adapters.schemes import SCHEMES
from adapters.vllm import VllmChat
from engine.config import Config, EmbedderConfig, ModelConfig, PriceConfig
from engine.config_file import parse_config
from engine.errors import BudgetError, ConfigError, ModelError, UnknownModelError
from engine.ports import FREE, Models, Price
from engine.store import RunDirectory, load_dataset
from tests.adapters.responding import http, responding
from tests.support import corpus
from tests.support.fakes import request

KEY = "sk-planted-2718281828"
HERE = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "MY_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "GOOGLE_GENAI_USE_VERTEXAI",
        "GOOGLE_GENAI_USE_ENTERPRISE",
    ):
        monkeypatch.delenv(name, raising=False)


def config(folder: Path, **tables: dict[str, Any]) -> Config:
    made = corpus.config(folder)
    return parse_config({**made.model_dump(exclude_unset=True), **tables}, base=folder)


def opened(folder: Path, **tables: dict[str, Any]) -> Models:
    settings = config(folder, **tables)
    run = RunDirectory.create(folder / "run")
    with run.lock():
        return open_models(settings, (), run)


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name", "urls"),
    [
        ("openai:gpt-4o", "gpt-4o", (OPENAI_URL,)),
        ("openai:ft:gpt-4o:org::id", "ft:gpt-4o:org::id", (OPENAI_URL,)),
        ("openai:m@http://host:8000/v1", "m", ("http://host:8000/v1",)),
        (
            "openai:Qwen/Qwen3-8B@https://a/v1/,http://b:1/v1",
            "Qwen/Qwen3-8B",
            ("https://a/v1", "http://b:1/v1"),
        ),
        ("openai:name@2@http://[::1]:8000/v1", "name@2", ("http://[::1]:8000/v1",)),
        (f"openai:m@{OPENAI_URL}", "m", (OPENAI_URL,)),
    ],
)
def test_addresses(address: str, name: str, urls: tuple[str, ...]) -> None:
    assert parse_openai(address) == RemoteAddress(name, urls)
    assert scheme_of(address) == "openai"
    assert not is_local(address)


@pytest.mark.parametrize(
    ("address", "name", "url"),
    [
        ("gemini:gemini-3.8-flash", "gemini-3.8-flash", GEMINI_URL),
        ("gemini:models/gemini-2.5-pro", "models/gemini-2.5-pro", GEMINI_URL),
        ("gemini:projects/p/locations/l/endpoints/12", "projects/p/locations/l/endpoints/12", GEMINI_URL),
        ("gemini:m@http://host:8000/", "m", "http://host:8000"),
        (f"gemini:m@{GEMINI_URL}", "m", GEMINI_URL),
    ],
)
def test_gemini_addresses(address: str, name: str, url: str) -> None:
    assert parse_gemini(address) == RemoteAddress(name, (url,))
    assert scheme_of(address) == "gemini"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gpt-4o", "'gpt-4o' is not the address of a known kind of model; known: local: "),
        ("gemni:flash", "openai:NAME alone is one of api.openai.com"),
        ("local:x", "have no variants; write 'local:'"),
        ("openai:", "openai:: the model's name is missing: openai:NAME@http://host:port/v1"),
        ("openai:@http://host/v1", "openai:: the model's name is missing"),
        ("openai: m@http://host/v1", "the model's name is missing"),
        (
            "openai:m@host:8000/v1",
            "after the model's name goes @ and its server, openai:NAME@http://host:port/v1",
        ),
        ("openai:m@me:secret@host:8000/v1", "openai:m: after the model's name goes @ and its server"),
        ("openai:m@ftp://host/v1", "after the model's name goes @ and its server"),
        ("openai:http://host/v1", "after the model's name goes @ and its server"),
        ("openai:m@http://", "openai:m: 'http://' is not the address of a server"),
        ("openai:m@http://host:port/v1", "a server's address is not a URL such as http://host:8000/v1"),
        ("openai:m@http://host:99999/v1", "a server's address is not a URL such as http://host:8000/v1"),
        ("openai:m@http://[::1/v1", "a server's address is not a URL such as http://host:8000/v1"),
        ("openai:m@http://host/v1 and more", "is not the address of a server; write http://host:port/v1"),
        ("openai:m@http://a/v1,b/v1", "'b/v1' is not the address of a server"),
        ("openai:m@http://a/v1,", "'' is not the address of a server"),
        ("openai:m@http://host/v1?x=1", "leave out what follows the path (from ? or #)"),
        ("openai:m@http://host/v1#top", "leave out what follows the path (from ? or #)"),
        ("openai:m@http://host/v1?", "leave out what follows the path"),
        (
            "openai:m@http://me:secret@host/v1",
            "name the environment variable that holds the key in api_key_env",
        ),
        ("openai:m@http://me:sec/secret@host/v1", "name the environment variable that holds the key"),
        ("openai:m@http://api.openai.com/v1", "is reached by https:// only; write openai:m"),
        ("vllm:m", "vllm:m: after the model's name goes @ and its server, vllm:NAME@http://host:port/v1"),
        (f"vllm:m@{OPENAI_URL}", "api.openai.com is no vLLM server; write openai:m"),
        (f"openai:m@{OPENAI_URL},http://host/v1", "api.openai.com goes with no other server"),
        ("gemini:", "gemini:: the model's name is missing: gemini:NAME@http://host:port"),
        ("gemini:m@host", "after the model's name goes @ and its server, gemini:NAME@http://host:port"),
        ("gemini:../m", "gemini:../m: not a model's name; write one such as gemini:gemini-3.8-flash"),
        ("gemini:m?key=1", "not a model's name"),
        ("gemini:m@http://a,http://b", "gemini:m: takes one server, not 2"),
        ("gemini:m@http://me:secret@host", "name the environment variable that holds the key"),
        (f"gemini:m@http://{GEMINI_HOST}", "is reached by https:// only; write gemini:m"),
        (f"gemini:m@{GEMINI_URL},http://host", f"{GEMINI_HOST} goes with no other server"),
    ],
)
def test_malformed_addresses(address: str, words: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        scheme_of(address)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_password_in_an_unknown_kind_of_address_is_not_repeated() -> None:
    with pytest.raises(UnknownModelError) as caught:
        scheme_of("opnai:m@http://me:secret@host/v1")
    assert "opnai:m" in str(caught.value)
    assert "secret" not in str(caught.value)


@given(
    st.text()
    | st.text("abc:/@,.%?#[]1 ", max_size=20).map(lambda text: f"openai:m@http://{text}")
    | st.text("ab-:/@.?1 ", max_size=20).map(lambda text: f"gemini:{text}")
)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        assert scheme_of(text) in SCHEMES
    except UnknownModelError:
        return
    if not is_local(text):
        address = parse_gemini(text) if scheme_of(text) == "gemini" else parse_openai(text)
        assert address.name
        assert all(url.startswith(("http://", "https://")) and "@" not in url for url in address.urls)


def test_only_this_machine_is_loopback() -> None:
    def loopback(*urls: str) -> bool:
        return RemoteAddress("m", urls).loopback

    assert loopback("http://127.0.0.1:8000/v1")
    assert loopback("http://localhost/v1", "http://[::1]:1/v1", "http://127.9.9.9/v1")
    assert not loopback("http://127.0.0.1/v1", "http://10.0.0.1/v1")
    assert not loopback("http://localhost.example.com/v1")
    assert not loopback("http://127.0.0.1.example.com/v1")


# --- keys -----------------------------------------------------------------------------------------


async def sent_key(settings: ModelConfig) -> str | None:
    """The key that a server gets to see."""
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    async with responding(http(200, answer)) as server:
        model = open_student(settings.model_copy(update={"model": f"openai:m@{server.base}"}))
        await model.complete([request("r")])
        await model.aclose()
    return server.asked[0].headers.get("authorization")


def test_the_openai_key_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert asyncio.run(sent_key(ModelConfig())) is None


def test_a_named_key_goes_to_the_server_it_is_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert asyncio.run(sent_key(ModelConfig(api_key_env="MY_KEY"))) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (ModelConfig(model="openai:gpt-4o"), "OPENAI_API_KEY"),
        (ModelConfig(model="openai:gpt-4o", api_key_env="MY_KEY"), "MY_KEY"),
        (ModelConfig(model=f"openai:m@{HERE}", api_key_env="MY_KEY"), "MY_KEY"),
    ],
)
def test_a_key_that_is_not_set(settings: ModelConfig, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for blank in (None, "", " \n"):
        if blank is not None:
            monkeypatch.setenv(variable, blank)
        for check in (open_student, lambda one: check_model(one, {}, None)):
            with pytest.raises(
                ModelError, match=f"its key is missing: set the environment variable {variable}$"
            ):
                check(settings)


def test_a_key_that_cannot_be_one_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Header: injected")
    with pytest.raises(
        ModelError, match="what the environment variable OPENAI_API_KEY holds cannot be a key"
    ) as caught:
        open_student("openai:gpt-4o")
    assert KEY not in str(caught.value)


def test_a_key_in_the_configuration_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for value in (KEY, "my_key", ""):
        with pytest.raises(
            ConfigError, match=r"student.api_key_env: write the name of an environment var"
        ) as caught:
            config(tmp_path, student={"api_key_env": value})
        assert not value or value not in str(caught.value)


def test_the_key_is_in_no_settings_and_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    settings = config(tmp_path, student={"model": f"openai:m@{HERE}", "api_key_env": "MY_KEY"})
    model = open_student(settings.student)
    assert KEY not in f"{settings!r} {settings.model_dump_json()} {model!r} {model.name}"


def test_another_address_takes_the_key_along_only_to_the_same_servers() -> None:
    configured = ModelConfig(model=f"openai:m@{HERE}", api_key_env="MY_KEY", concurrency=3)
    assert settings_of(configured, None) is configured
    same = settings_of(configured, f"openai:other@{HERE}")
    assert (same.model, same.api_key_env, same.concurrency) == (f"openai:other@{HERE}", "MY_KEY", 3)
    for other in ("openai:m@http://127.0.0.1:2/v1", f"openai:m@{HERE},http://b/v1", "openai:m", "local:"):
        assert settings_of(configured, other).api_key_env is None
    with pytest.raises(UnknownModelError):
        settings_of(configured, "openai:m@b")


async def sent_google_key(settings: ModelConfig) -> str | None:
    """The key that a server with Gemini's API gets to see."""
    answer = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}
    async with responding(http(200, answer)) as server:
        address = f"gemini:m@{server.base.removesuffix('/v1')}"
        model = open_student(settings.model_copy(update={"model": address}))
        await model.complete([request("r")])
        await model.aclose()
    return server.asked[0].headers.get("x-goog-api-key")


def test_google_keys_go_to_google_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    assert asyncio.run(sent_google_key(ModelConfig())) == "none"
    monkeypatch.setenv("MY_KEY", "mine")
    assert asyncio.run(sent_google_key(ModelConfig(api_key_env="MY_KEY"))) == "mine"


def google_access(settings: ModelConfig) -> Access:
    model = open_student(settings)
    assert isinstance(model, GeminiChat)
    return model._client._access


def test_the_key_for_gemini(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelConfig(model="gemini:m")
    with pytest.raises(ModelError, match=r"set the environment variable GEMINI_API_KEY or GOOGLE_API_KEY$"):
        open_student(settings)
    monkeypatch.setenv("GOOGLE_API_KEY", "second")
    assert google_access(settings).api_key == "second"
    monkeypatch.setenv("GEMINI_API_KEY", "first")
    assert google_access(settings).api_key == "first"
    monkeypatch.setenv("MY_KEY", "named")
    assert google_access(ModelConfig(model="gemini:m", api_key_env="MY_KEY")).api_key == "named"
    monkeypatch.setenv("GEMINI_API_KEY", "k\ny")
    with pytest.raises(
        ModelError, match="what the environment variable GEMINI_API_KEY holds cannot be a key"
    ):
        open_student(settings)


@pytest.mark.parametrize("variable", ["GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"])
def test_vertex_finds_its_own_credentials(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv(variable, "True")
    access = google_access(ModelConfig(model="gemini:m"))
    assert (access.vertex, access.api_key) == (True, None)
    assert "gcloud auth application-default login" in access.key_hint
    assert open_student("gemini:m").name == "gemini:m@vertex"
    elsewhere = google_access(ModelConfig(model="gemini:m@http://127.0.0.1:1"))
    assert (elsewhere.vertex, elsewhere.url) == (False, "http://127.0.0.1:1")
    monkeypatch.setenv("MY_KEY", "express")
    express = google_access(ModelConfig(model="gemini:m", api_key_env="MY_KEY"))
    assert (express.vertex, express.api_key) == (True, "express")
    monkeypatch.setenv(variable, "false")
    assert not google_access(ModelConfig(model="gemini:m")).vertex


# --- vllm -----------------------------------------------------------------------------------------


def test_a_vllm_model_is_opened_with_its_settings() -> None:
    address = "vllm:x/y@http://127.0.0.1:1/v1,http://127.0.0.1:2/v1"
    model = open_student(ModelConfig(model=address, too_long="cut", max_input_tokens=9))
    assert isinstance(model, VllmChat)
    assert model.name == "vllm:x/y@http://127.0.0.1:1/v1#cut"
    assert (model.price, model.max_input_tokens, model.most_in_flight) == (FREE, 9, 2048)
    assert open_student(address).name == "vllm:x/y@http://127.0.0.1:1/v1"
    assert open_student("vllm:m@http://gpu:1/v1").price is None
    thinking = open_student(ModelConfig(model=address, thinking="low"))
    assert thinking.name == "vllm:x/y@http://127.0.0.1:1/v1#thinking=low"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ModelConfig(model="local:", too_long="cut"), "^local:: takes no `too_long`; that is for vllm:"),
        (ModelConfig(model=f"openai:m@{HERE}", too_long="cut"), f"^openai:m@{HERE}: takes no `too_long`"),
        (ModelConfig(model="answer-files:x", too_long="cut"), "takes no `too_long`; whoever answers"),
        (ModelConfig(model=f"vllm:m@{HERE}", thinking=100), "takes a level for `thinking`"),
        (EmbedderConfig(model=f"vllm:m@{HERE}"), f"for \\[embedder\\] write openai:m@{HERE}"),
    ],
)
def test_settings_that_a_vllm_model_alone_takes_or_does_not(settings: ModelConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_model(settings, {}, None)


def test_an_embedder_cuts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedder.too_long: is for models that write"):
        config(tmp_path, embedder={"too_long": "cut"})


def test_another_student_takes_the_policy_for_long_rows_along_only_to_the_same_kind() -> None:
    configured = ModelConfig(model=f"vllm:m@{HERE}", too_long="cut")
    assert settings_of(configured, "vllm:other@http://127.0.0.1:2/v1").too_long == "cut"
    assert settings_of(configured, f"openai:m@{HERE}").too_long == "fail"


# --- thinking -------------------------------------------------------------------------------------


def test_settings_for_thinking_that_a_model_does_not_take(tmp_path: Path) -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("local:", "low", "^local:: takes no `thinking`; that is for gemini:, openai: and vllm: models"),
        ("local:", 100, "takes no `thinking`"),
        (f"openai:m@{HERE}", 100, f"^openai:m@{HERE}: takes a level for `thinking`"),
        (f"openai:m@{HERE}", 0, r"takes a level for `thinking` \(minimal, low, medium or high\), no number"),
    ]
    for model, thinking, words in wrong:
        settings = ModelConfig(model=model, thinking=thinking)
        for check in (open_student, lambda one: check_model(one, {}, None)):
            with pytest.raises(ConfigError, match=words):
                check(settings)
        with pytest.raises(ConfigError, match=words):
            opened(tmp_path, teacher={"model": model, "thinking": thinking})
    with pytest.raises(ConfigError, match="takes a number of tokens"):
        check_model(ModelConfig(model="gemini:gemini-2.5-pro", thinking="low"), {}, None)
    with pytest.raises(ConfigError, match="an embedder does not think"):
        config(tmp_path, embedder={"thinking": 100})


def test_how_much_a_model_of_openai_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    prices = {"o9": PriceConfig(input=1, output=2), "gpt-4.1": PriceConfig(input=1, output=2)}
    model = open_student(ModelConfig(model="openai:o9", thinking="low"), prices)
    assert model.name.endswith("#thinking=low")
    assert model.price == Price(1, 2, thinking_tokens=4096)
    assert open_student(ModelConfig(model="openai:o9"), prices).price == Price(1, 2, thinking_tokens=8192)
    assert open_student(ModelConfig(model="openai:gpt-4.1"), prices).price == Price(1, 2)


def test_how_much_a_gemini_model_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    model = open_student(ModelConfig(model="gemini:gemini-3.5-flash", thinking="low"))
    assert model.name.endswith("#thinking=low")
    assert model.price == Price(1.5, 9, thinking_tokens=4096)


def test_another_address_takes_thinking_along_only_to_the_same_kind() -> None:
    configured = ModelConfig(model="gemini:gemini-3.8-flash", thinking="low")
    assert settings_of(configured, "gemini:gemini-3-flash-preview").thinking == "low"
    assert settings_of(configured, "local:").thinking is None
    assert settings_of(configured, f"openai:m@{HERE}").thinking is None


# --- prices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "price"),
    [
        (f"openai:anything@{HERE}", FREE),
        (f"openai:gpt-4o@{HERE}", Price(2.5, 10)),  # a proxy on this machine
        (f"openai:mine@{HERE}", Price(1, 2)),
        ("openai:mine@http://10.0.0.1/v1", Price(1, 2)),
        ("openai:gpt-4o@https://proxy.example/v1", Price(2.5, 10)),
        ("openai:anything@http://10.0.0.1/v1", None),
    ],
)
def test_what_a_server_costs(address: str, price: Price | None) -> None:
    assert open_student(ModelConfig(model=address), {"mine": PriceConfig(input=1, output=2)}).price == price


def test_an_unknown_price_is_refused_under_a_cap_only(tmp_path: Path) -> None:
    far = {"model": "openai:x/y@http://10.0.0.1/v1"}
    settings = config(tmp_path, teacher=far)
    check_models(settings, None)
    with pytest.raises(
        BudgetError, match=r"the price of x/y is unknown, so the cap of \$5 .* add \[prices.\"x/y\"\]"
    ):
        check_models(settings, 5.0)
    with pytest.raises(BudgetError, match="the cap of"):
        check_models(config(tmp_path, embedder=far, run={"max_cost_usd": 1.0}), None)
    check_models(config(tmp_path, teacher=far, prices={"x/y": {"input": 1.0}}), 5.0)
    check_models(config(tmp_path), 0.0)


def test_prices_in_the_configuration(tmp_path: Path) -> None:
    assert config(tmp_path, prices={"m": {"input": 1}}).prices == {"m": PriceConfig(input=1, output=0)}
    with pytest.raises(ConfigError, match=r"unknown key 'ouput' in \[prices.m\]; did you mean 'output'"):
        config(tmp_path, prices={"m": {"input": 1, "ouput": 2}})
    with pytest.raises(ConfigError, match=r"prices.m.input is missing"):
        config(tmp_path, prices={"m": {"output": 2}})


# --- opening --------------------------------------------------------------------------------------


def test_a_student_from_an_address() -> None:
    assert isinstance(open_student("local:"), LocalStudent)
    model = open_student(f"openai:m@{HERE}")
    assert isinstance(model, OpenAICompatibleChat)
    assert model.name == f"openai:m@{HERE}"
    assert open_student(ModelConfig(model=f"openai:m@{HERE}", max_input_tokens=7)).max_input_tokens == 7


def test_models_of_gemini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    models = opened(
        tmp_path,
        teacher={"model": "gemini:gemini-3.8-flash", "max_input_tokens": 7},
        embedder={"model": "gemini:gemini-embedding-001", "dimensions": 64},
    )
    assert isinstance(models.teacher, GeminiChat)
    assert models.teacher is models.resolver
    assert models.teacher.max_input_tokens == 7
    assert isinstance(models.embedder, GeminiEmbedder)
    assert models.embedder.name == f"gemini:gemini-embedding-001@{GEMINI_URL}#64"
    assert models.embedder.price == Price(0.15)
    assert KEY not in f"{models!r} {models.teacher!r} {models.teacher.name} {models.embedder!r}"


def test_all_models_local(tmp_path: Path) -> None:
    settings = corpus.config(tmp_path)
    run = RunDirectory.create(tmp_path / "run")
    with run.lock():
        models = open_models(settings, load_dataset(settings).train, run)
    assert isinstance(models.teacher, LocalTeacher)
    assert models.teacher is models.synthesizer is models.resolver
    assert isinstance(models.embedder, LocalEmbedder)
    assert isinstance(models.student, LocalStudent)
    assert (run.path / FIT_FILE).is_file()


def test_nothing_is_fitted_where_nothing_is_local_but_the_student(tmp_path: Path) -> None:
    remote = {"model": f"openai:m@{HERE}"}
    models = opened(tmp_path, teacher=remote, embedder={**remote, "dimensions": 64})
    assert isinstance(models.teacher, OpenAICompatibleChat)
    assert isinstance(models.embedder, OpenAICompatibleEmbedder)
    assert models.embedder.name.endswith("#64")
    assert isinstance(models.student, LocalStudent)
    assert not (tmp_path / "run" / FIT_FILE).exists()


def test_roles_with_the_same_settings_share_one_model(tmp_path: Path) -> None:
    remote = {"model": f"openai:m@{HERE}"}
    models = opened(
        tmp_path, teacher=remote, resolver={**remote, "concurrency": 2}, student=remote, embedder=remote
    )
    assert models.teacher is models.synthesizer is models.student
    assert models.resolver is not models.teacher
    assert models.resolver.name == models.teacher.name


def test_local_and_remote_roles_mix(tmp_path: Path) -> None:
    settings = config(tmp_path, resolver={"model": f"openai:m@{HERE}"}, student={"model": f"openai:m@{HERE}"})
    run = RunDirectory.create(tmp_path / "run")
    with run.lock():
        models = open_models(settings, load_dataset(settings).train, run)
    assert isinstance(models.teacher, LocalTeacher)
    assert models.teacher is models.synthesizer
    assert isinstance(models.resolver, OpenAICompatibleChat)
    assert models.resolver is models.student


def test_a_missing_key_is_found_before_anything_is_fitted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        opened(tmp_path, student={"model": "openai:gpt-4o"})
    assert not (tmp_path / "run" / FIT_FILE).exists()


def test_addresses_are_checked_without_keys(tmp_path: Path) -> None:
    check_addresses(config(tmp_path, student={"model": "openai:gpt-4o"}))
    with pytest.raises(UnknownModelError):
        check_addresses(config(tmp_path, embedder={"model": "openai:m@nowhere"}))


def test_an_embedder_has_no_limit_on_its_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedder.max_input_tokens: is for models that write"):
        config(tmp_path, embedder={"max_input_tokens": 5})
    assert EmbedderConfig().max_input_tokens is None
