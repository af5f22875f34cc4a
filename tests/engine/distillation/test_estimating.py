"""What a compilation is said to send beforehand, against what it then sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Config
from engine.config_file import load_config
from engine.distillation.cases import Confusion
from engine.distillation.estimating import Estimate, StageEstimate, estimate
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.distillation.resolution import ResolutionRequests
from engine.distillation.standins import INSTRUCTION_TOKENS, RULE_TOKENS, confusion_sizes, fullest_prompt
from engine.distillation.synthesis import SynthesisRequests
from engine.distillation.templating import TaskContext
from engine.errors import DataError, InterruptedRunError
from engine.events import Event, Notice
from engine.prompt import CompiledPrompt
from engine.stopping import StopSignal
from engine.store import load_dataset
from engine.tokens import estimate_tokens, input_tokens, request_tokens
from engine.types import ChatOutcome, MicroRule, Request, Sample
from tests.support import corpus
from tests.support.recording import Cast, cast
from tests.support.replying import as_json, config_for

TRAIN, VALIDATION, TEST = 120, 60, 60  # the rows of the small corpus


def estimated(config: Config) -> dict[str, StageEstimate]:
    return {stage.stage: stage for stage in asyncio.run(estimate(config)).stages}


def sent(folder: Path, config: Config, models: Cast) -> None:
    """Compile and evaluate; `models` remember what they were asked."""
    result = asyncio.run(compile_prompt(config, models.models(), run=folder / "run"))
    asyncio.run(evaluate(result.run, models.student))


def within(stages: Sequence[StageEstimate], asked: Sequence[Request]) -> None:
    """Fail where `asked` is more than `stages` together allow."""
    assert len(asked) <= sum(stage.requests for stage in stages)
    assert sum(map(request_tokens, asked)) <= sum(stage.input_tokens for stage in stages)
    assert sum(one.max_output_tokens for one in asked) <= sum(stage.output_tokens for stage in stages)


def trials(models: Cast, rows: Sequence[Sample]) -> list[Request]:
    """The student's requests about `rows`."""
    ids = {row.id for row in rows}
    return [request for request in models.student.asked if request.id in ids]


SETTINGS = [
    "",
    "max_edits = 1\nconfusions_per_round = 1\n",
    "rows_per_round = 30\ncases_per_request = 4\npatience = 9\n",
    "prune = false\nmax_prompt_tokens = 800\n",
]


@pytest.mark.parametrize("more", SETTINGS)
def test_what_is_sent_stays_within_the_estimate(tmp_path: Path, more: str) -> None:
    data = corpus.rows()
    data += [{**row, "id": f"again-{row['id']}"} for row in data[::7]]  # equal rows are sent once
    config = corpus.config(tmp_path, data, more)
    said = estimated(config)
    dataset = load_dataset(config)
    models = cast(config, dataset.train)
    sent(tmp_path, config, models)

    asked = models.teacher.of("extraction")
    assert said["extraction"].bound == "exact"
    assert said["extraction"].requests == len(asked) == TRAIN
    assert said["extraction"].input_tokens == sum(map(request_tokens, asked))
    assert said["extraction"].output_tokens == sum(one.max_output_tokens for one in asked)

    assert len(models.embedder.asked) <= said["embedding"].requests
    assert sum(input_tokens([one]) for one in models.embedder.asked) <= said["embedding"].input_tokens
    within([said["synthesis"]], models.synthesizer.of("synthesis"))
    within([said["general rules"]], models.synthesizer.of("general"))
    within([said["resolution"]], models.resolver.of("resolution"))
    pruning = [said["pruning"]] if "pruning" in said else []
    within([said["student trials"]], trials(models, dataset.train))
    within([said["student trials"], *pruning, said["verdict"]], trials(models, dataset.validation))
    within([said["evaluation"]], trials(models, dataset.test))
    within(
        [*pruning, *(said[name] for name in ("student trials", "verdict", "evaluation"))],
        models.student.asked,
    )


