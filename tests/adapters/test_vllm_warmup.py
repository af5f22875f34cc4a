"""One request ahead of the others: whatever becomes of it, nobody is left waiting."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from adapters.vllm_warmup import WarmUp
from tests.support.virtual_time import run_virtual


@dataclass
class Server:
    """Answers after a while; says of each answer whether its prefix was cached."""

    warm_up: WarmUp = field(default_factory=WarmUp)
    says: list[bool | None] = field(default_factory=list)
    going: int = 0
    most: list[int] = field(default_factory=list)
    alone: int = 0

    async def ask(self, seconds: float, says: bool | None) -> None:
        """A request like the adapter's: it waits for its turn, and gives it back however it ends."""
        alone = await self.warm_up.turn()
        assert alone or self.warm_up.over
        self.alone += alone
        self.going += 1
        if not self.warm_up.over:
            assert self.going == 1, "until it is over they go one by one"
        self.most.append(self.going)
        told: bool | None = None
        try:
            await asyncio.sleep(seconds)
            told = says
        finally:
            self.going -= 1
            if alone:
                self.warm_up.give_back(told)


def asked(*says: bool | None) -> Server:
    """A server that was asked so many at once, and said this of them."""
    server = Server()

    async def check() -> None:
        async with asyncio.TaskGroup() as group:
            for one in says:
                group.create_task(server.ask(1.0, one))

    run_virtual(check())
    return server


def test_a_first_answer_from_the_cache_lets_all_others_go() -> None:
    server = asked(*[True] * 20)
    assert server.alone == 1
    assert max(server.most) == 19


def test_an_empty_cache_is_filled_first() -> None:
    assert asked(False, *[True] * 20).alone == 2


def test_a_server_that_caches_nothing_is_not_asked_one_by_one() -> None:
    server = asked(*[False] * 20)
    assert (server.alone, max(server.most)) == (3, 17)


def test_failures_pass_the_turn_on_and_do_not_count_as_answers() -> None:
    assert asked(None, None, True, *[True] * 9).alone == 3
    assert asked(*[None] * 20).alone == 5


def test_nobody_waits_when_it_is_over() -> None:
    warm_up = WarmUp()

    async def check() -> None:
        assert await warm_up.turn()
        warm_up.give_back(True)
        assert not await warm_up.turn()

    run_virtual(check())


def test_who_is_called_and_cancelled_at_once_passes_the_turn_on() -> None:
    warm_up = WarmUp()

    async def check() -> None:
        assert await warm_up.turn()
        called, next_one = (asyncio.ensure_future(warm_up.turn()) for _ in range(2))
        await asyncio.sleep(0)
        warm_up.give_back(False)
        called.cancel()
        assert await next_one
        warm_up.give_back(True)
        await asyncio.wait([called])

    run_virtual(check())


def test_nobody_waits_longer_for_it_than_for_an_answer() -> None:
    """A first request that takes for ever, or a few that take long, keep the others back for 20 s in all."""
    for first in (1000.0, 15.0):
        warm_up, went = WarmUp(), []

        async def ask(seconds: float, warm_up: WarmUp = warm_up, went: list[float] = went) -> None:
            alone = await warm_up.turn()
            went.append(asyncio.get_running_loop().time() - 1000.0)
            await asyncio.sleep(seconds)
            if alone:
                warm_up.give_back(False)

        async def check(first: float = first) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(ask(first))

        run_virtual(check())
        assert went == [0.0, *([15.0] if first == 15.0 else []), *[20.0] * (9 if first == 1000.0 else 8)]
        assert warm_up.over, "an answer that comes later closes nothing"


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]),  # when it comes
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),  # how long its answer takes
        st.sampled_from([True, False, False, None]),  # what it says
        st.sampled_from([None, None, 0.0, 0.5, 1.0, 1.5, 4.0]),  # when it is cancelled
    ),
    min_size=1,
    max_size=25,
)


@given(REQUESTS)
def test_every_request_gets_through_or_is_cancelled(
    requests: list[tuple[float, float, bool | None, float | None]],
) -> None:
    server = Server()

    async def one(come: float, seconds: float, says: bool | None, cancelled: float | None) -> bool:
        await asyncio.sleep(come)
        try:
            async with asyncio.timeout(cancelled):
                await server.ask(seconds, says)
        except TimeoutError:
            return False
        return True

    async def check() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [(group.create_task(one(*asked)), asked[3]) for asked in requests]
        for task, cancelled in tasks:
            assert task.result() or cancelled is not None
        assert not [waiter for waiter in server.warm_up._waiting if not waiter.done()]
        assert not server.warm_up._busy
        # and who comes later is not left waiting either
        await server.ask(1.0, True)

    run_virtual(check())
    assert server.going == 0
