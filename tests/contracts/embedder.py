"""What every `Embedder` does. See `engine.ports.Embedder` for the contract in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engine.ports import Embedder, Price
from engine.types import AttemptFailure, Embedding, EmbedOutcome


class EmbedderContract:
    """Subclass as `TestSomething`; give `embedder` and `texts`."""

    tolerance = 1e-5
    """How far two vectors of one text may lie apart in one coordinate (batched arithmetic rounds apart)."""

    def embedder(self) -> Embedder:
        """A fresh embedder. Called with the event loop running."""
        raise NotImplementedError

    def texts(self) -> list[str]:
        """At least three usable, different texts."""
        raise NotImplementedError

    def bad_text(self) -> str | None:
        """A text that the embedder refuses, None where there is none."""
        return None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Embedder]:
        """The embedder, closed at the end. Override where it needs a server around it."""
        embedder = self.embedder()
        try:
            yield embedder
        finally:
            await embedder.aclose()

    # --- the checks ------------------------------------------------------------------------------

    def test_describes_itself(self) -> None:
        async def check() -> None:
            async with self.opened() as embedder:
                assert embedder.name
                assert embedder.name == embedder.name.strip()
                assert embedder.max_batch >= 1
                assert embedder.within in ("all", "label")
                assert embedder.price is None or isinstance(embedder.price, Price)

        asyncio.run(check())

    def test_two_instances_have_one_name(self) -> None:
        async def name() -> str:
            async with self.opened() as embedder:
                return embedder.name

        assert asyncio.run(name()) == asyncio.run(name())

    def test_vectors_are_float32_of_unit_norm_and_one_length(self) -> None:
        async def check() -> None:
            texts = self.texts()
            async with self.opened() as embedder:
                outcomes = await embed(embedder, texts)
            assert len(outcomes) == len(texts)
            vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
            assert len(vectors) == len(texts), "these texts are usable"
            assert {(v.dtype, v.shape) for v in vectors} == {(np.dtype(np.float32), vectors[0].shape)}
            assert vectors[0].ndim == 1
            np.testing.assert_allclose(np.linalg.norm(np.stack(vectors), axis=1), 1.0, atol=1e-5)

        asyncio.run(check())

    def test_order_and_batching_do_not_matter(self) -> None:
        async def check() -> None:
            texts = self.texts()
            async with self.opened() as embedder:
                together = stack(await embed(embedder, texts))
                backward = stack(await embed(embedder, texts[::-1]))
                alone = stack([(await embedder.embed([text]))[0] for text in texts])
            np.testing.assert_allclose(together, backward[::-1], atol=self.tolerance)
            np.testing.assert_allclose(together, alone, atol=self.tolerance)

        asyncio.run(check())

    def test_usage_is_within_its_meaning(self) -> None:
        async def check() -> None:
            async with self.opened() as embedder:
                outcomes = await embed(embedder, self.texts())
            for outcome in outcomes:
                assert isinstance(outcome, Embedding)
                assert outcome.usage.input_tokens >= 0
                assert outcome.usage.output_tokens == outcome.usage.thinking_tokens == 0

        asyncio.run(check())

    def test_a_cancelled_call_leaves_the_embedder_usable(self) -> None:
        async def check() -> None:
            texts = self.texts()
            async with self.opened() as embedder:
                call = asyncio.ensure_future(embedder.embed(texts[:1]))
                await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                (outcome,) = await embedder.embed(texts[:1])
                assert isinstance(outcome, Embedding)

        asyncio.run(check())

    def test_no_texts_no_outcomes(self) -> None:
        async def check() -> None:
            async with self.opened() as embedder:
                assert list(await embedder.embed([])) == []

        asyncio.run(check())

    def test_calls_may_overlap(self) -> None:
        async def check() -> None:
            texts = self.texts()
            async with self.opened() as embedder:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(embedder.embed([text])) for text in texts]
                overlapping = stack([task.result()[0] for task in tasks])
                serial = stack(await embed(embedder, texts))
            np.testing.assert_allclose(overlapping, serial, atol=self.tolerance)

        asyncio.run(check())

    def test_the_event_loop_goes_on_meanwhile(self) -> None:
        async def check() -> None:
            async with self.opened() as embedder:
                ran: list[bool] = []
                asyncio.get_running_loop().call_soon(ran.append, True)
                await embedder.embed(self.texts()[: embedder.max_batch])
                assert ran, "the work has to be done off the event loop"

        asyncio.run(check())

    def test_a_bad_text_is_data(self) -> None:
        bad = self.bad_text()
        if bad is None:
            pytest.skip("this embedder refuses nothing")

        async def check() -> None:
            good = self.texts()
            async with self.opened() as embedder:
                outcomes = await embed(embedder, [good[0], bad, good[1]])
            assert isinstance(outcomes[0], Embedding)
            assert isinstance(outcomes[2], Embedding)
            assert isinstance(outcomes[1], AttemptFailure)
            assert outcomes[1].reason
            assert not bad or bad not in outcomes[1].detail, "row text never reaches an error (C11)"

        asyncio.run(check())

    def test_closing_twice_is_harmless(self) -> None:
        async def check() -> None:
            async with self.opened() as embedder:
                await embedder.aclose()  # before it was ever used
                await embedder.embed(self.texts()[:1])
                await embedder.aclose()
                await embedder.aclose()

        asyncio.run(check())


async def embed(embedder: Embedder, texts: Sequence[str]) -> list[EmbedOutcome]:
    """All outcomes, in batches no larger than the embedder takes."""
    outcomes: list[EmbedOutcome] = []
    for start in range(0, len(texts), embedder.max_batch):
        outcomes.extend(await embedder.embed(texts[start : start + embedder.max_batch]))
    return outcomes


def stack(outcomes: Sequence[EmbedOutcome]) -> np.ndarray:
    """The vectors of outcomes that are all usable, shape (n, dim)."""
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
    assert len(vectors) == len(outcomes)
    return np.stack(vectors)