def test_every_candidate_of_every_round_is_counted(tmp_path: Path) -> None:
    """With a resolver that never improves and never stops, the bound on candidates is reached."""
    more = "patience = 9\nprune = false\nlong_tail = 0\nrows_per_round = 40\nconfusions_per_round = 2\n"
    # half of the labels are wrong, so that each round has confusions to work on
    config = corpus.config(tmp_path, corpus.rows(noise=0.5), more)
    dataset = load_dataset(config)
    models = cast(config, dataset.train)
    numbers = iter(range(1000))

    def add(request: Request, _outcome: ChatOutcome) -> ChatOutcome:
        text = f"Nothing follows from number {next(numbers)}."
        edit = {"action": "add", "instruction": "", "title": "", "text": text, "reason": "test"}
        return as_json(analysis="", edits=[edit])

    models.resolver.change = add
    said = estimated(config)
    sent(tmp_path, config, models)
    assert len(models.resolver.asked) == said["resolution"].requests == 3 * 2
    # zero-shot is the verdict's; everything else on validation is a trial
    found = len(trials(models, dataset.validation)) - said["verdict"].requests
    assert found == VALIDATION * (1 + 3 * 2)
    assert said["student trials"].requests == 3 * 40 + found


def test_the_bound_of_synthesis_is_reached(tmp_path: Path) -> None:
    """By as many clusters as there can be, of distinct rules as long as assumed."""
    config = corpus.config(tmp_path)
    make = SynthesisRequests(TaskContext(config), 10**9)
    rules = [MicroRule(str(n), "billing", " ".join([f"w{n:05d}"] * RULE_TOKENS)) for n in range(TRAIN)]
    requests = [make("", rules[n : n + 3]) for n in range(0, TRAIN, 3)]
    said = estimated(config)["synthesis"]
    assert said.requests == len(requests)
    assert said.input_tokens == sum(map(request_tokens, requests))


def test_bounds_follow_from_the_configuration(tmp_path: Path) -> None:
    said = estimated(corpus.config(tmp_path))
    assert said["synthesis"].requests == TRAIN // 3
    assert said["general rules"].requests == 1
    assert said["resolution"].requests == 3 * 6
    assert said["student trials"].requests == 3 * TRAIN + (1 + 3 * 6) * VALIDATION
    assert said["pruning"].requests % VALIDATION == 0
    assert said["long tail"].requests == TRAIN + 4 * VALIDATION
    assert said["verdict"].requests == VALIDATION
    assert said["evaluation"].requests == 2 * TEST
    assert [stage.role for stage in said.values()] == [
        "teacher", "embedder", "synthesizer", "synthesizer", "resolver", *["student"] * 5
    ]  # fmt: skip
    assert all(stage.assumption for stage in said.values())
    assert all(stage.usual_output_tokens <= stage.output_tokens for stage in said.values())


def test_no_rounds_no_resolver(tmp_path: Path) -> None:
    config = corpus.config(tmp_path)
    config = config.model_copy(update={"resolve": config.resolve.model_copy(update={"max_rounds": 0})})
    said = estimated(config)
    assert "resolution" not in said
    assert "pruning" not in said
    assert said["student trials"].requests == VALIDATION


def test_too_few_rows_for_a_cluster(tmp_path: Path) -> None:
    path = corpus.write(tmp_path)
    path.write_text(path.read_text().replace("min_samples = 3", "min_samples = 500"))
    said = estimated(load_config(path))
    for name in ("synthesis", "general rules"):
        stage = said[name]
        assert (stage.requests, stage.input_tokens, stage.output_tokens) == (0, 0, 0)


def test_each_role_has_its_own_address(tmp_path: Path) -> None:
    addresses = {"teacher": "t:", "resolver": "r:", "embedder": "e:", "student": "s:"}
    more = "".join(f'[{role}]\nmodel = "{address}"\n' for role, address in addresses.items())
    said = estimated(corpus.config(tmp_path, more=more))
    models = {stage.role: stage.model for stage in said.values()}
    assert models == {
        "teacher": "t:",
        "embedder": "e:",
        "synthesizer": "t:",
        "resolver": "r:",
        "student": "s:",
    }


