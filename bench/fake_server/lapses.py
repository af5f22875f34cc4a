"""Good answers made into what real models give at times: not the JSON asked for, or wrong in what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from bench.fake_server.behaviour import LapseName
from bench.fake_server.wire import ChatCall, phase_of
from engine.fences import read_one
from engine.types import Answer, FinishReason

COPIED_WORDS = 8
OVER_LONG_WORDS = 300
_CHARACTERS_PER_TOKEN = 4  # by which the local models count
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]{2,}\b|@\w{2,}")
_NUMBER = re.compile(r"(?<![\w.,])\d[\d.,]*\d(?!\w)")
_PADDING = "Weigh the wording, the tone and the purpose of the whole text before you decide on it."


@dataclass(frozen=True, slots=True)
class Planted:
    """One lapse in an answer that was sent.

    `phase` is what was asked for; `again` says that it was the second time, with what was wrong before. `row`
    is the row that the request shows, "" where it shows none; `piece` is what of it (or which label) stands
    in the answer and should not, "" where that is no single piece.
    """

    lapse: LapseName
    phase: str
    again: bool
    row: str
    piece: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a lapse is to go: the answer as an object, and what the request shows and allows."""

    document: dict[str, Any]
    row: str
    labels: tuple[str, ...]
    chance: float

    def one_of(self, pieces: list[str]) -> str | None:
        return pieces[int(self.chance * len(pieces))] if pieces else None

    def naming(self, piece: str) -> dict[str, Any]:
        instruction = f"{self.document['instruction']} So it is with {piece}."
        return {**self.document, "instruction": instruction}


_Spoilt = tuple[dict[str, Any], str] | None  # the answer with the lapse, and the piece


def plant(lapse: LapseName, call: ChatCall, answer: Answer, chance: float) -> tuple[Answer, Planted | None]:
    """The answer with the lapse in it, or as it is where the lapse has no place in it.

    `chance` in (0, 1) chooses among several ways. Answers to a request without a schema, and those that were
    cut at their limit, stay as they are, as does one that the lapse would make longer than that.
    """
    request = call.request
    if request.schema is None or answer.finish_reason is not FinishReason.STOP:
        return answer, None
    shown = next((one.content for one in request.messages if one.role == "user"), "")
    phase = phase_of(request.schema)
    row = read_one(shown, "input").text if phase == "extraction" else ""
    document = orjson.loads(answer.text)
    piece = ""
    if lapse in _FORMS:
        text = _FORMS[lapse](answer.text)
    else:
        labels = tuple(request.schema.json_schema.get("properties", {}).get("label", {}).get("enum", ()))
        field, spoil = _CONTENTS[lapse]
        spoilt = spoil(_Place(document, row, labels, chance)) if field in document else None
        if spoilt is None:
            return answer, None
        text, piece = orjson.dumps(spoilt[0]).decode(), spoilt[1]
    usage = replace(answer.usage, output_tokens=len(text) // _CHARACTERS_PER_TOKEN)
    if usage.output_tokens > request.max_output_tokens:
        return answer, None
    again = any(message.role == "assistant" for message in request.messages)
    return replace(answer, text=text, usage=usage), Planted(lapse, phase, again, row, piece)


# --- what is not the JSON that was asked for ----------------------------------------------------------


def _single_quotes(text: str) -> str:
    return repr(orjson.loads(text))


_FORMS: Mapping[LapseName, Callable[[str], str]] = {
    "prose": lambda text: (
        f"Here is the answer you asked for:\n\n{text}\n\nTell me if you need anything else."
    ),
    "code_fence": lambda text: f"```json\n{text}\n```",
    "trailing_comma": lambda text: f"{text[:-1]},}}",
    "single_quotes": _single_quotes,
    "cut_short": lambda text: text[: len(text) // 2],
}


# --- what is JSON, and wrong --------------------------------------------------------------------------


def _extra_field(place: _Place) -> _Spoilt:
    return {**place.document, "confidence": "high"}, ""


def _wrong_label(place: _Place) -> _Spoilt:
    label = place.one_of([one for one in place.labels if one != place.document["label"]])
    return None if label is None else ({**place.document, "label": label}, label)


def _label_case(place: _Place) -> _Spoilt:
    own = place.document["label"]
    forms = (own.upper(), own.lower(), own.title())
    label = place.one_of([one for one in forms if one not in place.labels])
    return None if label is None else ({**place.document, "label": label}, label)


def _no_instruction(place: _Place) -> _Spoilt:
    return {**place.document, "instruction": ""}, ""


def _over_long(place: _Place) -> _Spoilt:
    sentences = [place.document["instruction"]]
    sentences += [_PADDING] * (OVER_LONG_WORDS // len(_PADDING.split()) + 1)
    return {**place.document, "instruction": " ".join(sentences)}, ""


def _copied(place: _Place) -> _Spoilt:
    words = list(_WORD.finditer(place.row))
    runs = [
        place.row[first.start() : last.end()]
        for first, last in zip(words, words[COPIED_WORDS - 1 :], strict=False)
    ]
    run = place.one_of(runs)
    return None if run is None else (place.naming(run), run)


def _names(place: _Place) -> _Spoilt:
    name = place.one_of(_NAME.findall(place.row))
    return None if name is None else (place.naming(name), name)


def _numbers(place: _Place) -> _Spoilt:
    number = place.one_of(_NUMBER.findall(place.row))
    return None if number is None else (place.naming(number), number)


def _unknown_edit(place: _Place) -> _Spoilt:
    edit = {"action": "drop", "instruction": "I999", "title": "", "text": "", "reason": "It is of no use."}
    return {**place.document, "edits": [*place.document["edits"], edit]}, "I999"


# each with the field without which an answer has no place for it
_CONTENTS: Mapping[LapseName, tuple[str, Callable[[_Place], _Spoilt]]] = {
    "extra_field": ("analysis", _extra_field),
    "wrong_label": ("label", _wrong_label),
    "label_case": ("label", _label_case),
    "no_instruction": ("instruction", _no_instruction),
    "over_long": ("instruction", _over_long),
    "copied": ("instruction", _copied),
    "names": ("instruction", _names),
    "numbers": ("instruction", _numbers),
    "unknown_edit": ("edits", _unknown_edit),
}
