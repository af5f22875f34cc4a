"""The whole pipeline behind a server: over HTTP the local models compile what they compile in process."""

from __future__ import annotations

from pathlib import Path

from adapters import open_models
from adapters.local import FIT_FILE, fit_local
from bench.fake_server import Behaviour, serving
from engine import compile_prompt
from engine.config import EmbedderConfig, ModelConfig
from engine.store import load_dataset
from tests.support import corpus


async def compiles_to_the_same_prompt(folder: Path, address: str) -> None:
    """`address` is that of a model at the fake server, with places for `{role}` and `{url}`."""
    settings = corpus.config(folder, corpus.rows(160))
    fit = fit_local(load_dataset(settings).train, settings.labels, settings.run.seed, 768)
    (folder / FIT_FILE).write_bytes(fit.document)
    local = await compile_prompt(settings, open_models, run=folder / "local")
    async with serving(Behaviour(answers="local", local_fit=str(folder / FIT_FILE))) as server:
        remote = settings.model_copy(
            update={
                role: kind(model=address.format(role=role, url=server.url))
                for role, kind in (
                    ("teacher", ModelConfig),
                    ("student", ModelConfig),
                    ("embedder", EmbedderConfig),
                )
            }
            # what the local embedder wishes, the configuration has to say of any other
            | {"cluster": settings.cluster.model_copy(update={"within": "label"})}
        )
        served = await compile_prompt(remote, open_models, run=folder / "served", max_cost_usd=0.0)
    assert served.prompt.text == local.prompt.text
    assert served.requests["failed"] == 0
