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

    def test_the_first_answer_stays_within_a_commit_and_among_many(self) -> None:
        async def check() -> None:
            journal, other = self.journal("a"), self.journal("b")
            await journal.commit([answered(1, b"first"), answered(1, b"second"), answered(2)])
            for start in range(100, 10_100, 500):
                await other.commit([answered(n) for n in (1, *range(start, start + 500))])
            for one in (journal, other, self.journal("c")):
                found = await one.lookup([key(n) for n in (1, 2, 99, 100, 5000, 10_099, 10_100)])
                known = {key(n): b"answer %d" % n for n in (2, 100, 5000, 10_099)}
                assert dict(found) == {key(1): b"first", **known}

        self.run(check())

    def test_payloads_of_any_size_and_content(self) -> None:
        small = (0, 1, 5000, 2, 3000, 3750, 3760, 3761, 4000, 4096, 1500, 2500, 900)
        sizes = (*small, 70_000, 10, 3700, 50, 1_500_000, 7)

        async def check() -> None:
            journal = self.journal("a")
            wanted = {key(n): bytes(i % 251 for i in range(size)) for n, size in enumerate(sizes)}
            records = [
                Record(k, "r", "stage", f"model {n > 14}", payload, None, Usage(), 0.0)
                for n, (k, payload) in enumerate(wanted.items())
            ]
            await journal.commit(records)
            assert dict(await journal.lookup(list(wanted))) == wanted
            assert dict(await self.journal("b").lookup(list(wanted))) == wanted
            assert dict(await self.journal("b").lookup([key(2)])) == {key(2): wanted[key(2)]}

        self.run(check())

    def test_keys_that_share_their_end(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            alike = [bytes([n]) * 24 + b"the same" for n in range(5)]
            records = [
                Record(k, "r", "stage", "model", k[:3], None, Usage(), 0.0) for k in (alike[0], *alike[2:])
            ]
            await journal.commit(records)
            await journal.commit([answered(n) for n in range(9000)])
            assert dict(await journal.lookup(alike[:2])) == {alike[0]: alike[0][:3]}
            assert dict(await journal.lookup(alike)) == {k: k[:3] for k in alike if k != alike[1]}

        self.run(check())

    def test_a_key_asked_twice_at_once(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            await journal.commit([answered(1), gave_up(2)])
            assert set(await journal.lookup([key(1), key(2), key(1), key(2), key(3), key(3)])) == {
                key(1),
                key(2),
            }

        self.run(check())

    def test_any_text_can_be_kept(self) -> None:
        async def check() -> None:
            journal = self.journal("a")
            odd = Failure("r1\x00\ud800", "blocked", "'); DROP TABLE responses; --\udfff \U0001f600")
            await journal.commit([Record(key(1), odd.id, "s", "m", None, odd, Usage(), 0.0), answered(2)])
            found = await journal.lookup([key(1), key(2)])
            assert isinstance(found[key(1)], Failure)
            assert found[key(2)] == b"answer 2"
            odd_origin = Record(key(3), odd.id, "s\x00'", "\U0001f600", b"\x00\xff", None, Usage(), 0.0)
            await journal.commit([odd_origin])
            assert dict(await journal.lookup([key(3)])) == {key(3): b"\x00\xff"}

        self.run(check())

    def test_commits_may_overlap(self) -> None:
        async def check() -> None:
            journal, other = self.journal("a"), self.journal("b")
            async with asyncio.TaskGroup() as group:
                for n in range(20):
                    group.create_task((journal, other)[n % 2].commit([answered(2 * n), answered(2 * n + 1)]))
            assert len(await journal.lookup([key(n) for n in range(40)])) == 40

        self.run(check())
