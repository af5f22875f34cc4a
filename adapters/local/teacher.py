"""The local teacher: extraction, synthesis, general rules and conflict resolution from corpus statistics."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import orjson

from adapters.local.fit import LocalFit
from adapters.local.language import Clause, General, Reader
from adapters.local.resolver import Resolver
from adapters.local.text import contains
from engine.distillation.checks import copies
from engine.fences import read_all, read_one
from engine.ports import FREE, Price
from engine.types import Answer, AttemptFailure, ChatOutcome, Request, Usage

SIGNS_PER_INSTRUCTION = 10
_TITLE_WORDS = 8
_MIN_SHARE = 0.02


class LocalTeacher:
    """A `ChatModel` that serves the schemas extraction, synthesis, general and resolution.

    It reads its inputs from the fences of the user message, and its knowledge of the corpus from the fit.
    """

    max_batch = 512
    max_input_tokens = 1_000_000
    price: Price | None = FREE

    def __init__(self, fit: LocalFit) -> None:
        self._fit = fit
        self._reader = Reader(fit.labels)
        self._resolver = Resolver(fit)
        self.name = f"local-teacher-1:{fit.fit_id}"
        self._phases: Mapping[str, Callable[[str], dict[str, object]]] = {
            "extraction": self._extract,
            "synthesis": self._synthesize,
            "general": self._generalize,
            "resolution": self._resolver.answer,
        }

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """One JSON answer for each request; off the event loop."""
        return await asyncio.to_thread(lambda: [self._answer(request) for request in requests])

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _answer(self, request: Request) -> ChatOutcome:
        phase = None if request.schema is None else self._phases.get(request.schema.name)
        if phase is None:
            known = ", ".join(self._phases)
            return AttemptFailure("unsupported", f"the local teacher knows the schemas {known}")
        # the first user message: a repeated question follows it and changes nothing
        user = next((one.content for one in request.messages if one.role == "user"), "")
        try:
            text = orjson.dumps(phase(user)).decode()
        except (KeyError, ValueError) as exc:
            return AttemptFailure(
                "unreadable", f"the request lacks what its phase needs ({type(exc).__name__})"
            )
        size = sum(len(message.content) for message in request.messages)
        return Answer(text, Usage(size // 4, len(text) // 4, estimated=True))

    # --- extraction ---------------------------------------------------------------------------

    def _extract(self, user: str) -> dict[str, object]:
        row = read_one(user, "input")
        label = row.attributes["label"]
        signs = self._fit.signs(row.text, label)
        while signs and copies(row.text, Clause(label, signs).text()):
            signs.popitem()
        instruction = Clause(label, signs).text()
        if signs:
            analysis = f"Texts with this wording are more often {label} than others."
        else:
            analysis = f"No wording of this text marks it as {label}."
            if copies(row.text, instruction):  # a text that quotes this very sentence
                instruction = f"Choose {label}."
        return {"analysis": analysis, "instruction": instruction, "label": label}

    # --- synthesis ----------------------------------------------------------------------------

    def _synthesize(self, user: str) -> dict[str, object]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        grades: dict[str, dict[str, int]] = defaultdict(dict)
        totals: Counter[str] = Counter()
        for rule in read_all(read_one(user, "rules").content, "rule"):
            label, count = rule.attributes["label"], int(rule.attributes["count"])
            clauses = self._reader.clauses(rule.text)
            # rules in another teacher's prose are known by the wording that marks their label
            for clause in clauses or [Clause(label, self._fit.signs(rule.text, label))]:
                totals[clause.label] += count
                for cue, grade in clause.signs.items():
                    counts[clause.label][cue] += count
                    grades[clause.label][cue] = max(grade, grades[clause.label].get(cue, 0))
        if not totals:
            raise ValueError("no rules")
        # the rarer label first: it is the one that gets lost
        order = sorted(totals, key=lambda one: (totals[one], one))
        merged = [
            Clause(label, {cue: grades[label][cue] for cue in _commonest(counts[label], totals[label])})
            for label in order
        ]
        merged = [clause for clause in merged if clause.signs] or merged[-1:]
        shares = ", ".join(f"{totals[label]} for {label}" for label in order)
        return {
            "analysis": f"Rules with these signs: {shares}.",
            "title": _title(merged[-1]),
            "instruction": "\n".join(clause.text() for clause in merged),
        }

    # --- general rules ------------------------------------------------------------------------

    def _generalize(self, user: str) -> dict[str, object]:
        read_one(user, "instructions")
        fit = self._fit
        rows = dict(zip(fit.labels, fit.rows, strict=True))
        rows |= {one.attributes["name"]: int(one.attributes["rows"]) for one in read_all(user, "label")}
        order = sorted(fit.labels, key=lambda label: (-rows[label], label))
        return {
            "analysis": f"Texts without any sign are most often {fit.default}; commoner labels win draws.",
            "instruction": General(fit.default, tuple(order)).text(),
        }


def _commonest(counts: Counter[str], total: int) -> list[str]:
    """The signs that enough of a cluster's rules name, commonest first."""
    ranked = sorted(counts, key=lambda cue: (-counts[cue], cue))
    often = [cue for cue in ranked if counts[cue] >= max(2.0, _MIN_SHARE * total)][:SIGNS_PER_INSTRUCTION]
    return often or ranked[:1]


def _title(clause: Clause) -> str:
    """The label and its first signs, strong ones before others, in at most eight words."""
    if not clause.signs:
        return " ".join(f"No sign: {clause.label}".split()[:_TITLE_WORDS])
    first: list[str] = []
    for cue in sorted(clause.signs, key=lambda cue: -clause.signs[cue]):
        if not any(contains(cue, other) or contains(other, cue) for other in first):
            first.append(cue)
    words = f"{clause.label}: {', '.join(first[:2])}".split()
    return " ".join(words[:_TITLE_WORDS])
