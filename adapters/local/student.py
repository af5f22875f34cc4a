"""The local student: a keyword scorer made from nothing but a prompt's text."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from adapters.local.language import Clause, Reader
from adapters.local.text import tokenize
from engine.fences import read_one, unescape
from engine.ports import FREE, Price
from engine.types import Answer, AttemptFailure, ChatOutcome, Request, Usage

_BITS = 32
_MASK = (1 << _BITS) - 1
_OPEN, _CLOSE = "<input>\n", "\n</input>"
_LABEL_LINE = re.compile(r"^- (.+)$", re.MULTILINE)


class Rulebook:
    """What a prompt's clauses say about a text.

    Every matched cue adds its grade to its label, once, at its best grade among the clauses that no exception
    silences. Where a prompt has no clause that can be read, the words of the labels and of their meanings are
    weak signs. The highest sum wins; the order of preference, then that of the labels, settles draws; a text
    without signs gets the default label.
    """

    def __init__(self, prompt: str, labels: Sequence[str]) -> None:
        reader = Reader(labels)
        clauses = reader.clauses(prompt)
        general = reader.general(prompt)
        self.labels = tuple(labels)
        self._order = [self.labels.index(label) for label in general.preference]
        self._order += [j for j in range(len(labels)) if j not in self._order]
        default = general.default
        if default is None:  # a clause without signs says it too
            default = next((one.label for one in clauses if not one.signs), self.labels[self._order[0]])
        self.default = default
        clauses = [one for one in clauses if one.signs] or _label_words(prompt, self.labels)
        self._uses: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self._silences: dict[str, list[int]] = defaultdict(list)
        for number, one in enumerate(clauses):
            for cue, grade in one.signs.items():
                self._uses[cue].append((number, self.labels.index(one.label), grade))
            for cue in one.exceptions:
                self._silences[cue].append(number)
        # A text's scores are one integer, 32 bits a label: summing the effects of its cues is then one `sum`,
        # and equal scores are one dictionary key.
        self._effects = {cue: self._effect(cue, ()) for cue in self._uses}
        self._users = {cue: [number for number, _, _ in uses] for cue, uses in self._uses.items()}
        self._exceptions = frozenset(self._silences)
        cues = self._exceptions.union(self._effects)
        self._words = frozenset(cue for cue in cues if " " not in cue)
        self._phrases = cues - self._words
        self._sizes = sorted({cue.count(" ") + 1 for cue in self._phrases})
        self._openings = frozenset(cue.partition(" ")[0] for cue in self._phrases)
        self.decide = lru_cache(maxsize=4096)(self._decide)

    def _effect(self, cue: str, silenced: Container[int]) -> int:
        """What a matched cue adds to the packed scores while some clauses are silenced."""
        best: dict[int, int] = {}
        for number, label, grade in self._uses[cue]:
            if number not in silenced:
                best[label] = max(grade, best.get(label, 0))
        return sum(grade << (_BITS * label) for label, grade in best.items())

    def score(self, text: str) -> int:
        """The packed scores of `text`: label j's sum in bits 32·j to 32·j + 31."""
        found = self._found(tokenize(text))
        effects = self._effects
        if self._exceptions.isdisjoint(found):
            return sum([effects[cue] for cue in found])
        silenced = {number for cue in found & self._exceptions for number in self._silences[cue]}
        return sum(
            [
                effects[cue] if silenced.isdisjoint(self._users[cue]) else self._effect(cue, silenced)
                for cue in found
                if cue in effects
            ]
        )

    def _found(self, tokens: list[str]) -> frozenset[str]:
        """The prompt's cues that stand in a text."""
        found = self._words.intersection(tokens)
        if self._openings.isdisjoint(tokens):
            return found
        starts = [i for i, token in enumerate(tokens) if token in self._openings]
        phrases = [" ".join(tokens[i : i + size]) for size in self._sizes for i in starts]
        return found.union(self._phrases.intersection(phrases))

    def scores(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Scores of shape (n_texts, n_labels)."""
        packed = [self.score(text) for text in texts]
        columns = [[one >> (_BITS * j) & _MASK for one in packed] for j in range(len(self.labels))]
        return np.array(columns, dtype=np.int64).T.reshape(len(packed), len(self.labels))

    def _decide(self, packed: int) -> tuple[str, Mapping[str, float]]:
        """The label that packed scores speak for, and the natural logarithm of their softmax."""
        scores = [packed >> (_BITS * j) & _MASK for j in range(len(self.labels))]
        top = max(scores)
        label = self.labels[next(j for j in self._order if scores[j] == top)] if top else self.default
        values = np.array(scores, dtype=np.float64) - top
        values -= np.log(np.exp(values).sum())
        return label, dict(zip(self.labels, values.tolist(), strict=True))


def _label_words(prompt: str, labels: Sequence[str]) -> list[Clause]:
    """A clause for each label with the words of its name and of its meaning, where the prompt gives one."""
    meanings: dict[str, str] = {}
    for line in _LABEL_LINE.findall(prompt):
        label, _, meaning = line.partition(": ")
        meanings.setdefault(label, meaning)
    words = {label: set(tokenize(f"{label.replace('_', ' ')} {meanings.get(label, '')}")) for label in labels}
    clauses = []
    for label in labels:
        others = set[str]().union(*(words[other] for other in labels if other != label))
        own = sorted(words[label] - others)
        if own:
            clauses.append(Clause(label, dict.fromkeys(own, 1)))
    return clauses


class LocalStudent:
    """A `ChatModel` that answers requests with `choices`. Never fitted: the prompt's text is all it knows."""

    name = "local-student-1"
    max_batch = 512
    max_input_tokens = 400_000
    price: Price | None = FREE

    def __init__(self, prompts: int = 64) -> None:
        """Keeps the rulebooks of the `prompts` prompts used last."""
        self._rulebook = lru_cache(maxsize=prompts)(Rulebook)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """One label for each request; off the event loop."""
        return await asyncio.to_thread(self._complete, requests)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _complete(self, requests: Sequence[Request]) -> list[ChatOutcome]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> ChatOutcome:
        if not request.choices:
            return AttemptFailure("unsupported", "the local student only chooses between labels")
        messages = request.messages
        system = messages[0].content if messages and messages[0].role == "system" else ""
        row = messages[-1].content if messages else ""
        rulebook = self._rulebook(system, request.choices)
        label, logprobs = rulebook.decide(rulebook.score(_row_text(row)))
        usage = _usage((len(system) + len(row)) // 4, len(label) // 4 + 1)
        return Answer(label, usage, label_logprobs=logprobs)


@lru_cache(maxsize=4096)
def _usage(input_tokens: int, output_tokens: int) -> Usage:
    # a handful of lengths over millions of rows: making the object costs more than finding it
    return Usage(input_tokens, output_tokens, estimated=True)


def _row_text(content: str) -> str:
    """The text to classify: what stands in the input fence, else the whole message."""
    if content.startswith(_OPEN) and content.endswith(_CLOSE):
        return unescape(content[len(_OPEN) : -len(_CLOSE)])
    try:
        return read_one(content, "input").text
    except ValueError:
        return content