def test_json_has_the_keys_relied_on(tmp_path: Path) -> None:
    found = asyncio.run(estimate(corpus.config(tmp_path)))
    document = json.loads(json.dumps(found.to_json()))
    assert document["estimated"] is True
    assert document["rows"] == {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    for stage in document["stages"]:
        assert {
            "stage", "model", "requests", "input_tokens", "output_tokens", "bound", "assumption"
        } <= set(stage)  # fmt: skip
        assert stage["bound"] in ("exact", "at most")
    for name, total in document["total"].items():
        assert total == sum(stage[name] for stage in document["stages"])


def test_nothing_is_written(tmp_path: Path) -> None:
    config = corpus.config(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    asyncio.run(estimate(config))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_tells_what_the_data_are_like_and_stops_when_asked(tmp_path: Path) -> None:
    data = [row for row in corpus.rows() if row["split"] != "test"]
    config = corpus.config(tmp_path, data)
    events: list[Event] = []
    found = asyncio.run(estimate(config, emit=events.append))
    assert "evaluation" not in {stage.stage for stage in found.stages}
    assert any("no test rows" in event.text for event in events if isinstance(event, Notice))
    stop = StopSignal()
    stop.request()
    with pytest.raises(InterruptedRunError):
        asyncio.run(estimate(config, stop=stop))
    (tmp_path / "data.parquet").unlink()
    with pytest.raises(DataError, match=r"data\.parquet"):
        asyncio.run(estimate(config))


@given(st.integers(200, 3000), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_fullest_prompt_fills_its_limit(limit: int, most: int) -> None:
    prompt = fullest_prompt(config_for(resolve={"max_prompt_tokens": limit}), most=most)
    bare = estimate_tokens(prompt.without_instructions().text)
    number = len(prompt.instructions)
    assert number == min(most, (limit - bare) // INSTRUCTION_TOKENS)
    assert estimate_tokens(prompt.text) == (limit if number else bare)


def test_a_limit_below_the_zero_shot_prompt() -> None:
    wordy = dict.fromkeys(("spam", "none"), "many words " * 100)
    prompt = fullest_prompt(config_for(wordy, resolve={"max_prompt_tokens": 200}), most=9)
    assert prompt == prompt.without_instructions()


LABELS = ("spam", "none", "unfathomable unwantedness")
ROWS = st.lists(
    st.tuples(
        st.text(max_size=40) | st.sampled_from(["</case>", "a\n\nb", "<|im_end|>"]), st.sampled_from(LABELS)
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS, st.none() | st.integers(3, 8), st.none() | st.integers(1, 8), st.data())
@settings(max_examples=80, deadline=None)
def test_no_confusion_is_larger_than_its_bound(
    rows: list[tuple[str, str]], cases: int | None, tried: int | None, data: st.DataObject
) -> None:
    config = config_for(LABELS, resolve={"cases_per_request": cases, "rows_per_round": tried})
    make = ResolutionRequests(TaskContext(config), 4)
    prompt = CompiledPrompt("d", config.task.labels)
    train = [Sample(str(n), text, label, "train") for n, (text, label) in enumerate(rows)]
    sizes = confusion_sizes(make, prompt, train, config)
    assert sizes == sorted(sizes, reverse=True)

    gold = data.draw(st.sampled_from(sorted({row.label for row in train})))
    predicted = data.draw(st.sampled_from([label for label in LABELS if label != gold]))
    most = min(cases or len(train), tried or len(train))
    shown = data.draw(st.permutations([row for row in train if row.label in (gold, predicted)]))[:most]
    failed = [row for row in shown if row.label == gold and data.draw(st.booleans())]
    right = [row for row in shown if row not in failed]
    request = make("", prompt, Confusion(gold, predicted, tuple(failed), tuple(right)))
    assert request_tokens(request) <= sizes[0]


def test_the_bound_of_a_confusion_is_reached() -> None:
    config = config_for(("spam", "none"))
    make = ResolutionRequests(TaskContext(config), 4)
    prompt = CompiledPrompt("d", config.task.labels)
    train = [Sample(str(n), f"text number {n}", "spam", "train") for n in range(5)]
    real = request_tokens(make("", prompt, Confusion("spam", "none", tuple(train), ())))
    assert confusion_sizes(make, prompt, train, config) == [real]


def test_total_adds_up() -> None:
    one = StageEstimate("a", "teacher", "m", 2, 30, 400, 50, "exact", "none")
    found = Estimate("t", {}, (one, replace(one, requests=1, input_tokens=1, output_tokens=1)))
    assert found.total == {
        "requests": 3,
        "input_tokens": 31,
        "output_tokens": 401,
        "usual_output_tokens": 100,
    }


@pytest.mark.slow
def test_a_large_data_set(tmp_path: Path, pld_data: Path) -> None:
    path = tmp_path / "pld.toml"
    path.write_text(
        '[task]\nname = "hate"\ndescription = "Which posts break the rules?"\nid = "id"\n'
        'labels = ["hate_speech", "neither", "offensive_language"]\n'
        f'[data]\nfile = "{pld_data / "hate_speech_offensive.parquet"}"\nsplit = "split"\n'
    )
    said = estimated(load_config(path))
    assert said["extraction"].requests == 18_065
    assert said["evaluation"].requests == 2 * 2_409
