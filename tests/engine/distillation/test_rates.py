"""Figures of answers that could not be used, and the warnings that follow from them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.cli.figures import rules_line
from engine.distillation.pipeline import compile_prompt
from engine.distillation.rates import Rates, Unusable, rate_warnings
from engine.events import Event, Notice
from engine.store import load_dataset
from engine.types import AttemptFailure, ChatOutcome, Request
from tests.support import corpus
from tests.support.recording import cast


def lost(asked: int, failures: int = 0, reason: str = "blocked") -> Rates:
    return Rates(asked, failures, reasons={reason: failures} if failures else {})


def told(**by_label: Rates) -> list[str]:
    asked = sum(one.asked for one in by_label.values())
    return rate_warnings(Rates(asked, sum(one.failures for one in by_label.values())), by_label)


@pytest.mark.parametrize(
    "by_label",
    [
        {},
        {"fine": lost(100)},
        {"fine": lost(100, 5), "hate": lost(50, 2)},  # 5%, and fewer than three rows
        {"fine": lost(1000, 50)},
    ],
)
def test_a_few_lost_rows_are_no_news(by_label: dict[str, Rates]) -> None:
    assert told(**by_label) == []


def test_a_label_that_is_hit_harder_than_others_is_named() -> None:
    assert told(fine=lost(900, 9), hate=lost(100, 20), spam=lost(50, 3, "copied")) == [
        "label 'hate': 20 of 100 training rows (20%) brought no rule, against 1.3% of the others: what is "
        "left is biased against it; mostly a safety filter held the answer back: take a teacher that lets "
        "such text through",
        "label 'spam': 3 of 50 training rows (6%) brought no rule, against 2.9% of the others: what is left "
        "is biased against it; mostly the rule copied the text: a teacher that follows instructions better "
        "would lose fewer",
    ]


def test_labels_that_are_hit_alike_are_not_called_biased() -> None:
    (first, second) = told(a=lost(100, 10, "timeout"), b=lost(100, 10, "timeout"))
    assert first == (
        "label 'a': 10 of 100 training rows (10%) brought no rule; mostly requests failed (timeout): "
        "`pld compile --retry-failed` asks them again"
    )
    assert second.startswith("label 'b'")
    assert told(only=lost(10, 10))[0].startswith(
        "label 'only': 10 of 10 training rows (100%) brought no rule;"
    )


def test_not_every_one_of_many_labels_is_named() -> None:
    found = told(**{f"l{number:02d}": lost(100, 10 + number) for number in range(12)})
    assert len(found) == 6
    assert found[0].startswith("label 'l11'")
    assert found[-1] == "7 more labels lost over 5% of their rows"


@pytest.mark.parametrize(
    ("rates", "warned"),
    [
        (Rates(100, asked_again=20, first={"copied": 10, "names": 10}), False),
        (Rates(100, asked_again=21, first={"copied": 10, "names": 10, "empty": 1}), True),
        (Rates(100, asked_again=11, first={"malformed": 11}), True),
        (Rates(100, asked_again=9, first={"malformed": 9}), False),
        (Rates(10, asked_again=9, first={"malformed": 9}), False),  # too few to tell
        (Rates(), False),
    ],
)
def test_many_second_askings_are_told(rates: Rates, warned: bool) -> None:
    assert bool(rate_warnings(rates, {})) == warned


def test_what_second_askings_have_in_common_is_said() -> None:
    (line,) = rate_warnings(Rates(200, asked_again=60, first={"copied": 20, "malformed": 40}), {})
    assert line == (
        "60 of 200 rows (30%) had to be asked again; of the first answers 40 had one fault in common: the "
        "answer was not the JSON that was asked for: take a teacher that keeps to a JSON schema"
    )


KINDS = st.builds(
    Unusable,
    st.sampled_from(["malformed", "cut", "blocked", "timeout", "findings"]),
    st.lists(st.sampled_from(["copied", "names"]), unique=True, max_size=2).map(tuple),
)


@given(
    st.dictionaries(st.integers(0, 30).map(str), KINDS),
    st.dictionaries(st.integers(0, 30).map(str), KINDS),
    st.sets(st.integers(0, 30).map(str)),
    st.integers(0, 31),
)
def test_figures_of_parts_add_up_to_the_whole(
    first: dict[str, Unusable], last: dict[str, Unusable], again: set[str], cut: int
) -> None:
    ids = [str(number) for number in range(31)]
    one, two, whole = (
        Rates.of(some, first=first, last=last, again=again) for some in (ids[:cut], ids[cut:], ids)
    )
    for name in ("asked", "usable", "failures", "asked_again"):
        assert getattr(one, name) + getattr(two, name) == getattr(whole, name)
    for name in ("first", "findings", "reasons"):
        parts, all_ = (getattr(one, name), getattr(two, name)), getattr(whole, name)
        assert {key: sum(part.get(key, 0) for part in parts) for key in all_} == all_
    assert sum(whole.reasons.values()) == whole.failures == len(last)


def test_a_run_has_its_figures_and_warns_of_a_filter_that_hits_one_label(tmp_path: Path) -> None:
    settings = corpus.config(tmp_path)
    models = cast(settings, load_dataset(settings).train)
    labels = {row["id"]: row["label"] for row in corpus.rows() if row["split"] == "train"}
    held_back = sorted(one for one, label in labels.items() if label == "outage")[::2]

    def filtered(request: Request, outcome: ChatOutcome) -> ChatOutcome:
        return AttemptFailure("blocked", "HTTP 400") if request.id in held_back else outcome

    models.teacher.change = filtered
    events: list[Event] = []
    result = asyncio.run(compile_prompt(settings, models.models(), run=tmp_path / "run", emit=events.append))
    figures = json.loads((tmp_path / "run" / "manifest.json").read_bytes())["stages"]["extraction"]
    assert result.to_json()["extraction"] == figures
    assert figures["by_label"]["outage"]["blocked"] == len(held_back) == figures["failures"]
    assert figures["by_label"]["praise"]["reasons"] == {}
    assert figures["asked"] == len(labels)
    warned = [one.text for one in events if isinstance(one, Notice) and one.warning]
    (line,) = [one for one in warned if one.startswith("extraction: ")]
    assert f"label 'outage': {len(held_back)} of " in line
    assert "against 0.0% of the others" in line
    assert "safety filter" in line
    share = len(held_back) / list(labels.values()).count("outage")
    assert rules_line(figures) == (
        f"rules: {len(labels) - len(held_back)} of {len(labels)} training rows; {len(held_back)} set aside "
        f"({len(held_back)} blocked), {share:.1%} of outage"
    )


def test_the_line_of_figures_is_short_where_all_went_well() -> None:
    figures = {"rules": 1200, **Rates(1200).to_json(), "by_label": {}}
    assert rules_line(figures) == "rules: 1,200 of 1,200 training rows"
    figures |= {"asked_again": 9, "malformed": 3, "findings": {"copied": 5, "too_long": 3}}
    assert rules_line(figures) == (
        "rules: 1,200 of 1,200 training rows; 9 asked again (5 copied, 3 malformed, 3 too long)"
    )
