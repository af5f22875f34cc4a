"""The doors of the engine: what a model, a cache, a limiter and a clock have to be.

A failure of one request is data (`AttemptFailure`); a failure of the system raises an
`engine.errors.PldError`. Every implementation is held to `tests/contracts/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from engine.types import ChatOutcome, EmbedOutcome, Failure, Request, Usage

Within: TypeAlias = Literal["all", "label"]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. Output includes thinking. All zero: nobody is billed.

    `thinking_tokens` is the most that one request can be billed beyond its `max_output_tokens`, by a model
    that thinks outside of that bound.
    """

    input_usd: float = 0.0
    output_usd: float = 0.0
    thinking_tokens: int = 0

    def cost_usd(self, usage: Usage) -> float:
        """What `usage` is billed at most: cached input is counted at the full price."""
        return (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / 1e6


FREE = Price()


class ChatModel(Protocol):
    """Requests in, outcomes out, one for one.

    - `complete` returns exactly one outcome per request, in their order, and changes no request.
    - It never raises for one bad request: that is an `AttemptFailure` with a retry verdict. It raises
      `ModelError` when the model cannot be used at all (no key, unknown model, no such host).
    - It never retries and never waits for a rate limit: the scheduler does.
    - It may be called again while an earlier call runs. CPU-bound models do their work off the event loop.
    - An answer to a request with `choices` is one of them verbatim, or text that the caller counts as
      malformed; never a guess.
    - One that has something to say of its server is `Remarking` too.
    """

    @property
    def name(self) -> str:
        """Everything that changes answers is in it; it is part of every cache key."""

    @property
    def max_batch(self) -> int:
        """The most requests one `complete` takes: 1 over HTTP, thousands in process."""

    @property
    def max_input_tokens(self) -> int:
        """How much a stage may put into one request, in (estimated) tokens."""

    @property
    def price(self) -> Price | None:
        """What a token costs; None where that is unknown (a run under a cost cap then refuses the model)."""

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]: ...

    async def aclose(self) -> None:
        """Release what the model holds. Calling it twice is harmless."""


@runtime_checkable
class Remarking(Protocol):
    """What a `ChatModel` may be besides: one that finds out what its server does not do as it is asked to."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know of the answers so far, a line each; never the text of a row. It grows."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How busy the servers of a model are, at one moment and all together.

    `running` requests are being worked on and `waiting` ones queue, whoever has sent them. `kv_cache_usage`
    is the fullest server's, from 0 to 1. `preemptions` counts the requests that had to give up their place
    for want of memory, since the servers were started.
    """

    servers: int
    running: int
    waiting: int
    kv_cache_usage: float
    preemptions: int


@runtime_checkable
class Gauged(Protocol):
    """What a `ChatModel` may be besides: one whose servers queue instead of refusing, and say how long.

    The scheduler then finds out by that how many requests to have in flight, `most_in_flight` at most.
    """

    @property
    def most_in_flight(self) -> int: ...

    async def load(self) -> ServerLoad | None:
        """How busy the servers are now; None where none of them says. Never raises for that; takes no turn
        of any limit."""


@dataclass(frozen=True, slots=True)
class CacheReceipt:
    """What a prefix cache did for the requests of one model object: tokens it should have saved, and did.

    `prompt_tokens` are those of all answered requests; `cached_tokens` of them the servers had in their
    caches. `prefixes` counts the different beginnings (everything ahead of the last message) that were asked
    with, `servers` the replicas that answered. `shared_tokens` is the length of the beginning that was asked
    with most, as far as two requests share it, and `block_tokens` the unit in which the cache keeps it.
    `expected_tokens` = sum over prefixes of (requests - servers) x the whole blocks of shared tokens. What
    nobody tells is None. `requests_per_s` is over the time from the first request to the last answer,
    `first_token_s` the mean time until a server had the first token of an answer.

    `warnings` say in a line each what is wrong where much less was cached than expected, and what to do.
    """

    requests: int
    servers: int
    prefixes: int
    prompt_tokens: int
    cached_tokens: int | None
    expected_tokens: int | None
    shared_tokens: int | None
    block_tokens: int | None
    requests_per_s: float
    first_token_s: float | None
    warnings: tuple[str, ...] = ()

    @property
    def hit_rate(self) -> float | None:
        """The share of all prompt tokens that came from a cache."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


@runtime_checkable
class Receipting(Protocol):
    """What a `ChatModel` may be besides: one whose servers keep the beginning of prompts, and tell."""

    async def receipt(self) -> CacheReceipt | None:
        """What the cache was worth so far; None where nothing was asked. Never raises for a silent server."""


class Embedder(Protocol):
    """Texts in; float32 vectors (dim,) of unit norm, or failures, out: one for one, in order.

    The same rules as for `ChatModel.complete`. All vectors of one embedder have the same dim.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_batch(self) -> int: ...

    @property
    def price(self) -> Price | None: ...

    @property
    def within(self) -> Within:
        """How rules embedded by it are best clustered when the configuration does not say."""

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]: ...

    async def aclose(self) -> None: ...


