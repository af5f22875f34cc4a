"""The checks on 880 rules that a language model wrote for real rows: no false alarms, nothing missed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import polars as pl
import pytest

from bench.quality import DATA_SETS
from engine.distillation.answers import ExtractionAnswer
from engine.distillation.checks import RuleChecks, copies
from engine.types import Sample

pytestmark = pytest.mark.slow

NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b")
NUMBER = re.compile(r"(?<![\w.,:/-])\d{2,}(?![\w.,:/%-])")


@dataclass
class Recorded:
    """Rules with the rows that they were drawn from, and the checks of the whole training set."""

    checks: RuleChecks
    rules: list[tuple[Sample, ExtractionAnswer]]
    texts: list[str]

    def kinds(self, sample: Sample, rule: str) -> set[str]:
        answer = ExtractionAnswer(analysis="", instruction=rule, label=sample.label)
        return {one.kind for one in self.checks.findings(sample, answer)}

    def planted(self, piece: re.Pattern[str], kind: str, few: float) -> tuple[int, int]:
        """How many rules, and in how many of them a piece of their row was found that few rows hold."""
        rng = Random(7)
        asked = found = 0
        for sample, answer in self.rules:
            pieces = piece.findall(sample.text)
            rng.shuffle(pieces)
            rare = next((one for one in pieces[:5] if self.is_rare(one, few)), None)
            if rare is not None:
                asked += 1
                found += kind in self.kinds(sample, f"Where it says {rare}, mind this: {answer.instruction}")
        return asked, found

    def is_rare(self, piece: str, share: float) -> bool:
        return sum(piece.lower() in text for text in self.texts) <= share * len(self.texts)


@pytest.fixture(scope="module", params=["contract_nli", "stereoset"])
def recorded(request: pytest.FixtureRequest, pld_data: Path) -> tuple[str, Recorded]:
    name = request.param
    folder = pld_data.parent / "recorded"
    if not folder.is_dir():
        pytest.skip("no recorded rules: set PLD_DATA to the folder that holds data/ and recorded/")
    train = pl.read_parquet(pld_data / f"{name}.parquet").filter(pl.col("split") == "train")
    rows = {row["id"]: Sample(row["id"], row["text"], row["label"], "train") for row in train.to_dicts()}
    told = pl.read_parquet(
        folder / f"{name}_rules.parquet", columns=["id", "label", "analysis", "instruction"]
    )
    rules = [
        (rows[one["id"]], ExtractionAnswer.model_validate({key: one[key] for key in one if key != "id"}))
        for one in told.to_dicts()
    ]
    labels = sorted(train["label"].unique())
    texts = train["text"].to_list()
    checks = RuleChecks(texts, f"{DATA_SETS[name]} {' '.join(labels)}", labels)
    return name, Recorded(checks, rules, [text.lower() for text in texts])


def test_a_good_teacher_is_seldom_asked_again(recorded: tuple[str, Recorded]) -> None:
    name, found = recorded
    kinds = Counter(one.kind for sample, rule in found.rules for one in found.checks.findings(sample, rule))
    copied = kinds.pop("copied", 0)
    # measured: none of 880
    assert sum(kinds.values()) <= 0.01 * len(found.rules), kinds
    # it quotes contracts' phrases ("on a need to know basis") where nobody forbade it: 81 of 480
    assert copied == sum(copies(sample.text, rule.instruction) for sample, rule in found.rules)
    assert copied <= (0.2 if name == "contract_nli" else 0.0) * len(found.rules)


def test_planted_names_and_numbers_are_found(recorded: tuple[str, Recorded]) -> None:
    name, found = recorded
    asked, hits = found.planted(NAME, "names", 0.01)
    assert asked > 30
    assert hits >= 0.98 * asked
    asked, hits = found.planted(NUMBER, "numbers", 0.15)
    assert asked > 30 or name == "stereoset"
    assert hits >= 0.98 * asked


def test_another_label_and_a_copy_are_found(recorded: tuple[str, Recorded]) -> None:
    _, found = recorded
    labels = sorted({sample.label for sample, _ in found.rules})
    for sample, answer in found.rules[::5]:
        for other in set(labels) - {sample.label}:
            wrong = answer.model_copy(update={"label": other})
            assert "other_label" in {one.kind for one in found.checks.findings(sample, wrong)}
        rule = f"Where it says {' '.join(sample.text.split()[:14])} and the like: {sample.label}"
        assert "copied" in found.kinds(sample, rule)
