"""Real local models that remember what they were asked, under a name that does not change with the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adapters.local import LocalEmbedder, LocalStudent, LocalTeacher, fit_local
from engine.config import Config
from engine.ports import FREE, ChatModel, Embedder, Models, Price, Within
from engine.types import Answer, ChatOutcome, EmbedOutcome, Request, Sample

Change = Callable[[Request, ChatOutcome], ChatOutcome]


@dataclass
class Recorder:
    """A `ChatModel` around another one. `change` may replace an outcome."""

    inner: ChatModel
    name: str
    change: Change = lambda _request, outcome: outcome
    asked: list[Request] = field(default_factory=list)
    max_batch: int = 16
    price: Price | None = FREE
    max_input_tokens: int = 400_000

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        self.asked += requests
        outcomes = await self.inner.complete(requests)
        return [self.change(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]

    async def aclose(self) -> None:
        await self.inner.aclose()

    def of(self, schema: str) -> list[Request]:
        """What was asked with that answer schema."""
        return [request for request in self.asked if request.schema and request.schema.name == schema]

    def seen(self) -> str:
        """Everything that was shown to the model."""
        return "\n".join(message.content for request in self.asked for message in request.messages)


@dataclass
class EmbedRecorder:
    """An `Embedder` around another one."""

    inner: Embedder
    name: str
    asked: list[str] = field(default_factory=list)
    max_batch: int = 16
    price: Price | None = FREE
    within: Within = "label"

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        self.asked += texts
        return await self.inner.embed(texts)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class Cast:
    """The models of a run, each recorded apart."""

    teacher: Recorder
    synthesizer: Recorder
    resolver: Recorder
    embedder: EmbedRecorder
    student: Recorder

    def models(self) -> Models:
        return Models(self.teacher, self.synthesizer, self.resolver, self.embedder, self.student)

    def sent(self) -> int:
        chat = (self.teacher, self.synthesizer, self.resolver, self.student)
        return sum(len(one.asked) for one in chat) + len(self.embedder.asked)


def cast(config: Config, fitted_on: Sequence[Sample]) -> Cast:
    """Local models fitted once on `fitted_on`, whatever is compiled with them: their names stay the same."""
    fit = fit_local(fitted_on, config.labels, config.run.seed, config.embedder.dimensions)
    writer = LocalTeacher(fit)
    return Cast(
        teacher=Recorder(writer, "teacher"),
        synthesizer=Recorder(writer, "synthesizer"),
        resolver=Recorder(writer, "resolver"),
        embedder=EmbedRecorder(LocalEmbedder(fit), "embedder"),
        student=Recorder(LocalStudent(), "student"),
    )


def text_of(outcome: ChatOutcome) -> str:
    """The text of an answer; fails the test where there is none."""
    assert isinstance(outcome, Answer)
    return outcome.text
