"""What the fake server is told to be: one frozen, validated value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

FaultName: TypeAlias = Literal[
    "error_500",  # the provider failed
    "error_503",  # the provider is overloaded
    "disconnect",  # closes before any byte of an answer
    "reset",  # resets the connection in the middle of the body
    "truncated",  # says a longer Content-Length than it sends, then closes
    "hang",  # never answers; the connection stays open
    "drip",  # a good answer, a few bytes at a time
    "malformed",  # 200 with broken JSON
    "empty",  # 200 without a body
    "length",  # the answer was cut at its limit of output tokens
    "content_filter",  # the answer was held back by a safety filter
    "prompt_blocked",  # the prompt was: OpenAI sends 400, Gemini 200 without candidates
]
"""What may go wrong with an attempt. The last three speak of a generated text: an embedding is then answered
as usual."""

FAULTS: tuple[FaultName, ...] = get_args(FaultName)

LapseName: TypeAlias = Literal[
    "prose",  # words before and after the JSON
    "code_fence",  # the JSON in a code fence
    "trailing_comma",  # a comma before the last brace
    "single_quotes",  # single quotes for double ones
    "cut_short",  # ends in the middle, though the server says that all was said
    "extra_field",  # a field that nobody asked for
    "wrong_label",  # another label of those that may be chosen
    "label_case",  # the label in another case
    "no_instruction",  # an empty one
    "over_long",  # an instruction of more than 300 words
    "copied",  # eight words of the row in a row, in the instruction
    "names",  # a name of the row, in the instruction
    "numbers",  # a number of the row, in the instruction
    "unknown_edit",  # an edit of an instruction that does not exist
]
"""How a model may misbehave that the server answers for: the response is whole, what it says is not right."""

LAPSES: tuple[LapseName, ...] = get_args(LapseName)

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=86_400)]
Count: TypeAlias = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Behaviour:
    """How the server answers, how fast, under which limits and with which faults.

    Everything drawn at random is drawn from (seed, body, how often the body was let in), never from the
    order of arrival.

    Answers
        `answers`: `canned`, the same text to every chat request whatever it asks, or `local`, the
        keyword-rule models of `adapters.local`, fitted into the file `local_fit`. `text` is the canned
        answer; with `echo="digest"` the body's key takes the place of `{digest}` in it, or follows it. The
        token counts are the canned answers' usage; `cached_tokens=None` leaves them unsaid, as servers do
        that do not tell. `dimensions` is the length of canned embeddings where a request asks for none.
    Time
        `latency_s` is the constant, the mean (uniform) or the median (lognormal), in seconds;
        `latency_spread` the half-width as a share of the mean (uniform), or sigma (lognormal). Each output
        token adds `latency_per_token_s`. Refusals come at once.
    Limits (0: none)
        Requests and tokens per minute are buckets, refilled continuously, that hold `limit_burst_s` seconds
        of the rate, and at least one request or ten mean requests' tokens. Passing one is a 429 that says
        when to come back, in seconds as `retry_after` puts it. Above `max_in_flight` requests in the server
        `overload_status` is answered, and nothing says what the limit is.
    Faults
        `faults` are shares of the attempts that were let in. `permanent_status` answers every request whose
        body contains `permanent_marker` (an empty one is in all of them).
    Lapses
        `lapses` are shares of the local models' answers that are to follow a schema, at most one lapse in
        each; one that has no place in an answer (an edit in an extracted rule, a name where the row has
        none) leaves it as it is. They are drawn as all else is, so that a question put in other words, with
        what was wrong shown, may bring a good answer. Answers that a fault spoils have none.
    Keys
        With `api_key`, a request that does not carry it is refused as the provider refuses a bad key. With
        `echo_key`, errors repeat the key that came with the request, in body and headers.
    Counting
        `count_keys` keeps a tally for each distinct body. Without it, random draws repeat with the body, so
        faults and lapses need it.
    """

    seed: int = 0
    answers: Literal["canned", "local"] = "canned"
    local_fit: str = ""
    text: str = '{"label": "none"}'
    echo: Literal["none", "digest"] = "none"
    prompt_tokens: Count = 600
    completion_tokens: Count = 8
    thinking_tokens: Count = 0
    cached_tokens: Count | None = 0
    dimensions: Annotated[int, Field(ge=1, le=16_384)] = 64

    latency: Literal["constant", "uniform", "lognormal"] = "constant"
    latency_s: Seconds = 0.0
    latency_spread: Annotated[float, Field(ge=0, le=10)] = 0.0
    latency_per_token_s: Seconds = 0.0

    requests_per_minute: Annotated[float, Field(ge=0)] = 0.0
    tokens_per_minute: Annotated[float, Field(ge=0)] = 0.0
    limit_burst_s: Seconds = 0.1
    retry_after: Literal["fractional", "integer", "none"] = "fractional"
    max_in_flight: Count = 0
    overload_status: Literal[429, 503] = 429

    faults: Mapping[FaultName, Share] = field(default_factory=dict, hash=False)
    drip_bytes: Annotated[int, Field(ge=1)] = 16
    drip_interval_s: Seconds = 0.01
    permanent_status: Literal[0, 400, 401, 404] = 0
    permanent_marker: str = ""

    lapses: Mapping[LapseName, Share] = field(default_factory=dict, hash=False)

    api_key: str = ""
    echo_key: bool = False

    count_keys: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Behaviour:
        for name, shares in (("faults", self.faults), ("lapses", self.lapses)):
            if sum(shares.values()) > 1 + 1e-9:
                raise ValueError(f"the shares of all {name} add up to more than 1")
            if any(shares.values()) and not self.count_keys:
                raise ValueError(f"{name} are drawn by how often a body was let in: they need count_keys")
        if any(self.lapses.values()) and self.answers != "local":
            raise ValueError("lapses are those of local answers; canned ones say what `text` says")
        if self.thinking_tokens > self.completion_tokens:
            raise ValueError("completion_tokens includes thinking_tokens and cannot be less")
        if self.cached_tokens is not None and self.cached_tokens > self.prompt_tokens:
            raise ValueError("prompt_tokens includes cached_tokens and cannot be less")
        if self.latency == "uniform" and self.latency_spread > 1:
            raise ValueError("a uniform latency_spread above 1 would mean answers from the past")
        if self.latency == "constant" and self.latency_spread:
            raise ValueError("a constant latency has no latency_spread; choose uniform or lognormal")
        if self.answers == "local" and not self.local_fit:
            raise ValueError("local answers need local_fit, the path of a local.json")
        if self.permanent_marker and not self.permanent_status:
            raise ValueError("permanent_marker does nothing without permanent_status")
        return self

    @property
    def indifferent(self) -> bool:
        """Whether every request is treated the same, and at once."""
        return not (
            self.count_keys
            or self.permanent_status
            or self.api_key
            or self.max_in_flight
            or self.requests_per_minute
            or self.tokens_per_minute
            or self.latency_s
            or self.latency_per_token_s
        )

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """This behaviour with some fields replaced. Raises `ValueError` as `read_behaviour` does."""
        return read_behaviour({**self.to_json(), **changes})

    def to_json(self) -> dict[str, Any]:
        """Every field, as `read_behaviour` takes it."""
        return asdict(self)


def read_behaviour(document: object) -> Behaviour:
    """A behaviour from a JSON object. Raises `ValueError` with one line that says which field and why;
    an unknown field is refused with the nearest known one."""
    if not isinstance(document, dict):
        raise ValueError("a behaviour is a JSON object")  # noqa: TRY004 - wrong input like any other
    known = [one.name for one in fields(Behaviour)]
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ValueError(f"{key}: not a field of a behaviour; did you mean {near[0]}?")
    try:
        return Behaviour(**document)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from exc
