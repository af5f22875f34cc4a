"""What a model finds out about its server reaches the user, once, and early."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import ModelError
from engine.events import Notice, StageProgress
from engine.ports import Remarking
from engine.scheduler import Limits, RetryPolicy, Scheduler
from engine.types import TRANSIENT, AttemptFailure
from tests.support.fakes import InMemoryJournal, Listener, ScriptedEmbedder, ScriptedModel, requests
from tests.support.virtual_time import run_virtual


@dataclass
class Observant(ScriptedModel):
    """A model that has something to say."""

    remarks: list[str] = field(default_factory=list)


def notices(heard: Listener) -> list[Notice]:
    return [event for event in heard.events if isinstance(event, Notice)]


async def ask(scheduler: Scheduler, model: ScriptedModel, n: int, *, concurrency: int = 1) -> None:
    lane = scheduler.chat(model, Limits(concurrency=concurrency))
    async with lane.stream(requests(n), stage="asking") as results:
        async for _ in results:
            pass


def test_each_remark_is_told_once_over_all_lanes_and_stages() -> None:
    async def check() -> None:
        heard = Listener()
        scheduler = Scheduler(None, emit=heard)
        first = Observant(remarks=["one"])
        await ask(scheduler, first, 3)
        first.remarks.append("two")
        await ask(scheduler, first, 3)
        await ask(scheduler, Observant(remarks=["two", "three"]), 3)
        assert notices(heard) == [Notice(text, warning=True) for text in ("one", "two", "three")]

    run_virtual(check())


def test_it_is_told_while_the_stage_goes_on() -> None:
    async def check() -> None:
        heard = Listener()
        model = Observant(latency_s=lambda text, attempt: 1.0)
        model.on_send = lambda asked: model.remarks.append("at once") if asked.id == "r1" else None
        await ask(Scheduler(None, emit=heard), model, 50)
        (place,) = [n for n, event in enumerate(heard.events) if isinstance(event, Notice)]
        done = [event.done for event in heard.events[:place] if isinstance(event, StageProgress)]
        assert max(done) <= 2

    run_virtual(check())


def test_it_is_told_of_a_stage_that_fails() -> None:
    async def check() -> None:
        heard = Listener()
        refused = AttemptFailure("unconstrained", "no", TRANSIENT)
        model = Observant(lambda text, attempt: refused, remarks=["it does not hold to the labels"])
        scheduler = Scheduler(
            InMemoryJournal(), emit=heard, policy=RetryPolicy(max_attempts=2, same_failures=3)
        )
        failed = False
        try:
            await ask(scheduler, model, 5)
        except ModelError:
            failed = True
        assert failed
        assert [notice.text for notice in notices(heard)] == model.remarks

    run_virtual(check())


def test_a_model_need_not_have_anything_to_say() -> None:
    async def check() -> None:
        heard = Listener()
        scheduler = Scheduler(None, emit=heard)
        await ask(scheduler, ScriptedModel(), 3)
        assert not isinstance(ScriptedModel(), Remarking)
        assert scheduler.embed(ScriptedEmbedder()).model.remarks == ()
        assert notices(heard) == []

    run_virtual(check())
