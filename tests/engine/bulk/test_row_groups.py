"""Rows that share the beginning of their text: asked so that a cache keeps it, answered as ever."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bulk import ClassifyResult, classify, stream
from engine.bulk.grouping import AHEAD, LEAST_TOKENS, name_groups, spread
from engine.errors import InterruptedRunError
from engine.scheduler import Limits
from engine.stopping import StopSignal
from engine.store.fields import TextFields
from engine.types import ChatOutcome, Request
from tests.support.bulk import PROMPT, Student, files_of

FIELDS = TextFields(["contract", "claim"])
LONG = "word " * LEAST_TOKENS
GROUPS = st.lists(st.sampled_from(["", "", "a", "b", "c", "d", "e", "f", "g", "h"]), max_size=120)


# --- the order ---------------------------------------------------------------------------------------


@given(groups=GROUPS, ahead=st.integers(1, 60))
def test_an_order_is_a_permutation_that_keeps_first_rows_and_single_ones(
    groups: list[str], ahead: int
) -> None:
    order = spread(groups, ahead)
    assert sorted(order) == list(range(len(groups)))
    seen: set[str] = set()
    firsts = []
    for place in order:
        if not groups[place] or groups[place] not in seen:
            firsts.append(place)
        seen.add(groups[place])
    assert firsts == sorted(firsts)
    for group in set(groups) - {""}:
        members = [place for place in order if groups[place] == group]
        assert members == sorted(members)


@given(groups=GROUPS, ahead=st.integers(1, 60))
def test_the_others_of_a_group_keep_their_distance_from_its_first_row(groups: list[str], ahead: int) -> None:
    counts = Counter(group for group in groups if group)
    shared = {group for group, count in counts.items() if count > 1}
    order = [groups[place] for place in spread(groups, ahead)]
    most = max(4, math.ceil(ahead * len(shared) / max(1, len(groups))))
    heads = len(groups) - sum(counts[group] - 1 for group in shared)
    under_way: list[str] = []
    began: dict[str, int] = {}
    done: Counter[str] = Counter()
    told = 0
    for at, group in enumerate(order):
        if group not in shared:
            told += 1
        elif group not in began:
            told += 1
            began[group] = at
            under_way.append(group)
            assert len(under_way) <= most + 1, "few groups at once"
        else:
            if not done[group]:
                far = at - began[group] - 1 >= ahead
                assert far or len(under_way) > most or told == heads, "as far as there is anything to send"
                assert under_way[0] == group, "groups end as they began"
            done[group] += 1
            if done[group] == counts[group] - 1:
                under_way.remove(group)


def test_a_contract_with_17_claims_each() -> None:
    groups = [f"c{n // 17}" for n in range(17 * 240)]
    order = [groups[place] for place in spread(groups)]
    places: dict[str, list[int]] = {}
    for at, group in enumerate(order):
        places.setdefault(group, []).append(at)
    gaps = [found[1] - found[0] for found in places.values()]
    assert sum(gap >= AHEAD for gap in gaps) > 0.8 * len(gaps)
    spans = [found[-1] - found[0] for found in places.values()]
    assert max(spans) < 2 * AHEAD, "a beginning is not needed for long"
    under_way = [sum(found[0] <= at < found[-1] for found in places.values()) for at in range(len(order))]
    assert max(under_way) <= 6, "a cache with room for so many beginnings does"


def test_without_groups_nothing_moves() -> None:
    assert spread(["", "a", "", "b"]) == [0, 1, 2, 3]
    assert spread([]) == []


# --- who belongs together ----------------------------------------------------------------------------


def texts(*rows: tuple[str, ...]) -> list[str | None]:
    fields = FIELDS if len(rows[0]) == 2 else TextFields([f"field{n}" for n in range(len(rows[0]))])
    return [text for row in rows if isinstance(text := fields.read(row), str)]


def test_rows_with_one_long_first_field_are_a_group() -> None:
    rows = texts(
        (LONG + "1", "x"), ("short", "x"), (LONG + "2", "x"), (LONG + "1", "y"), ("short", "y"), (LONG, "z")
    )
    found = name_groups([*rows, None], FIELDS.beginnings)
    assert found is not None
    assert found[0] == found[3] != ""
    assert [bool(name) for name in found] == [True, False, False, True, False, False, False]
    assert LONG.split()[0] not in found[0]


def test_there_are_no_groups_where_nothing_long_repeats() -> None:
    assert name_groups(texts((LONG + "1", "x"), (LONG + "2", "x"), ("", "x")), FIELDS.beginnings) is None
    assert name_groups(texts(("short", "x"), ("short", "y")), FIELDS.beginnings) is None
    assert name_groups([None, None], FIELDS.beginnings) is None
    assert name_groups([], FIELDS.beginnings) is None
    one = TextFields("text")
    assert name_groups([LONG, LONG], one.beginnings) is None


def test_of_three_fields_as_many_are_shared_as_save_most() -> None:
    three = TextFields(["field0", "field1", "field2"])
    first = texts(*((LONG, f"question {n}", "x") for n in range(4)))
    found = name_groups(first, three.beginnings)
    assert found is not None
    assert len(set(found)) == 1, "the first field"
    both = texts(*(("title", LONG * 9 + str(n // 2), str(n)) for n in range(4)))
    found = name_groups(both, three.beginnings)
    assert found is not None
    assert found[0] == found[1] != found[2] == found[3], "the first two fields"


FIELD = st.text(alphabet="claim:\n \\x", max_size=20)


@given(one=FIELD, two=FIELD, other=FIELD)
def test_a_beginning_ends_where_the_next_field_does_begin(one: str, two: str, other: str) -> None:
    text, sibling = FIELDS.read([one, two]), FIELDS.read([one, other])
    if not isinstance(text, str) or not isinstance(sibling, str):
        return  # nothing in any field
    (end,) = FIELDS.beginnings(text)
    assert text[end:].startswith("claim:")
    assert text[:end] == sibling[: FIELDS.beginnings(sibling)[0]]
    assert FIELDS.read([one, "y"]) == text[:end] + "claim: y"


# --- in a job ----------------------------------------------------------------------------------------


class Noting(Student):
    """Keeps the groups of its requests."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.groups: list[str] = []

    async def complete(self, requests: Any) -> Any:
        asked: list[Request] = list(requests)
        self.groups += [request.group for request in asked]
        answers: list[ChatOutcome] = list(await super().complete(asked))
        return answers


