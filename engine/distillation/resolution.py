"""Phase 3 (M8-M11): a closed loop against the student's errors on training rows, gated on validation.

The resolver sees training rows only, the gate sees validation only (C7), and the best prompt is returned,
never just the last one (C8). `run_faithfully` is the paper's loop instead: no gate, the last prompt is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.config import ResolveConfig
from engine.distillation.answers import ResolutionAnswer, schema_of
from engine.distillation.asking import Asked, ask
from engine.distillation.cases import CaseSelector, Confusion
from engine.distillation.edits import apply_edits, edit_findings
from engine.distillation.gate import AcceptanceGate, Candidate, Convergence, StopRule
from engine.distillation.long_tail import LongTailLibrary, taking_up
from engine.distillation.predicting import Predictions, predict
from engine.distillation.templating import TaskContext, instruction_blocks, render
from engine.errors import BudgetError
from engine.fences import block
from engine.metrics import paired_gain
from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.tokens import estimate_tokens
from engine.types import Failure, Message, MicroRule, Request, Sample

STAGE = "resolution"
MAX_OUTPUT_TOKENS = 8192

RoundWriter = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Resolution:
    """Where the loop began and ended; `failures` are resolver requests without a usable answer."""

    start: Candidate
    best: Candidate
    rounds: int
    stop_reason: str
    failures: tuple[Failure, ...]


class ResolutionRequests:
    """Renders the resolver's request for one confusion: the present instructions, then the cases."""

    def __init__(self, context: TaskContext, max_edits: int) -> None:
        system = render("resolution_system", context=context.text, max_edits=str(max_edits))
        self._system = Message("system", system)
        self._schema = schema_of(ResolutionAnswer)
        self._max_edits = max_edits

    def __call__(self, name: str, prompt: CompiledPrompt, confusion: Confusion) -> Request:
        shown = block("prompt", instruction_blocks(prompt.all_instructions()))
        user = render("resolution_user", prompt=shown, cases=confusion.rendered(self._max_edits))
        return Request(name, (self._system, Message("user", user)), MAX_OUTPUT_TOKENS, self._schema)


