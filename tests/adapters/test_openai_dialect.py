"""What is made of servers that refuse or ignore some of the API's fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from adapters import openai_compatible
from adapters.addresses import RemoteAddress
from adapters.openai_compatible import OpenAICompatibleChat
from adapters.openai_dialect import Dialect
from adapters.openai_errors import ApiError
from adapters.openai_wire import Form
from engine.errors import ModelError
from engine.events import Notice
from engine.scheduler import Limits, RetryPolicy, Scheduler
from engine.types import TRANSIENT, Answer, AnswerSchema, AttemptFailure, ChatOutcome, Message, Request, Usage
from tests.adapters.openai_server import KEY, ROW, Server, completion, error, forbidden
from tests.adapters.responding import Script, http, responding
from tests.support.fakes import InMemoryJournal, Listener

LABELS = ("a", "b", "c")
SCHEMA = AnswerSchema("rule", {"type": "object", "properties": {"rule": {"type": "string"}}})
WAYS = ["structured_outputs", "response_format", "guided_choice"]


def choose(text: str = "row", **fields: Any) -> Request:
    return Request(text, (Message("user", text),), 20, choices=LABELS, **fields)


def write(text: str = "row") -> Request:
    return Request(text, (Message("user", text),), 20, schema=SCHEMA)


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


async def attempts(model: OpenAICompatibleChat, request: Request, most: int = 6) -> list[ChatOutcome]:
    """A request asked as the scheduler asks it: again while the verdict is `transient`."""
    outcomes: list[ChatOutcome] = []
    while len(outcomes) < most:
        outcomes += await model.complete([request])
        last = outcomes[-1]
        if isinstance(last, Answer) or last.retry != TRANSIENT:
            break
    return outcomes


def way_of(body: Mapping[str, Any]) -> str:
    return next((way for way in WAYS if way in body), "text")


class Asking:
    """A model of a server, with what it was asked."""

    def __init__(self, script: Script, **options: Any) -> None:
        self._served = responding(script)
        self._options = options

    async def __aenter__(self) -> OpenAICompatibleChat:
        server = await self._served.__aenter__()
        address = RemoteAddress("m", (server.base,))
        self.model = OpenAICompatibleChat(address, api_key=KEY, **self._options)
        return self.model

    async def __aexit__(self, *error: object) -> None:
        await self.model.aclose()
        await self._served.__aexit__(None, None, None)


# --- choices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("heeded", range(3))
def test_choices_are_asked_for_in_another_way_until_the_server_holds_to_them(heeded: int) -> None:
    async def check() -> None:
        script = Server(heeds=frozenset([WAYS[heeded]]))
        async with Asking(script) as model:
            *lost, answer = await attempts(model, choose())
            assert len(lost) == heeded
            for outcome in lost:
                assert isinstance(outcome, AttemptFailure)
                assert (outcome.reason, outcome.retry) == ("unconstrained", TRANSIENT)
                assert outcome.billed == Usage(12, 3), "the answer was billed all the same"
            assert isinstance(answer, Answer)
            assert answer.text in LABELS
            assert [way_of(body) for body in script.asked] == WAYS[: heeded + 1]
            # and it is remembered
            (again,) = await attempts(model, choose("another"))
            assert isinstance(again, Answer)
            assert way_of(script.asked[-1]) == WAYS[heeded]
            assert model.remarks == ()

    run(check())


def test_a_server_that_holds_to_nothing_answers_in_free_text() -> None:
    async def check() -> None:
        script = Server(heeds=frozenset())
        async with Asking(script) as model:
            *lost, answer = await attempts(model, choose())
            assert len(lost) == 3
            assert isinstance(answer, Answer), "the caller counts it as malformed"
            assert answer.text not in LABELS
            assert not script.asked[-1].keys() & set(WAYS)
            for row in range(3):
                await attempts(model, choose(f"row {row}"))
            assert len(script.asked) == 7
            (remark,) = model.remarks
            assert remark.startswith("openai:m: the server knows no way to hold answers to the labels")

    run(check())


def test_requests_that_were_under_way_are_asked_again_in_the_new_way() -> None:
    async def check() -> None:
        script = Server(heeds=frozenset(["response_format"]))
        async with Asking(script) as model:
            rows = [choose(f"row {n}") for n in range(8)]
            outcomes = [one for (one,) in await asyncio.gather(*(model.complete([row]) for row in rows))]
            assert all(isinstance(one, AttemptFailure) and one.retry == TRANSIENT for one in outcomes)
            for row in rows:
                assert len(await attempts(model, row)) == 1
            assert {way_of(body) for body in script.asked} == {"structured_outputs", "response_format"}

    run(check())


def test_white_space_around_a_label_is_taken_off() -> None:
    async def check() -> None:
        async with Asking(lambda asked: http(200, completion("\n a "))) as model:
            (answer,) = await attempts(model, choose())
            assert isinstance(answer, Answer)
            assert answer.text == "a"

    run(check())


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_that_was_cut_or_held_back_tells_nothing_of_the_server(finish: str) -> None:
    async def check() -> None:
        async with Asking(lambda asked: http(200, completion("a lon", finish))) as model:
            (answer,) = await attempts(model, choose())
            assert isinstance(answer, Answer)
            assert model._dialect.form.choices == "structured_outputs"

    run(check())


# --- refusals -------------------------------------------------------------------------------------

NAMED = [
    (400, error("unsupported_value", "invalid_request_error", "{}")),
    (400, error("unsupported_parameter", "invalid_request_error", "{}")),
    (400, error("unknown_parameter", "invalid_request_error", "{}")),
    (422, forbidden("{}")),
    (422, {"object": "error", "message": forbidden("{}"), "type": "invalid_request_error"}),
]


def naming(refusal: tuple[int, Any], field: str) -> tuple[int, Any]:
    status, body = refusal
    return status, json.loads(json.dumps(body).replace("{}", field))


@pytest.mark.parametrize("refusal", NAMED)
@pytest.mark.parametrize("field", ["temperature", "seed", "logprobs", "top_logprobs", "structured_outputs"])
def test_a_field_that_is_refused_by_name_is_left_out(field: str, refusal: tuple[int, Any]) -> None:
    async def check() -> None:
        script = Server(refuses=frozenset([field]), refusal=naming(refusal, field))
        async with Asking(script) as model:
            rows = [choose(f"row {n}", temperature=0.5, index=n) for n in range(3)]
            # all that were under way get another try
            first = await asyncio.gather(*(model.complete([row]) for row in rows))
            assert all(isinstance(one, AttemptFailure) and one.retry == TRANSIENT for (one,) in first)
            for row in rows:
                (answer,) = await attempts(model, row)
                assert isinstance(answer, Answer)
                assert answer.text in LABELS
            left_out = {field, "top_logprobs", "logprobs"} if "logprobs" in field else {field}
            expected = {"temperature", "seed", "logprobs", "top_logprobs"} - left_out
            assert expected <= script.asked[-1].keys()
            assert not script.asked[-1].keys() & left_out

    run(check())


def test_all_fields_that_a_server_does_not_know_are_left_out_at_once() -> None:
    unknown = frozenset(["max_completion_tokens", "structured_outputs", "logprobs", "top_logprobs"])

    async def check() -> None:
        script = Server(refuses=unknown, refusal=(422, forbidden(*unknown)))
        async with Asking(script) as model:
            failed, answer = await attempts(model, choose())
            detail = "HTTP 422 (extra_forbidden): to be asked again in another form"
            assert failed == AttemptFailure("put_otherwise", detail, TRANSIENT)
            assert isinstance(answer, Answer)
            assert answer.text in LABELS
            assert script.asked[-1]["max_tokens"] > 20

    run(check())


def test_a_bound_that_is_too_large_is_no_unknown_field() -> None:
    refusal = (400, error("invalid_value", "invalid_request_error", "max_completion_tokens"))

    async def check() -> None:
        async with Asking(Server(refuses=frozenset(["messages"]), refusal=refusal)) as model:
            (failed,) = await attempts(model, choose())
            assert isinstance(failed, AttemptFailure)
            assert failed.reason == "refused"
            assert model._dialect.form.bound == "max_completion_tokens"

    run(check())


NO_REASON = [
    (400, {"error": {"message": ROW, "type": "invalid_request_error"}}),
    (400, {"error": {"message": ROW, "type": "BadRequestError", "param": None, "code": 400}}),
    (400, b"no JSON"),
    (422, {"detail": ROW}),
]


@pytest.mark.parametrize("refusal", NO_REASON)
@pytest.mark.parametrize(
    "refused", [["logprobs"], ["structured_outputs"], ["logprobs", "structured_outputs"], [*WAYS, "logprobs"]]
)
def test_a_field_that_is_refused_without_a_word_is_found_by_trying(
    refused: list[str], refusal: tuple[int, Any]
) -> None:
    async def check() -> None:
        script = Server(refuses=frozenset(refused), refusal=refusal)
        async with Asking(script) as model:
            *lost, answer = await attempts(model, choose())
            assert 1 <= len(lost) <= 4
            assert isinstance(answer, Answer)
            assert (answer.text in LABELS) is (set(refused) < {*WAYS, "logprobs"})
            (_,) = await attempts(model, choose("another"))
            assert bool(model.remarks) is (WAYS[-1] in refused)

    run(check())


def test_openai_refuses_log_probabilities_of_models_that_think_with_403(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = (403, error(None, "invalid_request_error"))

    async def check() -> None:
        script = Server(refuses=frozenset(["logprobs"]), refusal=refusal)
        async with Asking(script) as model:
            failed, answer = await attempts(model, choose())
            assert isinstance(answer, Answer)
            assert isinstance(failed, AttemptFailure)
        async with Asking(Server(refuses=frozenset(["messages"]), refusal=refusal)) as model:
            await model.complete([choose()])
            await model.complete([choose()])
            with pytest.raises(ModelError, match="HTTP 403"):
                await attempts(model, choose())

    monkeypatch.setattr(openai_compatible, "OPENAI_HOST", "127.0.0.1")
    run(check())


def test_a_row_that_is_at_fault_itself_leaves_everything_as_it_was() -> None:
    async def check() -> None:
        script = Server(bad="odd")
        async with Asking(script) as model:
            before = model._dialect.form
            outcomes = await attempts(model, choose("odd"))
            assert isinstance(outcomes[-1], AttemptFailure)
            assert (outcomes[-1].reason, outcomes[-1].retry.kind) == ("refused", "no")
            assert model._dialect.form == before
            assert len(await attempts(model, choose("even"))) == 1
            # from now on the server is known to take these fields, and a refusal is the row's
            assert len(await attempts(model, choose("odd again"))) == 1
            assert model._dialect.form == before
            assert model.remarks == ()

    run(check())


def test_an_answer_in_the_old_form_ends_the_doubt() -> None:
    async def check() -> None:
        async with Asking(Server(bad="odd")) as model:
            before = model._dialect.form
            both = await asyncio.gather(model.complete([choose("odd")]), model.complete([choose("even")]))
            assert isinstance(both[1][0], Answer)
            assert model._dialect.form == before
            (failed,) = await attempts(model, choose("odd"))
            assert isinstance(failed, AttemptFailure)
            assert failed.reason == "refused"

    run(check())


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_policy_violation", "model_not_found"])
def test_a_refusal_that_says_why_is_about_that(code: str) -> None:
    refusal = (400, error(code, "invalid_request_error"))

    async def check() -> None:
        async with Asking(Server(refuses=frozenset(["messages"]), refusal=refusal)) as model:
            before = model._dialect.form
            try:
                (outcome,) = await attempts(model, choose())
                assert isinstance(outcome, AttemptFailure)
                assert outcome.retry.kind == "no"
            except ModelError:
                assert code == "model_not_found"
            assert model._dialect.form == before

    run(check())


def test_thinking_that_is_refused_ends_the_run() -> None:
    async def check() -> None:
        async with Asking(Server(refuses=frozenset(["reasoning_effort"])), thinking="minimal") as model:
            with pytest.raises(ModelError, match=r"^openai:m: does not take thinking = 'minimal'"):
                await model.complete([choose()])

    run(check())


# --- schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [(400, None), *NO_REASON])
def test_a_schema_that_is_refused_becomes_any_json_object(refusal: tuple[int, Any]) -> None:
    class Older(Server):
        def __call__(self, asked: Any) -> bytes:
            kind = asked.json.get("response_format", {}).get("type")
            self.refuses = frozenset(["response_format"] if kind == "json_schema" else [])
            return super().__call__(asked)

    async def check() -> None:
        script = Older(refusal=refusal)
        async with Asking(script) as model:
            _, answer = await attempts(model, write())
            assert isinstance(answer, Answer)
            assert json.loads(answer.text)
            assert script.asked[-1]["response_format"] == {"type": "json_object"}
            assert model.remarks == ()
        script = Older(refusal=refusal, heeds=frozenset())
        async with Asking(script) as model:
            await attempts(model, write())
            (remark,) = model.remarks
            assert "does not hold answers to a JSON schema" in remark

    run(check())


def test_a_server_that_ignores_a_schema_is_told_of_once() -> None:
    async def check() -> None:
        async with Asking(Server(heeds=frozenset())) as model:
            for row in range(3):
                (answer,) = await attempts(model, write(f"row {row}"))
                assert isinstance(answer, Answer), "the stage asks again, and shows what was wrong"
            (remark,) = model.remarks
            assert "does not hold answers to a JSON schema" in remark

    run(check())


@pytest.mark.parametrize("text", ['{"rule": "x"', "```json\n{'rule': 'x'}\n```", 'Here: {"rule": "x",}'])
def test_json_that_is_not_quite_right_is_a_lapse_of_the_model(text: str) -> None:
    async def check() -> None:
        async with Asking(lambda asked: http(200, completion(text))) as model:
            (answer,) = await attempts(model, write())
            assert isinstance(answer, Answer)
            assert model.remarks == ()

    run(check())


# --- the bound on an answer -------------------------------------------------------------------------


def test_an_answer_far_longer_than_asked_is_told_of_and_the_older_field_tried() -> None:
    async def check() -> None:
        script = Server(tokens=900)
        async with Asking(script) as model:
            plain = Request("r", (Message("user", "row"),), 20)
            for _ in range(3):
                (answer,) = await attempts(model, plain)
                assert isinstance(answer, Answer)
            assert ["max_tokens" in body for body in script.asked] == [False, True, True]
            assert [remark.partition("tokens where")[2] for remark in model.remarks] == [
                " 20 at most were asked for: the server does not keep to max_completion_tokens, so a cap on "
                "cost may be passed",
                " 20 at most were asked for: the server does not keep to max_tokens, so a cap on cost may be "
                "passed",
            ]
        async with Asking(Server(tokens=21)) as model:
            await attempts(model, plain)
            assert model.remarks == ()

    run(check())


# --- thinking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "details"),
    [({"reasoning_content": ROW}, 0), ({"reasoning": ROW}, 0), ({}, 2), ({"reasoning": ""}, None)],
)
def test_a_model_that_thinks_is_not_asked_for_probabilities(
    message: dict[str, Any], details: int | None
) -> None:
    async def check() -> None:
        usage = {
            "prompt_tokens": 12,
            "completion_tokens": 3,
            "completion_tokens_details": {"reasoning_tokens": details or 0},
        }
        async with Asking(lambda asked: http(200, completion("a", usage=usage, **message))) as model:
            await attempts(model, choose())
            assert model._dialect.form.logprobs is (details is None)

    run(check())


def test_no_remark_or_failure_holds_a_row_or_the_key() -> None:
    async def check() -> None:
        said: list[str] = []
        for script in (
            Server(heeds=frozenset(), free_text=f"{ROW} {KEY}", tokens=900),
            Server(refuses=frozenset(["structured_outputs"]), refusal=(422, forbidden(ROW, KEY))),
            Server(refuses=frozenset(["logprobs"]), refusal=(400, error(ROW, KEY, f"{ROW}.{KEY}"))),
        ):
            async with Asking(script) as model:
                for request in (choose(ROW), write(ROW)):
                    outcomes = await attempts(model, request)
                    said += [repr(one) for one in outcomes if isinstance(one, AttemptFailure)]
                said += model.remarks
        assert said
        assert not [line for line in said if ROW in line or KEY in line or "\n" in line]

    run(check())


# --- late news --------------------------------------------------------------------------------------


def test_what_comes_late_of_an_old_form_changes_nothing() -> None:
    dialect = Dialect("openai:m", Form(choices="structured_outputs", logprobs=True))
    asked = []
    for _ in range(3):
        asked.append(dialect.form)
        outcome = dialect.answered(dialect.form, choose(), Answer("none of them"), thought=False)
        assert isinstance(outcome, AttemptFailure)
    assert dialect.form.choices == "text"
    for form in asked:
        assert isinstance(dialect.answered(form, choose(), Answer("nor this"), thought=False), AttemptFailure)
        field = "response_format" if form.choices == "json_schema" else form.choices
        named = ApiError("unknown_parameter", "", field, None, (field,))
        again = dialect.refused(form, choose(), named, 400)
        assert again is not None
        assert again.retry == TRANSIENT
        assert dialect.form == Form(choices="text", logprobs=True)


def test_a_late_refusal_raises_no_further_doubt() -> None:
    dialect = Dialect("openai:m", Form(choices="structured_outputs", logprobs=True))
    asked = dialect.form
    for _ in range(5):  # all were under way at once
        again = dialect.refused(asked, choose(), None, 400)
        assert again is not None
        assert again.retry == TRANSIENT
    assert dialect.form == Form(choices="structured_outputs", logprobs=False)


# --- under the scheduler ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        Server(heeds=frozenset(["guided_choice"])),
        Server(refuses=frozenset(["structured_outputs", "logprobs"]), refusal=NO_REASON[0]),
        Server(
            refuses=frozenset(["max_completion_tokens"]), refusal=(422, forbidden("max_completion_tokens"))
        ),
    ],
    ids=["ignores", "refuses without a word", "refuses by name"],
)
def test_a_whole_stage_learns_as_it_goes(script: Server) -> None:
    async def check() -> None:
        heard = Listener()
        policy = RetryPolicy(base_delay_s=0.0)
        scheduler = Scheduler(InMemoryJournal(), emit=heard, policy=policy)
        async with Asking(script) as model:
            lane = scheduler.chat(model, Limits(concurrency=32))
            async with lane.stream([choose(f"row {n}") for n in range(200)], stage="asking") as results:
                answers = [result.outcome async for result in results]
        assert all(isinstance(answer, Answer) and answer.text in LABELS for answer in answers)
        assert len(answers) == 200
        assert not [event for event in heard.events if isinstance(event, Notice)]

    run(check())


def test_a_stage_whose_server_holds_to_nothing_ends_with_a_warning() -> None:
    async def check() -> None:
        heard = Listener()
        scheduler = Scheduler(InMemoryJournal(), emit=heard, policy=RetryPolicy(base_delay_s=0.0))
        async with Asking(Server(heeds=frozenset())) as model:
            lane = scheduler.chat(model, Limits(concurrency=32))
            async with lane.stream([choose(f"row {n}") for n in range(100)], stage="asking") as results:
                answers = [result.outcome async for result in results]
        assert all(isinstance(answer, Answer) for answer in answers)
        (notice,) = [event for event in heard.events if isinstance(event, Notice)]
        assert notice.warning
        assert notice.text.startswith("openai:m: the server knows no way to hold answers to the labels")

    run(check())