def contracts(path: Path, n: int, of: int) -> Path:
    frame = pl.DataFrame(
        {
            "contract": [f"{LONG}{k // of}" if k % 13 else f"brief {k}" for k in range(n)],
            "claim": [f"claim {k % of}" if k % 5 else f"refuse {k}" for k in range(n)],
        }
    )
    frame.write_parquet(path)
    return path


def run(path: Path, out: Path, student: Student, **options: Any) -> ClassifyResult:
    columns = ["contract", "claim"]
    return asyncio.run(classify(PROMPT, student, path, out, text=columns, **options))


@pytest.mark.parametrize("part_rows", [9, 1000])
def test_the_parts_are_those_of_rows_in_order(
    tmp_path: Path, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = contracts(tmp_path / "rows.parquet", 400, 10)
    student = Noting()
    result = run(path, tmp_path / "out", student, part_rows=part_rows, limits=Limits(concurrency=1))
    assert result.rows == 400
    named = [group for group in student.groups if group]
    assert len(set(named)) == 40
    assert named[:4] == list(dict.fromkeys(named))[:4], "first rows of several groups go ahead"
    monkeypatch.setattr("engine.bulk.reading.name_groups", lambda *_: None)
    plain = Noting()
    run(path, tmp_path / "plain", plain, part_rows=part_rows, limits=Limits(concurrency=1))
    assert not any(plain.groups)
    assert plain.seen != student.seen
    assert sorted(plain.seen) == sorted(student.seen)
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "out")


@pytest.mark.parametrize("part_rows", [1, 12])
def test_few_open_parts_do_not_wait_for_rows_held_back(
    tmp_path: Path, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_OPEN_ROWS", 1)
    monkeypatch.setattr(stream, "_OPEN_PARTS", 1)
    path = contracts(tmp_path / "rows.parquet", 60, 10)
    student = Noting()
    result = run(path, tmp_path / "out", student, part_rows=part_rows)
    assert result.rows == 60
    assert any(student.groups)


def test_a_stopped_job_goes_on(tmp_path: Path) -> None:
    path = contracts(tmp_path / "rows.parquet", 300, 10)
    run(path, tmp_path / "whole", Student(), part_rows=50)
    asked: list[str] = []
    for after in (1, 90, 200):
        stop = StopSignal()
        student = Student()
        student.on_request = lambda _, s=student, at=after, stop=stop: (  # type: ignore[misc]
            stop.request() if len(s.seen) >= at else None
        )
        with pytest.raises(InterruptedRunError):
            run(path, tmp_path / "out", student, part_rows=50, stop=stop, limits=Limits(concurrency=2))
        asked += student.seen
    last = Student()
    run(path, tmp_path / "out", last, part_rows=50)
    asked += last.seen
    assert len(asked) == len(set(asked))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_one_column_is_never_looked_at(tmp_path: Path) -> None:
    pl.DataFrame({"text": [f"{LONG} {n}" for n in range(60)]}).write_parquet(tmp_path / "rows.parquet")
    student = Noting()
    asyncio.run(
        classify(PROMPT, student, tmp_path / "rows.parquet", tmp_path / "out", limits=Limits(concurrency=1))
    )
    assert [int(text.split()[-1]) for text in student.seen] == list(range(60))
    assert not any(student.groups)
