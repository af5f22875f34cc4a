"""The whole compilation on a small corpus, with the real local models: contracts C1, C3, C7, C8, C9, C12."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import adapters
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.distillation.result import CompileResult
from engine.errors import BudgetError, InterruptedRunError, RunError
from engine.events import Event, Notice, StageStarted
from engine.ports import Price
from engine.stopping import StopSignal
from engine.store import load_dataset
from engine.store.compiled import load_prompt
from engine.tokens import estimate_tokens
from engine.types import Answer, AttemptFailure, ChatOutcome, Request, Usage
from tests.support import corpus
from tests.support.recording import Cast, cast

ACTIVITY = ("activity",)  # the one part of the manifest that may differ between equal runs


def compiled(folder: Path, models: Any = adapters.open_models, **options: Any) -> CompileResult:
    return asyncio.run(compile_prompt(folder / "pld.toml", models, run=folder / "run", **options))


def recorded(folder: Path, data: list[dict[str, str]] | None = None, more: str = "") -> Cast:
    config = corpus.config(folder, data, more)
    return cast(config, load_dataset(corpus.config(folder / "fitted")).train)


def artifacts(run: Path) -> dict[str, bytes]:
    """Every artifact's bytes; what may differ is taken out of the manifest."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in ("run.lock", "manifest.json", "events.jsonl"):
            found[str(path.relative_to(run))] = path.read_bytes()
    manifest = json.loads((run / "manifest.json").read_bytes())
    for key in (*ACTIVITY, "base"):
        del manifest[key]
    found["manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return found


def test_leaves_every_artifact(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compiled(tmp_path)
    names = set(artifacts(result.run))
    assert {
        "manifest.json",
        "rules.parquet",
        "vectors.npy",
        "clusters.parquet",
        "clustering.json",
        "rounds/01.json",
        "prompt.md",
        "prompt.json",
        "failures.parquet",
        "calibration.json",
        "local.json",
    } <= names
    assert (result.run / "prompt.md").read_text() == result.prompt.text
    assert load_prompt(result.run) == result.prompt
    assert result.validation.compiled.macro_f1 > 0.8
    assert result.verdict == "gain"
    assert json.loads((result.run / "manifest.json").read_bytes())["state"] == "done"


def test_c1_outcomes_and_failures_are_the_samples(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path)
    broken = {row["id"] for row in corpus.rows() if row["split"] == "train"}
    broken = set(sorted(broken)[::10])

    def refuse(request: Request, outcome: ChatOutcome) -> ChatOutcome:
        return AttemptFailure("blocked", "not for me") if request.id in broken else outcome

    cast_.teacher.change = refuse
    result = compiled(tmp_path, cast_.models())
    rules = pl.read_parquet(result.run / "rules.parquet")
    failures = pl.read_parquet(result.run / "failures.parquet").filter(pl.col("stage") == "extraction")
    train = {row["id"] for row in corpus.rows() if row["split"] == "train"}
    assert set(failures["id"]) == broken
    assert set(failures["reason"]) == {"blocked"}
    assert sorted([*rules["sample_id"], *failures["id"]]) == sorted(train)


def test_c3_compiling_again_sends_nothing(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path)
    first = compiled(tmp_path, cast_.models())
    kept, sent = artifacts(first.run), cast_.sent()
    assert first.requests["sent"] == sent
    second = compiled(tmp_path, cast_.models())
    assert cast_.sent() == sent
    assert second.requests["sent"] == 0
    assert second.requests["cached"] == first.requests["sent"] + first.requests["cached"]
    assert artifacts(second.run) == kept


def test_c3_a_changed_label_sends_only_what_it_changes(tmp_path: Path) -> None:
    data = corpus.rows()
    cast_ = recorded(tmp_path, data)
    first = compiled(tmp_path, cast_.models())
    before = len(cast_.teacher.asked)
    changed = next(row for row in data if row["split"] == "train")
    changed["label"] = next(label for label in corpus.WORDS if label != changed["label"])
    corpus.write(tmp_path, data)
    lines: list[Event] = []
    second = compiled(tmp_path, cast_.models(), emit=lines.append)
    again = cast_.teacher.asked[before:]
    assert [request.id for request in again] == [changed["id"]]
    assert second.requests["cached"] > 0.5 * first.requests["sent"]
    told = [event.text for event in lines if isinstance(event, Notice)]
    assert any("the data changed" in line for line in told)
    assert not any("not the model of last time" in line for line in told)


def test_local_models_are_refitted_and_say_so(tmp_path: Path) -> None:
    data = corpus.rows()
    corpus.write(tmp_path, data)
    compiled(tmp_path)
    next(row for row in data if row["split"] == "train")["label"] = "praise"
    next(row for row in data if row["split"] == "train" and row["label"] != "outage")["label"] = "outage"
    corpus.write(tmp_path, data)
    lines: list[Event] = []
    compiled(tmp_path, emit=lines.append)
    told = [event.text for event in lines if isinstance(event, Notice)]
    assert any("teacher" in line and "fitted anew" in line for line in told)


def test_c7_no_validation_or_test_text_is_shown_to_a_model_that_writes(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path, more='[teacher]\nmodel = "local:"\n')
    result = compiled(tmp_path, cast_.models(), ablation=True)
    shown = cast_.teacher.seen() + cast_.synthesizer.seen() + cast_.resolver.seen()
    assert cast_.resolver.asked, "the resolver was never asked: this test would show nothing"
    student = cast_.student.seen() + result.prompt.text
    for row in corpus.rows():
        # every text holds a word of its own, ticketN
        own = next(word for word in row["text"].split() if word.startswith("ticket"))
        if row["split"] == "train":
            assert f"{own} " in f"{shown} " or f"{own}\n" in shown
        else:
            assert own not in set(shown.split())
        if row["split"] == "test":
            assert own not in set(student.split())


def test_c9_every_instruction_traces_to_rules_samples_calls_and_edits(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path)
    result = compiled(tmp_path, cast_.models())
    document = json.loads((result.run / "prompt.json").read_bytes())
    rules = {row["sample_id"]: row for row in pl.read_parquet(result.run / "rules.parquet").to_dicts()}
    clusters = {
        row["sample_id"]: row["cluster"]
        for row in pl.read_parquet(result.run / "clusters.parquet").to_dicts()
    }
    rounds = [json.loads(path.read_bytes()) for path in sorted((result.run / "rounds").glob("*.json"))]
    candidates = {one["name"]: one for record in rounds for one in record["candidates"]}
    samples = {row["id"]: row for row in corpus.rows() if row["split"] == "train"}
    calls = {request.digest("teacher").hex(): request.id for request in cast_.teacher.asked}
    instructions = [one for one in (document["general"], *document["instructions"]) if one is not None]
    assert instructions
    for instruction in instructions:
        assert instruction["rule_ids"] or instruction["edits"], "an instruction from nowhere"
        for rule_id in instruction["rule_ids"]:
            rule = rules[rule_id]
            assert rule["label"] == samples[rule_id]["label"]
            assert calls[rule["request"]] == rule_id
            if instruction["cluster"] is not None:
                assert clusters[rule_id] == instruction["cluster"]
        for edit in instruction["edits"]:
            name, number = edit.rsplit(".", 1)
            candidate = candidates[name]
            assert candidate["accepted"]
            made = candidate["edits"][int(number) - 1]
            assert made["action"] == "add" or made["instruction"] == instruction["id"]
            assert candidate["failures"]
            assert set(candidate["failures"]) | set(candidate["successes"]) <= set(samples)
    for cluster in {one["cluster"] for one in instructions} - {None}:
        members = sorted(rule for rule, number in clusters.items() if number == cluster)
        told = next(one for one in instructions if one["cluster"] == cluster)["rule_ids"]
        assert sorted(told) == members


def test_c12_two_runs_leave_the_same_bytes(tmp_path: Path) -> None:
    corpus.write(tmp_path / "a")
    corpus.write(tmp_path / "b")
    one = compiled(tmp_path / "a", ablation=True)
    two = compiled(tmp_path / "b", ablation=True)
    assert artifacts(one.run) == artifacts(two.run)


def test_c8_the_best_prompt_is_kept(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compiled(tmp_path)
    rounds = [json.loads(path.read_bytes()) for path in sorted((result.run / "rounds").glob("*.json"))]
    scored = [one["validation"]["macro_f1"] for r in rounds for one in r["candidates"] if "validation" in one]
    assert result.validation.compiled.macro_f1 >= max(scored)
    assert rounds[-1]["best"]["prompt_sha256"] == result.prompt.sha256
    for record in rounds:
        for candidate in record["candidates"]:
            assert candidate["why"]


def test_ablation_prompts_are_scored_by_evaluate(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compiled(tmp_path, ablation=True)
    found = asyncio.run(evaluate(result.run, adapters.open_student("local:")))
    assert {"compiled", "zero_shot", "majority", "tfidf_logreg", "clustered", "resolver_only"} == set(
        found.systems
    )
    document = json.loads((result.run / "evaluation.json").read_bytes())["test"]
    assert document["n"] == 60
    assert document["prompt_sha256"] == result.prompt.sha256
    assert found.verdict is not None
    assert found.verdict.decision == "gain"
    without = compiled(tmp_path)
    assert not (without.run / "ablation" / "resolver_only.json").exists()


def test_the_resolver_builds_a_prompt_from_nothing(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compiled(tmp_path, ablation=True)
    document = json.loads((result.run / "ablation" / "resolver_only.json").read_bytes())
    written = [one for one in (document["general"], *document["instructions"]) if one is not None]
    assert written
    for one in written:
        assert not one["rule_ids"]
        assert one["edits"]


def test_another_task_in_the_directory_is_refused(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    compiled(tmp_path)
    kept = artifacts(tmp_path / "run")
    path = tmp_path / "pld.toml"
    path.write_text(path.read_text().replace('"tickets"', '"other"'))
    with pytest.raises(RunError, match=r"holds the task 'tickets'.*--run"):
        compiled(tmp_path)
    assert artifacts(tmp_path / "run") == kept


def test_stopping_saves_and_resuming_ends_the_same(tmp_path: Path) -> None:
    corpus.write(tmp_path / "whole")
    whole = compiled(tmp_path / "whole")
    corpus.write(tmp_path / "cut")
    for stage in ("extraction", "clustering", "resolution"):
        stop = StopSignal()

        def stop_in(event: Event, stage: str = stage, stop: StopSignal = stop) -> None:
            if isinstance(event, StageStarted) and event.stage == stage:
                stop.request()

        with pytest.raises(InterruptedRunError):
            compiled(tmp_path / "cut", emit=stop_in, stop=stop)
    resumed = compiled(tmp_path / "cut")
    assert artifacts(resumed.run) == artifacts(whole.run)


def test_shuffled_labels_are_no_gain(tmp_path: Path) -> None:
    data = corpus.rows(600)
    labels = [row["label"] for row in data if row["split"] == "train"]
    labels = labels[37:] + labels[:37]
    for row, label in zip((row for row in data if row["split"] == "train"), labels, strict=True):
        row["label"] = label
    corpus.write(tmp_path, data)
    result = compiled(tmp_path)
    found = asyncio.run(evaluate(result.run, adapters.open_student("local:")))
    assert found.compiled.macro_f1 < 0.5


def test_c11_no_row_text_in_events_failures_or_errors(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path)
    broken = {row["id"] for row in corpus.rows() if row["split"] == "train" and row["id"].endswith("2")}

    def break_some(request: Request, outcome: ChatOutcome) -> ChatOutcome:
        # an answer that repeats the row and is not the JSON that was asked for
        return Answer(request.messages[-1].content) if request.id in broken else outcome

    cast_.teacher.change = break_some
    told: list[Event] = []
    result = compiled(tmp_path, cast_.models(), emit=told.append)
    failures = pl.read_parquet(result.run / "failures.parquet")
    assert set(failures["id"]) == broken
    said = repr(told) + failures.write_csv()
    for row in corpus.rows():
        assert next(word for word in row["text"].split() if word.startswith("ticket")) not in said


def test_private_to_the_user(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compiled(tmp_path)
    for root in (result.run, tmp_path / ".pld-cache"):
        assert root.stat().st_mode & 0o777 == 0o700
        for path in root.rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_c8_a_cap_on_cost_ends_resolution_with_the_best_so_far(tmp_path: Path) -> None:
    def think_long(_request: Request, outcome: ChatOutcome) -> ChatOutcome:
        assert isinstance(outcome, Answer)
        return replace(outcome, usage=Usage(outcome.usage.input_tokens, 8000))

    # noisy labels keep the resolver busy for more rounds
    data = corpus.rows(noise=0.3)
    price = Price(1.0, 1.0)
    whole = recorded(tmp_path / "whole", data)
    cut = recorded(tmp_path / "cut", data)
    for one in (whole, cut):
        one.resolver.price = price
        one.resolver.change = think_long
    costs = compiled(tmp_path / "whole", whole.models(), max_cost_usd=1e9).cost_usd
    # room for one reservation (all bytes of the request and the longest answer), not for all requests
    cap = costs * 0.6
    result = compiled(tmp_path / "cut", cut.models(), max_cost_usd=cap)
    assert 0 < result.cost_usd <= cap
    assert "cap" in result.stop_reason
    assert result.verdict
    assert load_prompt(result.run) == result.prompt
    # with the cap lifted the same directory goes on to where the whole run ended
    more = compiled(tmp_path / "cut", cut.models(), max_cost_usd=1e9)
    assert more.prompt == compiled(tmp_path / "whole", whole.models(), max_cost_usd=1e9).prompt


def test_c4_a_cap_on_cost_stops_extraction_and_nothing_is_lost(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path)
    cast_.teacher.price = Price(1.0, 1.0)
    with pytest.raises(BudgetError):
        compiled(tmp_path, cast_.models(), max_cost_usd=0.02)
    asked = len(cast_.teacher.asked)
    assert 0 < asked < 120
    # the cap is the run's: the same command cannot spend it again
    with pytest.raises(BudgetError):
        compiled(tmp_path, cast_.models(), max_cost_usd=0.02)
    assert len(cast_.teacher.asked) - asked <= asked
    cast_.teacher.price = None
    with pytest.raises(BudgetError, match="unknown"):
        compiled(tmp_path, cast_.models(), max_cost_usd=0.02)


def test_no_prompt_is_longer_than_its_limit(tmp_path: Path) -> None:
    cast_ = recorded(tmp_path, more="max_prompt_tokens = 260\n")
    lines: list[Event] = []
    result = compiled(tmp_path, cast_.models(), emit=lines.append)
    assert result.to_json()["prompt_tokens"] <= 260
    asked = {request.messages[0].content for request in cast_.student.asked}
    assert max(map(estimate_tokens, asked)) <= 260, "the student was tried on a prompt that cannot be taken"
    assert any("left out" in event.text for event in lines if isinstance(event, Notice))
