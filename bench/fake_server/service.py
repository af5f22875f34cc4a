"""What becomes of a request: refused, broken, or answered. Knows no sockets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson

from bench.fake_server.behaviour import Behaviour, FaultName
from bench.fake_server.canned import MODEL, CannedAnswers
from bench.fake_server.counting import Counts
from bench.fake_server.faults import body_key, draw, draw_fault, draw_lapse, draw_latency_s
from bench.fake_server.holdups import Watch
from bench.fake_server.keys import echoing, key_in
from bench.fake_server.lapses import Planted, plant
from bench.fake_server.limits import Limits, told_seconds
from bench.fake_server.protocol import HttpRequest, response
from bench.fake_server.replies import FINISH, MANNER, STATUS, Manner, Reply
from bench.fake_server.routes import GEMINI, OPENAI, Kind, NoRoute, Route, route_of
from bench.fake_server.wire import CallError, ChatCall, ErrorAnswer, Wire
from engine.errors import PldError
from engine.types import Answer, FinishReason, Usage

if TYPE_CHECKING:
    from bench.fake_server.local import LocalAnswers

_OF_TEXT: tuple[FaultName, ...] = ("length", "content_filter", "prompt_blocked")
_LOGPROBS: dict[Wire, bytes] = {OPENAI: b'"logprobs"', GEMINI: b'"responseLogprobs"'}
"""What stands in a body that asks for log-probabilities: all that canned chat answers look for in it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that was let in: the `turn`-th of its body. `estimate` is what the limits took for it,
    `api_key` came with it."""

    route: Route
    body: bytes
    key: bytes
    turn: int
    fault: FaultName | None
    estimate: float
    api_key: str


class Service:
    """Decides, counts and answers. `clock` is monotonic seconds; `on_shutdown` is what its route calls."""

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_shutdown: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_shutdown = on_shutdown
        self.counts = Counts()
        self.watch = Watch()
        self.connections_accepted = 0
        self.connections_open = 0
        self._locals: list[LocalAnswers] = []  # the last one answers; earlier ones may still be at work
        self.configure(behaviour)

    # --- control ----------------------------------------------------------------------------------

    def configure(self, behaviour: Behaviour) -> None:
        """Behave like this from now on, with full buckets; counts go on.

        Raises `CorruptStoreError` where the fit of the local models cannot be read.
        """
        if behaviour.answers == "local":
            # a second to load, and canned answers do without
            from bench.fake_server.local import LocalAnswers  # noqa: PLC0415

            self._locals.append(LocalAnswers(Path(behaviour.local_fit)))
        self.behaviour = behaviour
        self._limits = Limits(behaviour)
        self._canned = CannedAnswers(behaviour)
        self._fixed: dict[Wire, Reply] = {}
        if behaviour.answers == "canned" and behaviour.echo == "none" and not self._limits.any:
            self._fixed = {wire: self._prepare(wire) for wire in _LOGPROBS}
        self._plain = bool(self._fixed) and behaviour.indifferent

    def reset(self) -> None:
        """Forget what was counted, and fill the buckets."""
        self.counts = Counts(self.counts.in_flight)
        self._limits = Limits(self.behaviour)

    def seen(self, *, keys: bool = False) -> dict[str, object]:
        """The counts."""
        connections = {"accepted": self.connections_accepted, "open": self.connections_open}
        held_up = {"longest_s": self.watch.longest_s, "total_s": self.watch.total_s}
        return {**self.counts.to_json(keys=keys), "connections": connections, "held_up": held_up}

    async def aclose(self) -> None:
        """Stop the local models' work."""
        for local in self._locals:
            await local.aclose()

    # --- requests ---------------------------------------------------------------------------------

    def accept(self, request: HttpRequest) -> Reply | Attempt:
        """What to send, or an attempt that `answer` has to be awaited for."""
        route = route_of(request.head.method, request.head.path)
        if isinstance(route, NoRoute):
            self.counts.invalid += 1
            return _uncounted(route.status, route.wire.error(404, "There is nothing here.").body, route.wire)
        if route.kind is not Kind.CHAT and route.kind is not Kind.EMBED:
            return self._control(route.kind, request)
        now = self._clock()
        self.counts.arrived(now)
        if self._plain and route.kind is Kind.CHAT and _LOGPROBS[route.wire] not in request.body:
            return self._fixed[route.wire]
        return self._admit(route, request.body, now, key_in(request.head))

    async def answer(self, attempt: Attempt) -> Reply:
        """The local models' answer to an attempt."""
        local = self._locals[-1]
        wire, model, body = attempt.route.wire, attempt.route.model, attempt.body
        try:
            if attempt.route.kind is Kind.EMBED:
                embed = wire.read_embed(model, body)
                vectors, usage = await local.embed(embed)
                return self._reply(attempt, wire.embeddings(embed, vectors, usage), usage)
            call = wire.read_chat(model, body)
            answer = await local.chat(call)
        except CallError as exc:
            return self._error(wire, wire.error(exc.status, str(exc), exc.param), attempt.api_key)
        answer, planted = self._with_lapse(attempt, call, answer)
        return replace(self._chat_reply(attempt, call.model, answer, call.top_logprobs), planted=planted)

    def finished(self, reply: Reply) -> None:
        """All of a reply has been sent."""
        if reply.counted:
            self.counts.answered(reply)

    # --- decisions --------------------------------------------------------------------------------

    def _admit(self, route: Route, body: bytes, now: float, api_key: str) -> Reply | Attempt:
        behaviour, counts, wire = self.behaviour, self.counts, route.wire
        key = body_key(body)
        tally = counts.tally(key) if behaviour.count_keys else None
        if tally is not None:
            tally.seen += 1
        if (refused := self._refused(wire, body, api_key)) is not None:
            return self._error(wire, refused, api_key)
        estimate = 0.0
        if self._limits.any:
            estimate = self._estimate(route, body)
            refusal = self._limits.admit(now, estimate, held_s=self.watch.held_s)
            if refusal is not None:
                counts.refused[refusal.name] += 1
                wait = told_seconds(refusal.wait_s, behaviour.retry_after)
                return self._error(wire, wire.rate_limited(route.model, refusal, wait), api_key)
        turn = 1
        if tally is not None:
            tally.admitted += 1
            turn = tally.admitted
        fault = draw_fault(behaviour, key, turn)
        if route.kind is Kind.EMBED and fault in _OF_TEXT:
            fault = None
        if fault is not None:
            counts.by_fault[fault] += 1
        attempt = Attempt(route, body, key, turn, fault, estimate, api_key)
        if fault in STATUS:
            return self._error(wire, wire.error(STATUS[fault]), api_key, self._latency_s(attempt, 0))
        if fault in ("disconnect", "hang"):
            return Reply(manner=MANNER[fault], delay_s=self._latency_s(attempt, 0))
        return attempt if behaviour.answers == "local" else self._canned_reply(attempt)

    def _refused(self, wire: Wire, body: bytes, api_key: str) -> ErrorAnswer | None:
        """The error where a request is not even measured by the limits."""
        behaviour, counts = self.behaviour, self.counts
        if behaviour.api_key and api_key != behaviour.api_key:
            counts.refused["key"] += 1
            return wire.bad_key()
        if behaviour.permanent_status and behaviour.permanent_marker.encode() in body:
            return wire.error(behaviour.permanent_status)
        if behaviour.max_in_flight and counts.in_flight > behaviour.max_in_flight:
            counts.refused["in_flight"] += 1
            return wire.error(behaviour.overload_status)
        return None

    def _estimate(self, route: Route, body: bytes) -> float:
        """The tokens that limits take before the answer is known: exact for canned chat answers."""
        if route.kind is Kind.CHAT and self.behaviour.answers == "canned":
            usage = self._canned.usage
            return usage.input_tokens + usage.output_tokens
        return len(body) / 4

    def _latency_s(self, attempt: Attempt, output_tokens: int) -> float:
        return draw_latency_s(self.behaviour, attempt.key, attempt.turn, output_tokens)

    # --- replies ----------------------------------------------------------------------------------

    def _canned_reply(self, attempt: Attempt) -> Reply:
        wire, model, body, key = attempt.route.wire, attempt.route.model, attempt.body, attempt.key
        try:
            if attempt.route.kind is Kind.EMBED:
                embed = wire.read_embed(model, body)
                vectors, usage = self._canned.embed(embed)
                return self._reply(attempt, wire.embeddings(embed, vectors, usage), usage)
            if _LOGPROBS[wire] in body:
                call = wire.read_chat(model, body)
                return self._chat_reply(attempt, call.model, self._canned.chat(key), call.top_logprobs)
        except CallError as exc:
            return self._error(wire, wire.error(exc.status, str(exc), exc.param), attempt.api_key)
        if attempt.fault in _OF_TEXT:
            return self._chat_reply(attempt, MODEL, self._canned.chat(key), None)
        usage = self._canned.usage
        if attempt.fault is None and self._fixed:
            data, delay_s = self._fixed[wire].data, self._latency_s(attempt, usage.output_tokens)
            return Reply(data, 200, delay_s=delay_s, usable=True, usage=usage, key=self._counted_key(key))
        return self._reply(attempt, self._canned.chat_body(wire, key), usage)

    def _with_lapse(self, attempt: Attempt, call: ChatCall, answer: Answer) -> tuple[Answer, Planted | None]:
        lapse = draw_lapse(self.behaviour, attempt.key, attempt.turn)
        if lapse is None or attempt.fault not in (None, "drip"):
            return answer, None
        return plant(lapse, call, answer, draw(self.behaviour.seed, attempt.key, attempt.turn, "piece"))

    def _chat_reply(self, attempt: Attempt, model: str, answer: Answer, top_logprobs: int | None) -> Reply:
        wire, ident = attempt.route.wire, attempt.key.hex()
        if attempt.fault == "prompt_blocked":
            status, body = wire.prompt_blocked(model, ident, answer.usage)
            return self._reply(attempt, body, answer.usage, status, usable=False)
        finish = FINISH.get(attempt.fault) if attempt.fault else None
        if finish is not None:
            kept = len(answer.text) // 2 if finish is FinishReason.LENGTH else 0
            answer = replace(answer, text=answer.text[:kept], finish_reason=finish)
        body, whole = wire.chat(model, answer, ident, top_logprobs), answer.finish_reason is FinishReason.STOP
        return self._reply(attempt, body, answer.usage, usable=whole)

    def _reply(
        self, attempt: Attempt, body: bytes, usage: Usage, status: int = 200, *, usable: bool = True
    ) -> Reply:
        """A generated answer, as far as its fault leaves it whole."""
        fault, wire = attempt.fault, attempt.route.wire
        if fault == "malformed":
            body = body[: len(body) // 2]
        elif fault == "empty":
            body = b""
        headers: list[tuple[str, str]] = []
        if self._limits.any:
            now = self._clock()
            self._limits.settle(now, usage.input_tokens + usage.output_tokens - attempt.estimate)
            headers = wire.rate_headers(self._limits.standings(now))
        data = response(status, body, headers, content_type=wire.content_type)
        return Reply(
            data=data,
            status=status,
            manner=MANNER.get(fault, Manner.WHOLE) if fault else Manner.WHOLE,
            delay_s=self._latency_s(attempt, usage.output_tokens),
            spoilt_at=len(data) - len(body) if fault == "drip" else len(data) - len(body) // 2 - 1,
            usable=usable and fault in (None, "drip"),
            usage=usage,
            key=self._counted_key(attempt.key),
        )

    def _counted_key(self, key: bytes) -> bytes | None:
        return key if self.behaviour.count_keys else None

    def _error(self, wire: Wire, error: ErrorAnswer, api_key: str, delay_s: float = 0.0) -> Reply:
        if self.behaviour.echo_key and api_key:
            error = echoing(error, api_key)
        headers = list(error.headers)
        if self._limits.any:
            headers += wire.rate_headers(self._limits.standings(self._clock()))
        data = response(error.status, error.body, headers, content_type=wire.content_type)
        return Reply(data, error.status, delay_s=delay_s)

    def _prepare(self, wire: Wire) -> Reply:
        """The reply to every chat request, where its bytes are always the same."""
        data = response(200, self._canned.chat_body(wire, b""), content_type=wire.content_type)
        return Reply(data, 200, usable=True, usage=self._canned.usage)

    def _control(self, kind: Kind, request: HttpRequest) -> Reply:
        if kind is Kind.MODELS:
            names = ["teacher", "student", "embedder"] if self.behaviour.answers == "local" else [MODEL]
            return _uncounted(200, OPENAI.models(names), OPENAI)
        status, document = 200, dict[str, object]()
        if kind is Kind.SEEN:
            document = self.seen(keys="1" in parse_qs(request.head.query).get("keys", []))
        elif kind is Kind.RESET:
            self.reset()
        elif kind is Kind.SHUTDOWN:
            self._on_shutdown()
        else:
            try:
                changes = orjson.loads(request.body)
                self.configure(self.behaviour.changed(changes))
                document = self.behaviour.to_json()
            except (ValueError, TypeError, PldError) as exc:  # orjson's errors are ValueErrors
                status, document = 400, {"error": str(exc)}
        return _uncounted(status, orjson.dumps(document), OPENAI)


def _uncounted(status: int, body: bytes, wire: Wire) -> Reply:
    data = response(status, body, content_type=wire.content_type)
    return Reply(data, status, counted=False)
