"""Answers that misbehave as real models' do: what each lapse is, and that the server counts them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.local import fit_local
from bench.fake_server import LAPSES, Behaviour, body_key
from bench.fake_server.behaviour import LapseName
from bench.fake_server.faults import draw_lapse
from bench.fake_server.lapses import COPIED_WORDS, OVER_LONG_WORDS, Planted, plant
from bench.fake_server.wire import ChatCall
from engine.distillation.answers import ExtractionAnswer, ResolutionAnswer, read_answer, schema_of
from engine.fences import fence
from engine.types import Answer, AnswerSchema, Failure, FinishReason, Message, Request
from tests.adapters.local.corpus import LABELS, train
from tests.bench.fake_server.client import Client, Got, against

ROW = "My invoice of March 14 was charged twice, says Henrietta; please send the 29.50 euros back."
GOOD = {"analysis": "It asks for money back.", "instruction": "Choose billing.", "label": "billing"}
AGAIN = (Message("assistant", "{}"), Message("user", "again"))


def call(
    schema: AnswerSchema | None = None, *more: Message, row: str = ROW, max_output_tokens: int = 2048
) -> ChatCall:
    shown = (Message("system", "# Task"), Message("user", fence("input", row, label="billing")), *more)
    schema = schema or schema_of(ExtractionAnswer, LABELS)
    return ChatCall("teacher", Request("", shown, max_output_tokens, schema))


def planted(
    lapse: LapseName, asked: ChatCall | None = None, chance: float = 0.5, **fields: object
) -> tuple[str, Planted | None]:
    text = orjson.dumps({**GOOD, **fields}).decode()
    answer, told = plant(lapse, asked or call(), Answer(text), chance)
    assert answer.finish_reason is FinishReason.STOP
    assert (answer.text == text) == (told is None)
    return answer.text, told


def instruction(text: str) -> str:
    found: str = orjson.loads(text)["instruction"]
    return found


@pytest.mark.parametrize("lapse", ["prose", "code_fence", "trailing_comma", "single_quotes", "cut_short"])
def test_what_is_not_json(lapse: LapseName) -> None:
    text, told = planted(lapse)
    assert told == Planted(lapse, "extraction", False, ROW, "")
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(text)
    assert "billing" in text or lapse == "cut_short"


def test_fields_that_are_not_asked_for() -> None:
    text, _ = planted("extra_field")
    assert orjson.loads(text) == {**GOOD, "confidence": "high"}
    assert isinstance(read_answer(ExtractionAnswer, "r", Answer(text)), Failure)


def test_labels() -> None:
    for chance in (0.01, 0.5, 0.99):
        text, told = planted("wrong_label", chance=chance)
        label = orjson.loads(text)["label"]
        assert label in set(LABELS) - {"billing"}
        assert told is not None
        assert told.piece == label
        text, told = planted("label_case", chance=chance)
        label = orjson.loads(text)["label"]
        assert label != "billing"
        assert label.lower() == "billing"
        assert label not in LABELS


def test_instructions() -> None:
    assert instruction(planted("no_instruction")[0]) == ""
    assert len(instruction(planted("over_long")[0]).split()) > OVER_LONG_WORDS
    for lapse, pieces in (("names", {"March", "Henrietta"}), ("numbers", {"14", "29.50"})):
        found = set()
        for chance in (0.2, 0.8):
            text, told = planted(lapse, chance=chance)  # type: ignore[arg-type]
            assert told is not None
            assert told.piece in instruction(text)
            found.add(told.piece)
        assert found == pieces
    for chance in (0.0001, 0.5, 0.9999):
        text, told = planted("copied", chance=chance)
        assert told is not None
        assert told.piece in ROW
        assert told.piece in instruction(text)
        assert len(re.findall(r"\w+", told.piece)) == COPIED_WORDS


def test_edits() -> None:
    edits: list[dict[str, str]] = []
    good = Answer(orjson.dumps({"analysis": "x", "edits": edits}).decode())
    answer, told = plant("unknown_edit", call(schema_of(ResolutionAnswer)), good, 0.5)
    assert told == Planted("unknown_edit", "resolution", False, "", "I999")
    read = read_answer(ResolutionAnswer, "r", answer)
    assert isinstance(read, ResolutionAnswer)
    assert [edit.instruction for edit in read.edits] == ["I999"]


@pytest.mark.parametrize("lapse", ["copied", "names", "numbers", "unknown_edit"])
def test_what_has_no_place_leaves_the_answer_as_it_is(lapse: LapseName) -> None:
    assert planted(lapse, call(row="a refund, please"))[1] is None


def test_limits_of_the_request_hold() -> None:
    assert planted("over_long", call(max_output_tokens=100))[1] is None
    cut = Answer("{", finish_reason=FinishReason.LENGTH)
    assert plant("prose", call(), cut, 0.5) == (cut, None)
    choice = ChatCall("student", Request("", (Message("user", "x"),), 8, choices=("a", "b")))
    assert plant("prose", choice, Answer("a"), 0.5) == (Answer("a"), None)


def test_a_second_asking_is_told_from_the_first() -> None:
    _, told = planted("prose", call(None, *AGAIN))
    assert told is not None
    assert told.again


def test_lapses_come_in_their_shares() -> None:
    behaviour = Behaviour(answers="local", local_fit="x", lapses=dict.fromkeys(LAPSES, 0.05))
    n = 20_000
    drawn = Counter(draw_lapse(behaviour, body_key(b"%d" % i), 1) for i in range(n))
    for name in LAPSES:
        assert drawn[name] / n == pytest.approx(0.05, abs=0.01)


def test_the_server_tells_what_it_planted(tmp_path: Path) -> None:
    fit_local(train(240), LABELS, seed=7, dimensions=16).save(tmp_path / "local.json")
    schema = schema_of(ExtractionAnswer, LABELS)
    form = {"name": schema.name, "schema": dict(schema.json_schema)}
    bodies = [
        orjson.dumps(
            {
                "model": "teacher",
                "messages": [
                    {"role": "user", "content": fence("input", f"{ROW} Ticket {n}.", label="billing")}
                ],
                "response_format": {"type": "json_schema", "json_schema": form},
            }
        )
        for n in range(100)
    ]

    async def use(client: Client) -> tuple[list[Got], dict[str, Any], dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.post("/v1/chat/completions", one)) for one in bodies]
        seen = (await client.get("/fake/seen?keys=1")).document
        await client.post("/fake/reset", {})
        return [task.result() for task in tasks], seen, (await client.get("/fake/seen?keys=1")).document

    behaviour = {"answers": "local", "local_fit": str(tmp_path / "local.json"), "seed": 1}
    faults = {"error_500": 0.1, "malformed": 0.1, "drip": 0.1}
    got, seen, after = against(use, **behaviour, faults=faults, lapses={"copied": 0.3, "wrong_label": 0.3})
    said = {}
    for one, body in zip(got, bodies, strict=True):
        try:
            content = orjson.loads(one.document["choices"][0]["message"]["content"])
        except (orjson.JSONDecodeError, LookupError):  # one of the faults
            continue
        said[body_key(body).hex()] = content
    assert 60 < len(said) < 100
    assert seen["usable"] == len(said)
    lapses = {one["key"]: one for one in seen["planted"]}
    assert len(lapses) == len(seen["planted"]) == sum(seen["by_lapse"].values())
    assert lapses.keys() < said.keys()
    for key, content in said.items():
        row = lapses.get(key, {}).get("row", "")
        bad = content["label"] != "billing" or "So it is with" in content["instruction"]
        assert bad == (key in lapses)
        assert not bad or lapses[key]["piece"] in (row if lapses[key]["lapse"] == "copied" else LABELS)
    assert 0.4 < len(lapses) / len(said) < 0.8
    assert after["planted"] == []
    assert after["by_lapse"] == {}


def test_what_needs_local_answers() -> None:
    with pytest.raises(ValueError, match="local answers"):
        Behaviour(lapses={"copied": 0.1})
    with pytest.raises(ValueError, match="count_keys"):
        Behaviour(lapses={"copied": 0.1}, answers="local", local_fit="x", count_keys=False)
    with pytest.raises(ValueError, match="all lapses add up"):
        Behaviour(lapses={"copied": 0.6, "prose": 0.6}, answers="local", local_fit="x")
