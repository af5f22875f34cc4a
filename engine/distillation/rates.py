"""How often answers could not be used, and why: figures by label, and warnings where they bias a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

FINDINGS = "findings"
"""The reason of an answer that could be read, and that the checks found something wrong with."""

SET_ASIDE_SHARE, SET_ASIDE_ROWS = 0.05, 3
"""From so many rows of a label without a rule on, its figures are a warning (shares above, rows at least)."""
ASKED_AGAIN_SHARE, ONE_REASON_SHARE, ASKED_AGAIN_ROWS = 0.2, 0.1, 10
"""Likewise for first answers that could not be used, in all and for one reason alone."""
_MOST_WARNINGS = 5

_WHY = {
    "blocked": "a safety filter held the answer back",
    "cut": "the answer was cut at the limit of output tokens",
    "malformed": "the answer was not the JSON that was asked for",
    "empty": "the answer or its rule was empty",
    "other_label": "the answer was for another label",
    "no_label": "the rule did not end with the label",
    "too_long": "the rule was too long",
    "copied": "the rule copied the text",
    "numbers": "the rule repeated numbers of the text",
    "names": "the rule repeated names of the text",
}
_OTHER_TEACHER = "a teacher that follows instructions better would lose fewer"
_ADVICE = {
    "blocked": "take a teacher that lets such text through",
    "cut": "let the teacher think less (teacher.thinking), or take another one",
    "malformed": "take a teacher that keeps to a JSON schema",
} | dict.fromkeys(
    ("empty", "other_label", "no_label", "too_long", "copied", "numbers", "names"), _OTHER_TEACHER
)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why one answer could not be used: a failure's reason; for `findings` their kinds, each once."""

    reason: str
    findings: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """One word to count it under: the first finding's, else the reason."""
        return self.findings[0] if self.findings else self.reason


@dataclass(frozen=True, slots=True)
class Rates:
    """Figures of a set of requests: `usable + failures = asked`, and `reasons` add up to `failures` (C1).

    `first` counts what was wrong with first answers, each finding for itself; `findings` are those of its
    kinds that a check found; `reasons` counts the failures by what was wrong last.
    """

    asked: int = 0
    failures: int = 0
    asked_again: int = 0
    first: Mapping[str, int] = field(default_factory=dict)
    findings: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """How many brought an answer that could be used."""
        return self.asked - self.failures

    @classmethod
    def of(
        cls,
        ids: Iterable[str],
        *,
        first: Mapping[str, Unusable],
        last: Mapping[str, Unusable],
        again: Set[str],
    ) -> Rates:
        """The figures of `ids`. `first` holds what was wrong with an id's first answer, `last` with its last
        one where it brought none; `again` are the ids that were asked twice."""
        asked = failures = asked_again = 0
        wrong: Counter[str] = Counter()
        findings: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for one in ids:
            asked += 1
            asked_again += one in again
            if one in first:
                findings.update(first[one].findings)
                wrong.update(first[one].findings or (first[one].reason,))
            if one in last:
                failures += 1
                reasons[last[one].kind] += 1
        return cls(asked, failures, asked_again, *map(_by_name, (wrong, findings, reasons)))

    def to_json(self) -> dict[str, Any]:
        """The figures as they stand in the manifest."""
        return {
            "asked": self.asked,
            "failures": self.failures,
            "asked_again": self.asked_again,
            **{reason: self.first.get(reason, 0) for reason in ("malformed", "cut", "blocked")},
            "findings": dict(self.findings),
            "reasons": dict(self.reasons),
        }


def rate_warnings(total: Rates, by_label: Mapping[str, Rates]) -> list[str]:
    """What of the figures of an extraction may spoil its result, a line each; labels hit hardest first."""
    found = []
    hit = [
        label
        for label, rates in by_label.items()
        if rates.failures >= SET_ASIDE_ROWS and rates.failures > SET_ASIDE_SHARE * rates.asked
    ]
    hit.sort(key=lambda label: (-by_label[label].failures / by_label[label].asked, label))
    for label in hit[:_MOST_WARNINGS]:
        rates = by_label[label]
        share, others = rates.failures / rates.asked, _share_without(total, rates)
        line = (
            f"label {label!r}: {rates.failures} of {rates.asked} training rows ({share:.0%}) brought no rule"
        )
        if others is not None and share > 2 * others:
            line += f", against {others:.1%} of the others: what is left is biased against it"
        found.append(f"{line}; mostly {_why(rates.reasons)}")
    if len(hit) > _MOST_WARNINGS:
        found.append(f"{len(hit) - _MOST_WARNINGS} more labels lost over {SET_ASIDE_SHARE:.0%} of their rows")
    kind, count = _commonest(total.first)
    share = total.asked_again / total.asked if total.asked else 0.0
    often = share > ASKED_AGAIN_SHARE or count > ONE_REASON_SHARE * total.asked
    if often and total.asked_again >= ASKED_AGAIN_ROWS:
        found.append(
            f"{total.asked_again} of {total.asked} rows ({share:.0%}) had to be asked again; of the "
            f"first answers {count} had one fault in common: {_why({kind: count})}"
        )
    return found


def _share_without(total: Rates, rates: Rates) -> float | None:
    """The share of failures among all rows but those of `rates`; None where there are none."""
    rest = total.asked - rates.asked
    return (total.failures - rates.failures) / rest if rest else None


def _why(reasons: Mapping[str, int]) -> str:
    kind, _ = _commonest(reasons)
    why = _WHY.get(kind, f"requests failed ({kind})")
    advice = _ADVICE.get(kind, "`pld compile --retry-failed` asks them again")
    return f"{why}: {advice}"


def _commonest(counts: Mapping[str, int]) -> tuple[str, int]:
    """The commonest and its count; the first by name of equals."""
    return min(counts.items(), key=lambda pair: (-pair[1], pair[0]), default=("", 0))


def _by_name(counts: Counter[str]) -> dict[str, int]:
    # the order of completion must not show (C12)
    return dict(sorted(counts.items()))