class Submission(NamedTuple):
    """What `BatchModel.submit` did.

    `jobs` are those that hold one of the requests now. `asked_before` counts the requests that earlier jobs
    have left without a usable answer. `to_do` tells the user in an imperative clause what brings the answers.
    """

    jobs: Sequence[str]
    asked_before: int
    to_do: str


@runtime_checkable
class BatchModel(Protocol):
    """A model that answers hours later: provider jobs, or files that somebody else answers.

    A job is what was handed over at once. All of it outlives the process: another instance with the same
    settings, in this process or another, goes on with the same jobs.

    - `submit` is durable when it returns, and idempotent: what is answered or under way is not handed over
      again. What a finished job left without a usable answer is handed over anew.
    - `poll` and `collect` change nothing; `collect` may be called again, and gives what it gave before for
      as long as what was answered is there.
    - `collect` is asked for the outcomes of particular requests, of whatever job: so no one has to hold all
      of a job's answers. A request without an outcome so far is left out. The retry verdict of a failure is
      `no` where asking again would be useless: a failure that will not go away, or a request that several
      jobs in a row have brought no usable answer to.
    - They never raise for one bad answer. They raise `ModelError` when the model cannot be used at all.
    """

    @property
    def name(self) -> str:
        """Everything that changes answers is in it; it is part of every cache key."""

    @property
    def max_input_tokens(self) -> int:
        """How much a stage may put into one request, in (estimated) tokens."""

    @property
    def price(self) -> Price | None:
        """What a token costs; None where that is unknown."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know of the answers so far, a line each; never the text of a row."""

    async def submit(self, requests: Sequence[Request]) -> Submission:
        """Hand over those of the requests (all different) that nobody has answered or is at work on."""

    async def poll(self, job: str) -> Literal["pending", "done", "failed"]:
        """Whether a job is under way, has brought what it will bring, or is not known (any more)."""

    async def collect(self, requests: Sequence[Request]) -> Mapping[bytes, ChatOutcome]:
        """What is answered of these requests, by `Request.digest(name)`."""

    async def aclose(self) -> None:
        """Release what the model holds. Calling it twice is harmless; jobs go on."""


AnyChatModel: TypeAlias = ChatModel | BatchModel
"""A model that writes, whether it answers at once or hours later."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models of one run, each in its role."""

    teacher: AnyChatModel
    synthesizer: AnyChatModel
    resolver: AnyChatModel
    embedder: Embedder
    student: AnyChatModel


class TokenCounter(Protocol):
    """Counts tokens as the model named would. `estimated` is True where that is a rule of thumb."""

    @property
    def estimated(self) -> bool: ...

    async def count(self, texts: Sequence[str]) -> Sequence[int]: ...


class Record(NamedTuple):
    """One outcome to be kept: an encoded answer, or the failure that ended all retries; never both."""

    key: bytes
    request_id: str
    stage: str
    model: str
    payload: bytes | None
    failure: Failure | None
    usage: Usage
    cost_usd: float


class ResponseCache(Protocol):
    """Usable answers by content, shared by all runs and processes; the only copy of an outcome (C3)."""

    async def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The payloads of those keys that are known."""


class Journal(Protocol):
    """The response cache as one run sees it: usable answers of any run, failures of this one.

    `commit` returns when the records would survive `kill -9` and a power cut (C2); it keeps all of them or
    raises. Committing a key again replaces a failure by an answer, never an answer by a failure.
    """

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | Failure]:
        """What is known of these keys: payloads, and failures this run has already given up."""

    async def commit(self, records: Sequence[Record]) -> None: ...


class Reservation(NamedTuple):
    """What a request may cost at most: held from before it is sent until it is settled."""

    tokens: int
    cost_usd: float


class Limiter(Protocol):
    """Decides when the next request may go. One dispatcher is its only waiter.

    `reserve` waits until the request may be sent, or raises `BudgetError` where it never may; `settle` is
    called exactly once for each reservation, with the real usage (None: unknown, it counts in full).
    """

    async def reserve(self, need: Reservation) -> None: ...

    def settle(self, need: Reservation, used: Reservation | None) -> None: ...


class Clock(Protocol):
    """Time, so that tests can bring their own."""

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...
