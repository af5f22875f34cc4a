"""The bundled example: a set that is varied, consistent and loads without a complaint."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.registry import check_models, scheme_of
from engine.config import Config
from engine.config_file import load_config
from engine.errors import BudgetError, ModelError
from engine.store import load_dataset
from engine.types import SPLITS

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Row:
    id: str
    text: str
    label: str
    split: str


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(EXAMPLES / "pld.toml")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with (EXAMPLES / "messages.csv").open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def test_there_are_enough_messages_in_realistic_shares(rows: list[Row], config: Config) -> None:
    counts = Counter(row.label for row in rows)
    assert len(rows) >= 640
    assert set(counts) == set(config.labels)
    assert min(counts.values()) >= 45
    assert 0.35 <= counts["ok"] / len(rows) <= 0.45


def test_labels_are_single_lower_case_words_with_a_meaning(config: Config) -> None:
    for label, meaning in config.task.labels.items():
        assert re.fullmatch(r"[a-z]+", label)
        assert meaning


def test_the_policy_is_as_long_as_a_page_and_names_every_label(config: Config) -> None:
    policy = config.policy_text()
    assert 500 <= len(policy.split()) <= 800
    for label in config.labels:
        assert f"**{label}**" in policy


def test_ids_and_texts_are_distinct(rows: list[Row]) -> None:
    assert [row.id for row in rows] == [f"m{number:04d}" for number in range(1, len(rows) + 1)]
    plain = Counter(" ".join(WORD.findall(row.text.casefold())) for row in rows)
    assert [text for text, times in plain.items() if times > 1] == []


def test_messages_are_from_three_words_to_eighty(rows: list[Row]) -> None:
    for row in rows:
        assert row.text == row.text.strip(), row.id
        assert 3 <= len(row.text.split()) <= 80, row.id


def test_no_wording_is_a_template(rows: list[Row]) -> None:
    """A run of five words stands in three messages at most."""
    runs: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        words = WORD.findall(row.text.lower())
        for start in range(len(words) - 4):
            runs[tuple(words[start : start + 5])].add(row.id)
    assert {run: ids for run, ids in runs.items() if len(ids) > 3} == {}


def test_each_label_is_divided_in_the_same_shares(rows: list[Row]) -> None:
    counts = Counter((row.label, row.split) for row in rows)
    totals = Counter(row.label for row in rows)
    for label, total in totals.items():
        for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
            assert abs(counts[label, split] - share * total) <= 1, (label, split)


def test_labels_are_mixed_in_the_file(rows: list[Row]) -> None:
    """A reader who takes the first rows gets every label."""
    assert {row.label for row in rows[:60]} == {row.label for row in rows}


def test_it_loads_without_a_complaint(rows: list[Row], config: Config) -> None:
    dataset = load_dataset(config)
    assert dataset.rows == len(rows)
    assert dataset.rejected == ()
    assert dataset.duplicates.groups == ()
    assert not any(dataset.duplicates.dropped.values())
    assert dataset.notices == ()
    loaded = {(s.id, s.text, s.label, s.split) for split in SPLITS for s in dataset.split(split)}
    assert loaded == {(row.id, row.text, row.label, row.split) for row in rows}


def test_every_number_and_address_is_one_that_nobody_has(rows: list[Row]) -> None:
    """Telephone numbers from the ranges set aside for fiction, hosts under .example."""
    for row in rows:
        for number in re.findall(r"\b0\d{4} \d{6}\b", row.text):
            assert number.startswith(("01632 960", "07700 900")), row.id
        for host in re.findall(r"\b[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|uk|io|co)\b", row.text):
            pytest.fail(f"{row.id} names {host}")


REMOTE = {"gemini": "GEMINI_API_KEY", "openai-compatible": "OPENAI_API_KEY"}
SCHEMES = {"gemini": {"gemini"}, "openai-compatible": {"openai", "vllm"}}


@pytest.mark.parametrize("name", REMOTE)
def test_the_configurations_for_real_models(
    name: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (*REMOTE.values(), "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"):
        monkeypatch.delenv(variable, raising=False)
    path = EXAMPLES / name / "pld.toml"
    other = load_config(path)
    # the same task on the same rows, under limits and a cap
    assert other.task.model_copy(update={"name": "", "policy": None}) == config.task.model_copy(
        update={"name": "", "policy": None}
    )
    assert other.policy_text() == config.policy_text()
    assert load_dataset(other).train == load_dataset(config).train
    assert other.teacher.requests_per_minute
    assert other.teacher.tokens_per_minute
    assert other.run.max_cost_usd
    used = (other.teacher, other.embedder, other.student)
    assert {scheme_of(one.model) for one in used} == SCHEMES[name]
    # all that a run needs is the key: every setting fits its model, every price is known
    with pytest.raises(ModelError, match=f"set the environment variable {REMOTE[name]}"):
        check_models(other, None)
    monkeypatch.setenv(REMOTE[name], "fake-key")
    check_models(other, None)
    unpriced = other.teacher.model_copy(update={"model": other.teacher.model + "-x", "thinking": None})
    with pytest.raises(BudgetError, match="unknown"):
        check_models(other.model_copy(update={"teacher": unpriced}), None)


@pytest.mark.parametrize("name", REMOTE)
def test_what_is_commented_out_is_a_configuration_too(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / name / "pld.toml").read_text(encoding="utf-8")
    settings = re.findall(r"^# (\[[\w.\"-]+\](?: +#.*)?|[a-z_]+ = .*)$", text, re.MULTILINE)
    assert settings
    without_teacher = re.sub(r"^\[teacher\]\n(?:[a-z_]+ = .*\n)+", "", text, flags=re.MULTILINE)
    kept = text if "[teacher]" not in settings else without_teacher
    (tmp_path / "pld.toml").write_text(kept + "\n".join(["", *settings]), encoding="utf-8")
    loaded = load_config(tmp_path / "pld.toml")
    assert loaded.prices


def test_the_readme_counts_what_is_there(rows: list[Row], config: Config) -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    counts = Counter((row.label, row.split) for row in rows)
    assert f"{len(rows):,} messages" in readme
    for label in config.labels:
        assert f"| {label} | {' | '.join(str(counts[label, split]) for split in SPLITS)} |" in readme
