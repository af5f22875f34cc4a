"""The nouns of the method, as immutable values. Imports nothing above it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

FloatVector: TypeAlias = npt.NDArray[np.float32]
"""A float32 vector of shape (dim,), or a stack of them of shape (n, dim); rows have unit norm."""

SplitName: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled row. `id` is the user's column or a content hash, unique within a data set."""

    id: str
    text: str
    label: str
    split: SplitName


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample (or row) that has no result. Never carries the row's text.

    `reason` is a short machine-readable word such as `malformed`; `detail` one line for a person.
    """

    id: str
    reason: str
    detail: str = ""


# --- what goes to a model and what comes back -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """A JSON object that the answer has to be. `name` tells a model which phase it serves.

    `json_schema` is a JSON Schema of type object; properties stand in the order in which they are to
    be written (analysis before instruction).
    """

    name: str
    json_schema: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One chat request. `id` is the caller's and not part of `digest`; everything else is.

    Exactly one of `schema` (a JSON answer) and `choices` (the answer is one of these strings, verbatim)
    may be given. `index` tells repeated draws apart where `temperature` > 0. `group` is not part of `digest`
    either: last messages of requests in one group begin alike, so that a server that is asked for them one
    after another can keep that beginning; "" is no group.
    """

    id: str
    messages: tuple[Message, ...]
    max_output_tokens: int
    schema: AnswerSchema | None = None
    choices: tuple[str, ...] = ()
    temperature: float = 0.0
    index: int = 0
    group: str = ""

    def digest(self, model: str) -> bytes:
        """The 32-byte cache key of this request to `model` (C3)."""
        index = self.index if self.temperature > 0 else None
        # the long part, schema and system prompt, is the same for every row: it is hashed once
        state = _shared_state(
            model,
            self.max_output_tokens,
            self.choices,
            self.temperature,
            index,
            self.schema,
            self.messages[:-1],
        ).copy()
        if self.messages:
            state.update(_message_bytes(self.messages[-1]))
        return state.digest()


@lru_cache(maxsize=64)
def _shared_state(  # noqa: PLR0917 - lru_cache wants positions to be quick
    model: str,
    max_output_tokens: int,
    choices: tuple[str, ...],
    temperature: float,
    index: int | None,
    schema: AnswerSchema | None,
    messages: tuple[Message, ...],
) -> hashlib._Hash:
    # 0 and 0.0 are one key of this cache, so they must be one text
    parameters = (max_output_tokens, choices, float(temperature), index, schema and schema.name)
    state = hashlib.sha256(_framed(model) + _framed(repr(parameters)))
    state.update(_framed("" if schema is None else repr(schema.json_schema)))
    for message in messages:
        state.update(_message_bytes(message))
    return state


def _message_bytes(message: Message) -> bytes:
    data = message.content.encode("utf-8", "surrogatepass")
    return b"%b:%d:%b" % (message.role.encode(), len(data), data)


def _framed(text: str) -> bytes:
    # surrogatepass: a lone surrogate in a row must not stop the job; utf-8 would refuse it
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "big") + data


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """One text to embed. `id` is the caller's and not part of `digest`."""

    id: str
    text: str

    def digest(self, model: str) -> bytes:
        """The 32-byte cache key of this text under the embedder named `model`."""
        return hashlib.sha256(_framed("embed") + _framed(model) + _framed(self.text)).digest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as billed. `cached_tokens` is None where the server does not say (unknown, not zero).

    `output_tokens` includes `thinking_tokens`; `input_tokens` includes `cached_tokens`. `estimated` is
    True where no tokenizer of the model was at hand.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int | None = None
    estimated: bool = False


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Answer:
    """A chat model's usable reply. `label_logprobs` holds natural-log probabilities of the request's
    `choices`, renormalised over them, where the model can tell. `cut_characters` of the request's last
    message were left out, with a mark in their place, because it was too long for the model."""

    text: str
    usage: Usage = Usage()
    finish_reason: FinishReason = FinishReason.STOP
    label_logprobs: Mapping[str, float] | None = field(default=None, hash=False)
    cut_characters: int = 0


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector: float32, shape (dim,), unit norm."""

    vector: FloatVector = field(hash=False)
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Retry:
    """An adapter's verdict on a failed attempt; the scheduler alone acts on it.

    `no`: asking again would fail again. `doubtful`: it looks permanent, but gateways also say it in passing;
    the same reason three times is believed. `transient`: worth another try. `rate_limited`: the provider asks
    everyone to wait, `after_s` seconds where it says how long (None: unknown); it costs no attempt.
    """

    kind: Literal["no", "doubtful", "transient", "rate_limited"]
    after_s: float | None = None


NO_RETRY = Retry("no")
DOUBTFUL = Retry("doubtful")
TRANSIENT = Retry("transient")


def rate_limited(after_s: float | None = None) -> Retry:
    return Retry("rate_limited", after_s)


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """One attempt that brought no answer. Never carries the row's text.

    `billed` is what the attempt cost all the same (a cut answer); None: nothing. `unknown_bill`: it may have
    been billed, and nobody will tell; it then counts with the most that it can cost.
    """

    reason: str
    detail: str = ""
    retry: Retry = NO_RETRY
    billed: Usage | None = None
    unknown_bill: bool = False


ChatOutcome: TypeAlias = Answer | AttemptFailure
EmbedOutcome: TypeAlias = Embedding | AttemptFailure

AnswerT_co = TypeVar("AnswerT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Result(Generic[AnswerT_co]):
    """What the scheduler hands out for one request: an answer, or the failure after all retries.

    `source`: `sent` (a model answered now), `cached` (an earlier answer), `journal` (this run had already
    given it up as a failure), `shared` (an equal request in flight answered for it).
    """

    id: str
    outcome: AnswerT_co | Failure
    source: Literal["sent", "cached", "journal", "shared"]


# --- the method ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MicroRule:
    """What the teacher abstracted from one training sample.

    `findings` are what the checks saw; a rule with findings is set aside. `request` is the hex digest of the
    teacher call behind it: its key in the response cache (C9).
    """

    sample_id: str
    label: str
    instruction: str
    findings: tuple[str, ...] = ()
    analysis: str = ""
    request: str = ""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a compiled prompt, with where it comes from (C9).

    `rule_ids` are the sample ids of the micro-rules behind it; `cluster` is their cluster's number, None for
    an instruction that the resolver added; `edits` name the resolution edits that touched it, oldest first.
    """

    id: str
    text: str
    title: str = ""
    cluster: int | None = None
    rule_ids: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The student's answer for one row. `label` is None when the answer was no label (malformed).

    `cut_characters` of the row's text the student has not seen: it was too long for the model.
    """

    id: str
    label: str | None
    confidence: float | None = None
    margin: float | None = None
    cut_characters: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided 95% interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How predictions of one system compare with the gold labels of `n` rows.

    `per_class` maps a label to precision, recall, f1 and support. `confusion[gold][predicted]` counts rows;
    predictions that are no label stand under "" there. `macro_f1` averages over the labels that occur in gold
    or predictions, as scikit-learn's `f1_score(average="macro")` does.
    """

    n: int
    accuracy: float
    macro_f1: float
    ci95: Interval
    per_class: Mapping[str, Mapping[str, float]] = field(hash=False)
    confusion: Mapping[str, Mapping[str, int]] = field(hash=False)
    malformed_rate: float = 0.0