class Resolver:
    """One closed loop.

    `write_round(number, record)` keeps each round: candidates, edits, decisions; `tell` gets a line for a
    person.
    """

    def __init__(
        self,
        *,
        resolver: ChatLane,
        student: ChatLane,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        selector: CaseSelector,
        long_tail: LongTailLibrary,
        context: TaskContext,
        config: ResolveConfig,
        seed: int,
        write_round: RoundWriter,
        tell: Callable[[str], None],
    ) -> None:
        self._resolver = resolver
        self._student = student
        self._train = train
        self._validation = validation
        self._gold = [sample.label for sample in validation]
        self._selector = selector
        self._long_tail = long_tail
        self._config = config
        self._seed = seed
        self._write_round = write_round
        self._tell = tell
        self._gate = AcceptanceGate(config.floors, config.max_prompt_tokens)
        self._requests = ResolutionRequests(context, config.max_edits)
        self._failures: list[Failure] = []

    async def run(self, start: CompiledPrompt) -> Resolution:
        """Edit `start` round by round; return the best prompt seen (C8).

        A cap on cost that is reached ends the loop with what it has found so far.
        """
        first = best = await self._scored(start)
        stop = StopRule(self._config.max_rounds, self._config.patience)
        number = 0
        try:
            while (reason := stop.reason()) is None:
                number += 1
                before = best
                confusions, record = await self._look(best.prompt, number)
                if not confusions:
                    reason = "no training row is decided wrongly"
                    break
                best = await self._round(number, best, confusions, record)
                stop.round_done(improved=best is not before)
            last = number
            if rules := await self._rare_rules(number, best):
                last += 1
                best = await self._take_up(last, best, rules)
            if self._config.prune and self._config.max_rounds > 0:
                best = await self._prune(last + 1, best)
        except BudgetError as exc:
            reason = str(exc)
        return Resolution(first, best, number, reason, tuple(self._failures))

    async def run_faithfully(self, start: CompiledPrompt) -> Resolution:
        """The paper's loop (M8-M11): every round's edits are taken, until the validation error converges.

        The last prompt is returned, whether or not it was the best.
        """
        first = last = await self._scored(start)
        stop = Convergence(self._config.max_rounds)
        stop.saw(first.macro_f1)
        number = 0
        while (reason := stop.reason()) is None:
            number += 1
            confusions, record = await self._look(last.prompt, number)
            if not confusions:
                reason = "no training row is decided wrongly"
                break
            asked = await self._ask(last.prompt, confusions)
            prompt, locked, entries = last.prompt, frozenset[str](), []
            for name, confusion in confusions.items():
                entry = self._entry(name, confusion, asked)
                if name in asked.answers:
                    applied = apply_edits(prompt, asked.answers[name].edits, name, locked=locked)
                    prompt, locked = applied.prompt, locked | applied.touched
                    entry |= {
                        "skipped": list(applied.skipped),
                        "accepted": True,
                        "why": "every edit is taken",
                    }
                entries.append(entry)
            last = await self._scored(prompt)
            stop.saw(last.macro_f1)
            self._write_round(number, record | {"candidates": entries, "best": _summary(last)})
            self._tell(f"round {number}: macro-F1 on validation {last.macro_f1:.3f}")
        return Resolution(first, last, number, reason, tuple(self._failures))

    async def _scored(self, prompt: CompiledPrompt) -> Candidate:
        answers = await predict(self._student, prompt, self._validation, stage=STAGE)
        return Candidate.scored(prompt, self._gold, answers.of(self._validation))

    async def _look(self, prompt: CompiledPrompt, number: int) -> tuple[dict[str, Confusion], dict[str, Any]]:
        """Try the student on training rows (M8) and collect its confusions by name."""
        rng = np.random.default_rng([self._seed, number])
        rows = self._drawn(rng)
        answers: Predictions = await predict(self._student, prompt, rows, stage=STAGE)
        found = self._selector.confusions(
            rows, answers.labels, most=self._config.confusions_per_round, rng=rng
        )
        wrong = sum(answers.labels[row.id] != row.label for row in rows)
        record = {
            "round": number,
            "kind": "resolve",
            "prompt_sha256": prompt.sha256,
            "training_rows": len(rows),
            "training_errors": wrong,
        }
        return {f"round-{number:02d}-{k}": one for k, one in enumerate(found, start=1)}, record

    def _drawn(self, rng: np.random.Generator) -> list[Sample]:
        """The training rows of a round."""
        rows = list(self._train)
        most = self._config.rows_per_round
        if most is not None and most < len(rows):
            rows = [rows[i] for i in sorted(rng.choice(len(rows), size=most, replace=False))]
        return rows

    async def _ask(self, prompt: CompiledPrompt, confusions: dict[str, Confusion]) -> Asked[ResolutionAnswer]:
        known = [one.id for one in prompt.all_instructions()]

        def make(name: str) -> Request:
            return self._requests(name, prompt, confusions[name])

        def check(_name: str, answer: ResolutionAnswer) -> list[str]:
            return edit_findings(answer.edits, known, self._config.max_edits)

        asked = await ask(self._resolver, list(confusions), make, ResolutionAnswer, stage=STAGE, check=check)
        self._failures += [asked.failures[name] for name in confusions if name in asked.failures]
        return asked

    async def _round(
        self, number: int, best: Candidate, confusions: dict[str, Confusion], record: dict[str, Any]
    ) -> Candidate:
        """Ask for edits of every confusion at once; judge each answer's edits on top of what was accepted."""
        before = best
        asked = await self._ask(best.prompt, confusions)
        locked: frozenset[str] = frozenset()
        entries = []
        for name, confusion in confusions.items():
            entry = self._entry(name, confusion, asked)
            entries.append(entry)
            if name not in asked.answers:
                continue
            applied = apply_edits(best.prompt, asked.answers[name].edits, name, locked=locked)
            entry["skipped"] = list(applied.skipped)
            if applied.prompt.text == best.prompt.text:
                entry |= {"accepted": False, "why": "the edits change nothing"}
                continue
            if (why := self._gate.too_long(best, estimate_tokens(applied.prompt.text))) is not None:
                entry |= {"accepted": False, "why": why}
                continue
            candidate = await self._scored(applied.prompt)
            decision = self._gate.judge(best, candidate)
            entry |= {"accepted": decision.accepted, "why": decision.why, "validation": _summary(candidate)}
            if decision.accepted:
                best, locked = candidate, locked | applied.touched
        record |= {"candidates": entries, "best": _summary(best), "gain": self._gain(best, before)}
        self._write_round(number, record)
        self._tell(f"round {number}: {len(confusions)} confusions, {_change(before, best)}")
        return best

    async def _rare_rules(self, number: int, best: Candidate) -> list[MicroRule]:
        """Rules outside every cluster that speak for training rows still decided wrongly."""
        if not self._config.long_tail or not self._config.max_rounds:
            return []
        rows = self._drawn(np.random.default_rng([self._seed, number]))
        answers = await predict(self._student, best.prompt, rows, stage=STAGE)
        return self._long_tail.speaking_for(rows, answers.labels, most=self._config.long_tail)

    async def _take_up(self, number: int, best: Candidate, rules: Sequence[MicroRule]) -> Candidate:
        """Try rules outside every cluster, one after the other, as instructions of their own."""
        before = best
        entries = []
        for place, rule in enumerate(rules, start=1):
            name = f"long-tail-{place}"
            entry: dict[str, Any] = {"name": name, "rule": rule.sample_id, "label": rule.label}
            entries.append(entry)
            prompt = taking_up(best.prompt, rule, name)
            if (why := self._gate.too_long(best, estimate_tokens(prompt.text))) is not None:
                entry |= {"accepted": False, "why": why}
                continue
            candidate = await self._scored(prompt)
            decision = self._gate.judge(best, candidate)
            entry |= {"accepted": decision.accepted, "why": decision.why, "validation": _summary(candidate)}
            if decision.accepted:
                best = candidate
        self._close(number, "long tail", entries, before, best)
        self._tell(f"{len(rules)} rules outside every cluster: {_change(before, best)}")
        return best

    async def _prune(self, number: int, best: Candidate) -> Candidate:
        """Drop, last first, every instruction without which validation loses nothing."""
        before = best
        entries = []
        for instruction in reversed(best.prompt.all_instructions()):
            candidate = await self._scored(best.prompt.dropping(instruction.id))
            decision = self._gate.judge(best, candidate)
            entries.append(
                {
                    "name": f"prune-{instruction.id}",
                    "edits": [{"action": "drop", "instruction": instruction.id}],
                    "accepted": decision.accepted,
                    "why": decision.why,
                    "validation": _summary(candidate),
                }
            )
            if decision.accepted:
                best = candidate
        self._close(number, "prune", entries, before, best)
        self._tell(f"pruning: {_change(before, best)}")
        return best

    def _close(
        self, number: int, kind: str, entries: list[dict[str, Any]], before: Candidate, best: Candidate
    ) -> None:
        """Write down a pass that asked no resolver."""
        record = {"round": number, "kind": kind, "prompt_sha256": before.prompt.sha256, "candidates": entries}
        self._write_round(number, record | {"best": _summary(best), "gain": self._gain(best, before)})

    def _entry(self, name: str, confusion: Confusion, asked: Asked[ResolutionAnswer]) -> dict[str, Any]:
        """The record of one confusion: which rows were shown, and what came back."""
        entry: dict[str, Any] = {
            "name": name,
            "label": confusion.gold,
            "predicted": confusion.predicted,
            "failures": [one.id for one in confusion.failures],
            "successes": [one.id for one in confusion.successes],
        }
        if name in asked.failures:
            failure = asked.failures[name]
            return entry | {"accepted": False, "why": f"no usable answer: {failure.reason} {failure.detail}"}
        answer = asked.answers[name]
        return entry | {
            "request": asked.requests[name],
            "analysis": answer.analysis,
            "edits": [edit.model_dump() for edit in answer.edits],
        }

    def _gain(self, best: Candidate, before: Candidate) -> dict[str, Any] | None:
        """How sure the round's gain is: on a few hundred rows it can hardly be told from noise."""
        if best is before:
            return None
        labels = tuple(best.prompt.labels)
        gain = paired_gain(self._gold, best.predicted, before.predicted, labels, seed=self._seed)
        return {"macro_f1": gain.difference, "ci95": [gain.ci95.low, gain.ci95.high]}


def _change(before: Candidate, after: Candidate) -> str:
    if before is after:
        return f"no better prompt than {after.macro_f1:.3f} on validation"
    return f"macro-F1 on validation {before.macro_f1:.3f} → {after.macro_f1:.3f}, {after.tokens} tokens"


def _summary(candidate: Candidate) -> dict[str, Any]:
    return {
        "prompt_sha256": candidate.prompt.sha256,
        "macro_f1": candidate.macro_f1,
        "per_class": candidate.per_class,
        "tokens": candidate.tokens,
    }
