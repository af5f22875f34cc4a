"""The fakes keep the contracts of the ports they stand for."""

from __future__ import annotations

from engine.ports import ChatModel, Embedder, Journal
from engine.types import Answer, AttemptFailure, ChatOutcome, Request
from tests.contracts.chat_model import ChatModelContract
from tests.contracts.embedder import EmbedderContract
from tests.contracts.journal import JournalContract
from tests.support.fakes import (
    InMemoryJournal,
    MemoryStore,
    ScriptedEmbedder,
    ScriptedModel,
    request,
    requests,
)


def picky(text: str, attempt: int) -> ChatOutcome:
    return (
        AttemptFailure("refused", "not this one") if text == "unmentionable" else Answer(f"answer to {text}")
    )


class TestScriptedModel(ChatModelContract):
    def model(self) -> ChatModel:
        return ScriptedModel(picky)

    def requests(self) -> list[Request]:
        return requests(5)

    def bad_request(self) -> Request:
        return request("bad", "unmentionable")


class TestScriptedModelInBatches(TestScriptedModel):
    def model(self) -> ChatModel:
        return ScriptedModel(picky, max_batch=2)


class TestScriptedEmbedder(EmbedderContract):
    def embedder(self) -> Embedder:
        return ScriptedEmbedder(refuse=frozenset({"unmentionable"}))

    def texts(self) -> list[str]:
        return ["one", "two", "three", "four", "five"]

    def bad_text(self) -> str:
        return "unmentionable"


class TestInMemoryJournal(JournalContract):
    def setup_method(self) -> None:
        self.store = MemoryStore()

    def journal(self, run_id: str, *, retry_failed: bool = False) -> Journal:
        return InMemoryJournal(self.store, run_id, retry_failed=retry_failed)
