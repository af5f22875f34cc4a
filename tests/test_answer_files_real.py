"""Answer files on real data: rounds with a messy answerer, the answers of a recorded teacher, kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import adapters
from adapters.cli.main import app
from adapters.local import fit_local
from engine import compile_prompt
from engine.config import Config
from engine.config_file import load_config
from engine.distillation.extraction import ExtractionRequests
from engine.distillation.templating import TaskContext
from engine.errors import AwaitingAnswers
from engine.ports import FREE, Models, Price, Within
from engine.store import ResponseStore, RunDirectory, load_dataset
from engine.types import AttemptFailure, Embedding, EmbedOutcome, Sample
from tests.conftest import ROOT
from tests.support import corpus
from tests.support.answerer import Answerer, messy

pytestmark = pytest.mark.slow

ROLES = ("teacher", "synthesizer", "resolver", "student")
FILES = "".join(
    f'[{role}]\nmodel = "answer-files:answers/{role}"\nmax_input_tokens = 400_000\n' for role in ROLES
)


def write(folder: Path, rows: pl.DataFrame, more: str) -> Path:
    """A configuration over rows of contract_nli."""
    folder.mkdir(parents=True)
    rows.select("id", "text", "label", "split").write_parquet(folder / "rows.parquet")
    path = folder / "pld.toml"
    path.write_text(
        '[task]\nname = "nli"\ndescription = "Does the contract entail the hypothesis?"\n'
        'labels = ["Contradiction", "Entailment", "NotMentioned"]\nid = "id"\n'
        '[data]\nfile = "rows.parquet"\nsplit = "split"\n' + more
    )
    return path


def pld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def pld_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from adapters.cli.main import main; main()", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def fitted(config: Path, folder: Path) -> Path:
    """What the local models know of the training rows, as a file."""
    settings = load_config(config)
    fit = fit_local(
        load_dataset(settings).train, settings.labels, settings.run.seed, settings.embedder.dimensions
    )
    path = folder / "fit.json"
    path.write_bytes(fit.document)
    return path


def test_200_rows_of_contracts_through_a_messy_answerer(pld_data: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(pld_data / "contract_nli.parquet").sort("id")
    shares = {"train": 120, "validation": 40, "test": 40}
    rows = pl.concat([frame.filter(pl.col("split") == name).head(n) for name, n in shares.items()])
    assert len(rows) == 200
    short = "[resolve]\nmax_rounds = 1\nprune = false\nconfusions_per_round = 2\n"
    local = write(tmp_path / "local", rows, short)
    assert pld("compile", local).exit_code == 0
    config = write(tmp_path / "files", rows, short + FILES)
    fit = fitted(config, tmp_path)
    answerers = [Answerer(config.parent / "answers" / role, fit, messy) for role in ROLES]
    asked = rounds = 0
    while (done := pld("compile", config, "--json")).exit_code == 75:
        assert done.stdout == ""
        assert "waiting for answers to" in done.stderr.splitlines()[-1]
        new = sum(answerer() for answerer in answerers)
        assert new > 0
        asked, rounds = asked + new, rounds + 1
        assert rounds < 80
    assert done.exit_code == 0, done.stderr
    for answerer in answerers:
        usable: set[str] = set()
        for ids, answered in zip(answerer.asked, answerer.answered, strict=True):
            assert len(set(ids)) == len(ids)
            assert not usable & set(ids), "what was answered is not asked again"
            usable |= answered
        assert usable == {one for ids in answerer.asked for one in ids}, "and all of it is answered at last"
    document = json.loads(done.stdout)
    assert document["requests"]["failed"] == 0
    run = config.parent / "runs" / "nli"
    manifest = json.loads((run / "manifest.json").read_text())
    extraction = manifest["stages"]["extraction"]
    assert extraction["rules"] + extraction["failures"] == manifest["data"]["rows"]["train"] == 120
    again = json.loads(pld("compile", config, "--json").stdout)
    assert again["requests"]["sent"] == 0
    distinct = len({one for answerer in answerers for ids in answerer.asked for one in ids})
    assert distinct <= again["requests"]["cached"]
    assert asked < 1.3 * distinct, "only what is missing is asked again"
    assert (run / "prompt.md").read_bytes() == (local.parent / "runs" / "nli" / "prompt.md").read_bytes()


class Precomputed:
    """An `Embedder` that knows the vectors of certain texts."""

    name = "minilm"
    max_batch = 100
    price: Price | None = FREE
    within: Within = "all"

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        found = [self._vectors.get(text) for text in texts]
        return [AttemptFailure("unknown") if one is None else Embedding(one) for one in found]

    async def aclose(self) -> None:
        pass


def test_the_rules_of_a_recorded_teacher_come_in_by_this_door(pld_data: Path, tmp_path: Path) -> None:
    path = pld_data.parent / "recorded" / "contract_nli_rules.parquet"
    if not path.is_file():
        pytest.skip("no recorded rules beside the data")
    recorded = pl.read_parquet(path)
    frame = pl.read_parquet(pld_data / "contract_nli.parquet").sort("id")
    rows = pl.concat(
        [
            frame.filter(pl.col("id").is_in(recorded["id"].to_list())),
            frame.filter(pl.col("split") == "validation").head(60),
        ]
    )
    more = '[teacher]\nmodel = "answer-files:teacher"\n[synthesizer]\nmodel = "answer-files:synthesizer"\n'
    more += '[cluster]\nmethod = "dbscan"\neps = 0.25\nmin_samples = 6\n'
    config_path = write(tmp_path / "run", rows, more)
    config = load_config(config_path)
    train = load_dataset(config).train
    assert len(train) == len(recorded) == 480
    requests = ExtractionRequests(TaskContext(config))
    sample_of = {requests(sample).messages[1].content: sample.id for sample in train}
    by_id = {row["id"]: row for row in recorded.to_dicts()}

    def by_hand(body: dict[str, Any]) -> str:
        row = by_id[sample_of[body["messages"][1]["content"]]]
        return json.dumps({name: row[name] for name in ("analysis", "instruction", "label")})

    vectors = dict(zip(recorded["instruction"], recorded["minilm"].to_numpy().astype("f4"), strict=True))

    def models(settings: Config, rows: Sequence[Sample], run: RunDirectory) -> Models:
        return replace(adapters.open_models(settings, rows, run), embedder=Precomputed(vectors))

    answerer = Answerer(tmp_path / "run" / "teacher", fitted(config_path, tmp_path), messy, by_hand)
    for _ in range(10):
        with pytest.raises(AwaitingAnswers) as waiting:
            asyncio.run(compile_prompt(config, models, run=tmp_path / "run" / "out"))
        if " of synthesis" in str(waiting.value):
            break
        answerer()
    else:
        raise AssertionError("the rules are not all accepted")
    with ResponseStore(tmp_path / "run" / ".pld-cache") as store:
        keys = [requests(sample).digest("answer-files:teacher") for sample in train]
        assert set(asyncio.run(store.get(keys))) == set(keys), "every recorded answer has come in"
    rules = pl.read_parquet(tmp_path / "run" / "out" / "rules.parquet")
    assert len(rules) >= 0.75 * 480, "the checks set some aside"
    kept = dict(zip(rules["sample_id"], rules["instruction"], strict=True))
    assert kept.items() <= dict(zip(recorded["id"], recorded["instruction"], strict=True)).items()
    clusters = pl.read_parquet(tmp_path / "run" / "out" / "clusters.parquet")
    numbers = set(clusters.filter(pl.col("cluster") >= 0)["cluster"].to_list())
    assert len(numbers) >= 5
    lines = (tmp_path / "run" / "synthesizer" / "requests-001.jsonl").read_text().splitlines()
    assert len(lines) == len(numbers)
    for line in lines:
        body = json.loads(line)["body"]
        assert body["response_format"]["json_schema"]["name"] == "synthesis"
        assert any(rule.split(".")[0][:40] in body["messages"][1]["content"] for rule in kept.values())


KILLED = """
import os, signal, sys
from pathlib import Path
from adapters.answer_files import AnswerFiles
from adapters.cli.main import main

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv.pop(1) == "written":
    real = AnswerFiles.submit
    async def submit(self, requests):
        await real(self, requests)
        kill()
    AnswerFiles.submit = submit
else:
    import adapters.answer_files
    adapters.answer_files.sync_folder = lambda path: kill() if any(path.glob("*.jsonl")) else None
main()
"""


@pytest.mark.parametrize("moment", ["written", "renamed"])
def test_killed_before_it_exits_a_rerun_gives_the_same_files(moment: str, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / "answers").iterdir()}

    more = '[teacher]\nmodel = "answer-files:answers"\n'
    whole = corpus.write(tmp_path / "whole", more=more)
    assert pld_process("compile", whole).returncode == 75
    torn = corpus.write(tmp_path / "torn", more=more)
    command = [sys.executable, "-c", KILLED, moment, "compile", str(torn)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = pld_process("compile", torn)
    assert done.returncode == 75
    assert files(torn.parent) == files(whole.parent)
    assert "have " in done.stderr.splitlines()[-1]
