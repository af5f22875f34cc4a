"""Whole pipelines behind servers that fail, and models that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adapters import open_models
from bench.fake_server import FakeServer
from bench.fake_server.behaviour import FaultName, LapseName
from bench.quality import Job, write_job
from engine import CompileResult, compile_prompt
from engine.config import Config
from engine.config_file import load_config
from engine.distillation.checks import copies
from engine.events import Event, Notice
from engine.store import load_dataset
from engine.types import Sample
from tests.support import corpus
from tests.support.served import GEMINI, OPENAI, behind, fit_file

# --- servers that fail --------------------------------------------------------------------------------

FAULTS: dict[FaultName, float] = {
    "error_500": 0.015,
    "error_503": 0.001,
    "disconnect": 0.01,
    "reset": 0.005,
    "truncated": 0.01,
    "malformed": 0.006,
    "empty": 0.002,
    "hang": 0.001,
}
"""5% of the attempts; bursts of 429 come on top."""


@dataclass(frozen=True)
class Compiled:
    """What the local models compile in process."""

    settings: Config
    fit: str
    result: CompileResult


@pytest.fixture(scope="module")
def stereoset(pld_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("stereoset")
    settings = load_config(write_job(Job("stereoset", 1, shuffled=False), pld_data, folder))
    settings = settings.model_copy(update={"resolve": settings.resolve.model_copy(update={"max_rounds": 1})})
    result = asyncio.run(compile_prompt(settings, open_models, run=folder / "run"))
    assert len(load_dataset(settings).train) == 2106
    return Compiled(settings, fit_file(settings, folder), result)


@pytest.mark.slow
@pytest.mark.parametrize("address", [OPENAI, GEMINI], ids=["openai", "gemini"])
def test_faults_leave_no_trace_in_the_prompt(address: str, stereoset: Compiled, tmp_path: Path) -> None:
    behaviour: dict[str, Any] = {"answers": "local", "local_fit": stereoset.fit, "seed": 5}
    with FakeServer(**behaviour, faults=FAULTS, max_in_flight=48) as server:
        remote = behind(stereoset.settings, address, server.url, timeout_s=2.0, concurrency=64)
        served = asyncio.run(compile_prompt(remote, open_models, run=tmp_path / "run"))
        seen = server.seen()
    assert served.prompt.text == stereoset.result.prompt.text
    assert served.validation.compiled == stereoset.result.validation.compiled
    assert served.rounds == stereoset.result.rounds == 1
    assert served.requests["failed"] == 0
    assert pl.read_parquet(tmp_path / "run" / "failures.parquet").is_empty()
    assert set(seen["by_fault"]) == set(FAULTS)
    assert sum(seen["by_fault"].values()) > 0.04 * seen["requests"]
    assert seen["by_status"]["429"] > 0


# --- models that misbehave ----------------------------------------------------------------------------

NO_JSON: tuple[LapseName, ...] = ("prose", "code_fence", "trailing_comma", "single_quotes", "cut_short")
LAPSES: dict[LapseName, float] = {
    **dict.fromkeys(NO_JSON, 0.02),
    "wrong_label": 0.05,
    "label_case": 0.05,
    "copied": 0.1,
    "over_long": 0.1,
    "names": 0.05,
    "numbers": 0.05,
    "extra_field": 0.02,
    "no_instruction": 0.03,
}
"""10% malformed JSON, 10% wrong labels, 10% copied text, 10% over-long rules, and what else models do."""

DETAILS: tuple[LapseName, ...] = ("names", "numbers")
"""What is a detail of one row only where few others have it: else it is the topic's vocabulary."""
FEW_TEXTS = 0.01

FIGURES: dict[str, tuple[LapseName, ...]] = {
    "malformed": (*NO_JSON, "extra_field"),
    "other_label": ("wrong_label", "label_case"),
    "copied": ("copied",),
    "too_long": ("over_long",),
}
"""Figures of a run, and the lapses that they count."""

FIRST = ("Ka", "Lo", "Mi", "Nu", "Pe", "Ra", "Se", "Ti", "Vo", "Za")
LAST = ("bor", "dan", "fel", "gim", "hun", "jol", "kes", "lim", "mor", "nut", "pas", "rik", "sol", "tev")

Planted = dict[str, dict[str, Any]]
"""What the server tells of its lapses, by sample id."""


