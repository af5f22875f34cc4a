"""The whole pipeline behind a server: over HTTP the local models compile what they compile in process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters import open_models
from adapters.local import FIT_FILE, fit_local
from bench.fake_server import Behaviour, serving
from engine import compile_prompt
from engine.config import Config, EmbedderConfig, ModelConfig
from engine.store import load_dataset
from tests.support import corpus

OPENAI = "openai:{role}@{url}/v1"
GEMINI = "gemini:{role}@{url}"


def fit_file(settings: Config, folder: Path) -> str:
    """What the local models know of the training rows, in a file for the server's `local_fit`."""
    fit = fit_local(load_dataset(settings).train, settings.labels, settings.run.seed, 768)
    path = folder / FIT_FILE
    path.write_bytes(fit.document)
    return str(path)


def behind(settings: Config, address: str, url: str, **limits: Any) -> Config:
    """The configuration with every model at a server; `address` has places for `{role}` and `{url}`.

    What the local models wish or take, the configuration has to say of others. `limits` are keys of every
    model's table.
    """
    chats = {
        role: ModelConfig(model=address.format(role=role, url=url), max_input_tokens=1_000_000, **limits)
        for role in ("teacher", "student")
    }
    embedder = EmbedderConfig(model=address.format(role="embedder", url=url), **limits)
    cluster = settings.cluster.model_copy(update={"within": "label"})
    return settings.model_copy(update={**chats, "embedder": embedder, "cluster": cluster})


async def compiles_to_the_same_prompt(folder: Path, address: str) -> None:
    """`address` is that of a model at the fake server, with places for `{role}` and `{url}`."""
    settings = corpus.config(folder, corpus.rows(160))
    behaviour = Behaviour(answers="local", local_fit=fit_file(settings, folder))
    local = await compile_prompt(settings, open_models, run=folder / "local")
    async with serving(behaviour) as server:
        remote = behind(settings, address, server.url)
        served = await compile_prompt(remote, open_models, run=folder / "served", max_cost_usd=0.0)
    assert served.prompt.text == local.prompt.text
    assert served.requests["failed"] == 0
