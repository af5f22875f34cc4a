"""The journal of open parts: what it gives back after a kill at any byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.bulk.journal import PartJournal, file_name
from engine.errors import RunError
from engine.ports import Record
from engine.scheduler import encode_answer
from engine.types import Answer, Failure, Usage

ANSWERS = [
    Answer("fine", Usage(3, 1), label_logprobs={"fine": -0.1, "rude": -2.5}),
    Failure("", "timeout", "no answer within 60 s"),
    Answer("half \ud800", Usage(3, 1)),
    Failure("", "refused", "half \ud800"),
]


def record(row: int, outcome: Answer | Failure) -> Record:
    failed = outcome if isinstance(outcome, Failure) else None
    payload = None if isinstance(outcome, Failure) else encode_answer(outcome)
    return Record(b"key", str(row), "classify", "student", payload, failed, Usage(), 0.0)


def filled(folder: Path) -> PartJournal:
    journal = PartJournal(folder, part_rows=10)
    asyncio.run(journal.commit([record(30 + n, outcome) for n, outcome in enumerate(ANSWERS)]))
    return journal


def test_gives_back_what_was_committed_by_part(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    asyncio.run(journal.commit([record(7, ANSWERS[0]), record(39, ANSWERS[0])]))
    assert journal.parts() == {0, 3}
    assert [(result.id, result.outcome) for result in journal.load(0)] == [("7", ANSWERS[0])]
    kept = journal.load(3)
    assert [result.id for result in kept] == ["30", "31", "32", "33", "39"]
    assert kept[0].outcome == kept[4].outcome == ANSWERS[0]
    assert kept[1].outcome == Failure("31", "timeout", "no answer within 60 s")
    assert kept[3].outcome == Failure("33", "refused", "half \ufffd")
    assert journal.load(1) == []
    assert (tmp_path / file_name(3)).stat().st_mode & 0o777 == 0o600


def test_a_file_cut_anywhere_gives_its_whole_frames_and_grows_on(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / file_name(3)
    whole = path.read_bytes()
    counts = set()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        journal = PartJournal(tmp_path, part_rows=10)
        kept = journal.load(3)
        counts.add(len(kept))
        assert [result.id for result in kept] == [str(30 + n) for n in range(len(kept))]
        asyncio.run(journal.commit([record(38, ANSWERS[0])]))
        assert [result.id for result in journal.load(3)] == [*(result.id for result in kept), "38"]
    assert counts == {0, 1, 2, 3}


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\xff" * 40, b"\x01" * 17])
def test_a_tail_that_never_got_to_the_disk_is_dropped(tmp_path: Path, tail: bytes) -> None:
    journal = filled(tmp_path)
    path = tmp_path / file_name(3)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(journal.load(3)) == len(ANSWERS)
    assert path.read_bytes() == whole


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    path = tmp_path / file_name(3)
    path.write_bytes(path.read_bytes().replace(b"timeout", b"timeouT"))
    assert [result.id for result in journal.load(3)] == ["30"]


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    journal = PartJournal(tmp_path / "gone", part_rows=10)
    with pytest.raises(RunError, match="cannot be written"):
        asyncio.run(journal.commit([record(1, ANSWERS[0])]))