def named_rows(n: int) -> list[dict[str, str]]:
    """The small corpus, with a name and a number of its own in each text."""
    rows = corpus.rows(n)
    for number, row in enumerate(rows):
        name = FIRST[number % 10] + LAST[number // 10 % 14] + LAST[number // 140 % 14]
        row["text"] += f" says {name} on {31_000 + 7 * number}"
    return rows


def caught(planted: Planted, train: dict[str, Sample]) -> Planted:
    """Without the names and numbers that so many texts have that they are no details."""

    def is_detail(piece: str) -> bool:
        return sum(piece.lower() in one.text.lower() for one in train.values()) <= FEW_TEXTS * len(train)

    return {
        sample_id: one
        for sample_id, one in planted.items()
        if one["lapse"] not in DETAILS or is_detail(one["piece"])
    }


def misbehave(settings: Config, folder: Path, address: str) -> None:
    """Compile against models that misbehave, and hold what the run caught against what was planted."""
    train = {sample.id: sample for sample in load_dataset(settings).train}
    told: list[Event] = []
    behaviour: dict[str, Any] = {"answers": "local", "local_fit": fit_file(settings, folder), "seed": 3}
    with FakeServer(**behaviour, lapses=LAPSES) as server:
        remote = behind(settings, address, server.url)
        result = asyncio.run(compile_prompt(remote, open_models, run=folder / "run", emit=told.append))
        seen = server.seen(keys=True)
    # the pipeline ends well
    manifest = json.loads((folder / "run" / "manifest.json").read_bytes())
    assert manifest["state"] == "done"
    assert result.prompt.instructions
    assert (folder / "run" / "prompt.md").read_text(encoding="utf-8") == result.prompt.text
    # each kind was planted, and in about its share
    ids = {sample.text: sample.id for sample in train.values()}
    extracted = [one for one in seen["planted"] if one["phase"] == "extraction"]
    first = {ids[one["row"]]: one for one in extracted if not one["again"]}
    second = {ids[one["row"]]: one for one in extracted if one["again"]}
    kinds = Counter(one["lapse"] for one in first.values())
    for lapses in (*FIGURES.values(), DETAILS):
        share = sum(LAPSES[lapse] for lapse in lapses)
        assert 0.2 * share * len(train) < sum(kinds[lapse] for lapse in lapses) < 2 * share * len(train)
    check_rules(folder / "run", train, first, second)
    check_figures(manifest["stages"]["extraction"], train, first, second)
    # a person is told, and nobody is told what a row says
    warnings = [one.text for one in told if isinstance(one, Notice) and one.warning]
    assert any("asked again" in line for line in warnings)
    pieces = [one["piece"] for one in extracted if one["lapse"] == "copied"]
    assert pieces
    for text in (result.prompt.text, *map(str, told)):
        assert not [piece for piece in pieces if piece in text]


def check_rules(run: Path, train: dict[str, Sample], first: Planted, second: Planted) -> None:
    """A rule whose first answer was bad comes from the second; where that was bad too, there is none."""
    rules = pl.read_parquet(run / "rules.parquet")
    failures = pl.read_parquet(run / "failures.parquet").filter(pl.col("stage") == "extraction")
    # counts add up
    assert len(rules) + len(failures) == len(train)
    assert {*rules["sample_id"], *failures["id"]} == train.keys()
    # whatever stood was caught, and nothing else was
    assert second.keys() <= first.keys()
    assert caught(second, train).keys() <= set(failures["id"]) <= second.keys()
    for sample_id, label, rule in rules.select("sample_id", "label", "instruction").iter_rows():
        assert label == train[sample_id].label
        assert 0 < len(rule.split()) < 120
        assert not copies(train[sample_id].text, rule)
        bad = (second if sample_id in second else first).get(sample_id)
        if "So it is with" in rule:  # as a rule begins to tell of a planted piece
            assert bad is not None
            assert sample_id not in caught({sample_id: bad}, train)
    # no text of a row in the reasons
    details = "\n".join(failures["detail"])
    assert not [one for one in second.values() if one["lapse"] == "copied" and one["piece"] in details]


def check_figures(found: dict[str, Any], train: dict[str, Sample], first: Planted, second: Planted) -> None:
    """What the run counts is what was planted, for each label."""
    assert len(caught(first, train)) <= found["asked_again"] <= len(first)
    labels = {sample.label for sample in train.values()}
    assert found["by_label"].keys() == labels
    for label in labels:
        figures = found["by_label"][label]
        own = {key: one for key, one in first.items() if train[key].label == label}
        counted = Counter(one["lapse"] for one in own.values())
        for figure, lapses in FIGURES.items():
            told = figures["malformed"] if figure == "malformed" else figures["findings"].get(figure, 0)
            assert told == sum(counted[one] for one in lapses), (label, figure)
        rows = sum(sample.label == label for sample in train.values())
        assert figures["rules"] + figures["failures"] == figures["asked"] == rows
        assert figures["failures"] <= sum(train[key].label == label for key in second)
    for figure in ("rules", "failures", "asked", "asked_again", "malformed"):
        assert found[figure] == sum(one[figure] for one in found["by_label"].values())


@pytest.mark.parametrize(
    "address", [OPENAI, pytest.param(GEMINI, marks=pytest.mark.slow)], ids=["openai", "gemini"]
)
def test_what_a_model_does_wrong_is_caught(address: str, tmp_path: Path) -> None:
    misbehave(corpus.config(tmp_path, named_rows(400)), tmp_path, address)


@pytest.mark.slow
def test_what_a_model_does_wrong_on_real_data_is_caught(pld_data: Path, tmp_path: Path) -> None:
    settings = load_config(write_job(Job("contract_nli", 1, shuffled=False), pld_data, tmp_path))
    # what the resolver does wrong is the other tests' matter
    resolve = settings.resolve.model_copy(update={"max_rounds": 0})
    misbehave(settings.model_copy(update={"resolve": resolve}), tmp_path, OPENAI)


def test_edits_of_what_is_not_there_change_nothing(tmp_path: Path) -> None:
    settings = corpus.config(tmp_path, corpus.rows(160))
    behaviour: dict[str, Any] = {"answers": "local", "local_fit": fit_file(settings, tmp_path)}
    with FakeServer(**behaviour, lapses={"unknown_edit": 1.0}) as server:
        remote = behind(settings, OPENAI, server.url)
        result = asyncio.run(compile_prompt(remote, open_models, run=tmp_path / "run"))
        planted = Counter(one["again"] for one in server.seen(keys=True)["planted"])
    failures = pl.read_parquet(tmp_path / "run" / "failures.parquet")
    # every answer was asked for again, and given up then; the next round asks the same of the cache
    assert set(failures["stage"]) == {"resolution"}
    assert len(failures) >= planted[True] == planted[False] > 0
    assert not any(one.edits for one in result.prompt.all_instructions())
    assert result.prompt.instructions
