"""What every `Journal` does. See `engine.ports.Journal` for the contract in words."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from engine.ports import Journal, Record
from engine.types import Failure, Usage


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


def answered(n: int, payload: bytes | None = None, cost_usd: float = 0.0) -> Record:
    return Record(key(n), f"r{n}", "stage", "model", payload or b"answer %d" % n, None, Usage(3, 2), cost_usd)


def gave_up(n: int, reason: str = "malformed") -> Record:
    failure = Failure(f"r{n}", reason, "no label")
    return Record(key(n), f"r{n}", "stage", "model", None, failure, Usage(3, 2), 0.0)


class JournalContract:
    """Subclass as `TestSomething`; give `journal`. Journals of one test share their answers."""

    def journal(self, run_id: str, *, retry_failed: bool = False) -> Journal:
        """The journal of a run, over the one store of this test."""
        raise NotImplementedError

    def run(self, check: Coroutine[Any, Any, None]) -> None:
        asyncio.run(check)

    # --- the checks ------------------------------------------------------------------------------

    def test_an_empty_journal_knows_nothing(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            assert dict(await journal.lookup([key(1), key(2)])) == {}
            assert dict(await journal.lookup([])) == {}

        self.run(check())

    def test_what_is_committed_is_found(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            await journal.commit([answered(1), gave_up(2)])
            found = await journal.lookup([key(1), key(2), key(3)])
            assert dict(found) == {key(1): b"answer 1", key(2): Failure("r2", "malformed", "no label")}

        self.run(check())

    def test_thousands_of_keys_at_once(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            await journal.commit([answered(n) for n in range(0, 3000, 2)])
            found = await journal.lookup([key(n) for n in range(3000)])
            assert set(found) == {key(n) for n in range(0, 3000, 2)}

        self.run(check())

    def test_answers_are_shared_failures_are_not(self) -> None:
        async def check() -> None:
            await self.journal("a").commit([answered(1), gave_up(2)])
            assert dict(await self.journal("b").lookup([key(1), key(2)])) == {key(1): b"answer 1"}

        self.run(check())

    def test_failures_are_asked_again_on_request(self) -> None:
        async def check() -> None:
            await self.journal("a").commit([answered(1), gave_up(2)])
            again = self.journal("a", retry_failed=True)
            assert dict(await again.lookup([key(1), key(2)])) == {key(1): b"answer 1"}

        self.run(check())

    def test_an_answer_replaces_a_failure(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            await journal.commit([gave_up(1)])
            await journal.commit([answered(1)])
            assert dict(await journal.lookup([key(1)])) == {key(1): b"answer 1"}

        self.run(check())

    def test_a_failure_never_replaces_an_answer(self) -> None:
        async def check() -> None:
            await self.journal("a").commit([answered(1)])
            for run_id in ("a", "b"):
                journal = self.journal(run_id)
                await journal.commit([gave_up(1)])
                assert dict(await journal.lookup([key(1)])) == {key(1): b"answer 1"}

        self.run(check())

    def test_the_first_answer_stays(self) -> None:
        async def check() -> None:
            await self.journal("a").commit([answered(1, b"first")])
            await self.journal("b").commit([answered(1, b"second")])
            for run_id in ("a", "b"):
                assert dict(await self.journal(run_id).lookup([key(1)])) == {key(1): b"first"}

        self.run(check())

    def test_the_last_failure_stays(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            await journal.commit([gave_up(1, "timeout"), gave_up(1, "blocked")])
            assert dict(await journal.lookup([key(1)])) == {key(1): Failure("r1", "blocked", "no label")}

        self.run(check())

    def test_all_or_nothing(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            neither = Record(key(2), "r2", "stage", "model", None, None, Usage(), 0.0)
            with pytest.raises(ValueError, match="answer"):
                await journal.commit([answered(1), neither])
            assert dict(await journal.lookup([key(1), key(2)])) == {}

        self.run(check())

    def test_any_text_can_be_kept(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            odd = Failure("r1\x00\ud800", "blocked", "'); DROP TABLE responses; --\udfff \U0001f600")
            await journal.commit([Record(key(1), odd.id, "s", "m", None, odd, Usage(), 0.0), answered(2)])
            found = await journal.lookup([key(1), key(2)])
            assert isinstance(found[key(1)], Failure)
            assert found[key(2)] == b"answer 2"

        self.run(check())

    def test_commits_may_overlap(self) -> None:
        async def check() -> None:
            journal, other = self.journal("a"), self.journal("b")
            async with asyncio.TaskGroup() as group:
                for n in range(20):
                    group.create_task((journal, other)[n % 2].commit([answered(2 * n), answered(2 * n + 1)]))
            assert len(await journal.lookup([key(n) for n in range(40)])) == 40

        self.run(check())
