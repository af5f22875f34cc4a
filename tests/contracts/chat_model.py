"""What every `ChatModel` does. See `engine.ports.ChatModel` for the contract in words."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from engine.ports import ChatModel, Price, Remarking
from engine.types import Answer, AttemptFailure, ChatOutcome, FinishReason, Request


class ChatModelContract:
    """Subclass as `TestSomething`; give `model` and `requests`."""

    deterministic = True
    """Whether equal requests get equal answers (at temperature 0)."""

    def model(self) -> ChatModel:
        """A fresh model. Called with the event loop running."""
        raise NotImplementedError

    def requests(self) -> list[Request]:
        """At least three usable requests with different ids, some with `choices` where it takes them."""
        raise NotImplementedError

    def bad_request(self) -> Request | None:
        """A request that the model refuses, None where there is none. Its text is a long unusual word."""
        return None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ChatModel]:
        """The model, closed at the end. Override where it needs a server around it."""
        model = self.model()
        try:
            yield model
        finally:
            await model.aclose()

    # --- the checks ------------------------------------------------------------------------------

    def test_describes_itself(self) -> None:
        async def check() -> None:
            async with self.opened() as model:
                assert model.name
                assert model.name == model.name.strip()
                assert model.name == model.name, "the name is part of every cache key"
                assert model.max_batch >= 1
                assert model.max_input_tokens >= 1
                assert model.price is None or isinstance(model.price, Price)

        asyncio.run(check())

    def test_two_instances_have_one_name(self) -> None:
        async def name() -> str:
            async with self.opened() as model:
                return model.name

        assert asyncio.run(name()) == asyncio.run(name())

    def test_one_outcome_per_request_in_order(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                forward = await ask(model, requests)
                backward = await ask(model, requests[::-1])
            assert len(forward) == len(backward) == len(requests)
            for outcome in forward:
                assert isinstance(outcome, Answer | AttemptFailure)
            assert any(isinstance(outcome, Answer) for outcome in forward), "these requests are usable"
            if self.deterministic:
                assert [text(o) for o in forward] == [text(o) for o in backward[::-1]]

        asyncio.run(check())

    def test_a_full_batch_equals_single_requests(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                together = await ask(model, requests)
                alone = [(await model.complete([request]))[0] for request in requests]
            assert [text(o) for o in together] == [text(o) for o in alone]

        if not self.deterministic:
            pytest.skip("answers vary")
        asyncio.run(check())

    def test_no_requests_no_outcomes(self) -> None:
        async def check() -> None:
            async with self.opened() as model:
                assert list(await model.complete([])) == []

        asyncio.run(check())

    def test_requests_stay_as_they_are(self) -> None:
        async def check() -> None:
            requests = self.requests()
            before = copy.deepcopy(requests)
            async with self.opened() as model:
                await ask(model, requests)
            assert requests == before
            assert [r.digest("m") for r in requests] == [r.digest("m") for r in before]

        asyncio.run(check())

    def test_calls_may_overlap(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(model.complete([request])) for request in requests]
                overlapping = [task.result()[0] for task in tasks]
                serial = await ask(model, requests)
            if self.deterministic:
                assert [text(o) for o in overlapping] == [text(o) for o in serial]

        asyncio.run(check())

    def test_the_event_loop_goes_on_meanwhile(self) -> None:
        async def check() -> None:
            async with self.opened() as model:
                ran: list[bool] = []
                asyncio.get_running_loop().call_soon(ran.append, True)
                await model.complete(self.requests()[: model.max_batch])
                assert ran, "the work has to be done off the event loop"

        asyncio.run(check())

    def test_a_cancelled_call_leaves_the_model_usable(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                call = asyncio.ensure_future(model.complete(requests[:1]))
                await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                (outcome,) = await model.complete(requests[:1])
                assert isinstance(outcome, Answer)

        asyncio.run(check())

    def test_answers_are_well_formed(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                outcomes = await ask(model, requests)
            for request, outcome in zip(requests, outcomes, strict=True):
                if isinstance(outcome, Answer):
                    check_answer(request, outcome)

        asyncio.run(check())

    def test_an_answer_to_choices_is_one_of_them(self) -> None:
        asked = [request for request in self.requests() if request.choices]
        if not asked:
            pytest.skip("this model is asked for no choices")

        async def check() -> None:
            async with self.opened() as model:
                outcomes = await ask(model, asked)
            for request, outcome in zip(asked, outcomes, strict=True):
                assert isinstance(outcome, Answer)
                assert outcome.text in request.choices, "verbatim"

        asyncio.run(check())

    def test_remarks_are_lines_that_hold_no_row(self) -> None:
        async def check() -> None:
            requests = self.requests()
            async with self.opened() as model:
                if not isinstance(model, Remarking):
                    pytest.skip("this model has nothing to say of its server")
                before = list(model.remarks)
                for _ in range(2):
                    await ask(model, requests)
                    assert list(model.remarks)[: len(before)] == before, "what was said is not taken back"
                    before = list(model.remarks)
            assert len(set(before)) == len(before), "each is said once"
            for remark in before:
                assert remark.strip() == remark != ""
                assert "\n" not in remark
                for request in requests:
                    for message in request.messages:
                        assert message.content not in remark, "row text never reaches a remark (C11)"

        asyncio.run(check())

    def test_a_bad_request_is_data(self) -> None:
        bad = self.bad_request()
        if bad is None:
            pytest.skip("this model refuses nothing")

        async def check() -> None:
            good = self.requests()
            async with self.opened() as model:
                outcomes = await ask(model, [good[0], bad, good[1]])
            assert isinstance(outcomes[0], Answer)
            assert isinstance(outcomes[2], Answer)
            assert isinstance(outcomes[1], AttemptFailure)
            assert outcomes[1].reason
            assert "\n" not in outcomes[1].detail
            for message in bad.messages:
                assert message.content not in outcomes[1].detail, "row text never reaches an error (C11)"

        asyncio.run(check())

    def test_closing_twice_is_harmless(self) -> None:
        async def check() -> None:
            async with self.opened() as model:
                await model.aclose()  # before it was ever used
                await model.complete(self.requests()[:1])
                await model.aclose()
                await model.aclose()

        asyncio.run(check())


async def ask(model: ChatModel, requests: Sequence[Request]) -> list[ChatOutcome]:
    """All outcomes, in batches no larger than the model takes."""
    outcomes: list[ChatOutcome] = []
    for start in range(0, len(requests), model.max_batch):
        outcomes.extend(await model.complete(requests[start : start + model.max_batch]))
    return outcomes


def text(outcome: ChatOutcome) -> str:
    """What an outcome says, comparable between runs."""
    return outcome.text if isinstance(outcome, Answer) else f"failure: {outcome.reason}"


def check_answer(request: Request, answer: Answer) -> None:
    """Usage, finish reason and label probabilities are within their meanings."""
    usage = answer.usage
    assert isinstance(answer.finish_reason, FinishReason)
    assert usage.input_tokens >= 0
    assert 0 <= usage.thinking_tokens <= usage.output_tokens
    if usage.cached_tokens is not None:
        assert 0 <= usage.cached_tokens <= usage.input_tokens
    if answer.label_logprobs is not None:
        assert answer.text in request.choices, "who knows the probabilities of labels has answered with one"
        assert set(answer.label_logprobs) == set(request.choices)
        assert all(not math.isnan(value) and value <= 1e-6 for value in answer.label_logprobs.values())
        shares = {label: math.exp(value) for label, value in answer.label_logprobs.items()}
        assert math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6)
        assert shares[answer.text] > 0.0
