"""The receipt of a job's prefix cache, where its model gives one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.events import EventSink, Notice
from engine.ports import AnyChatModel, CacheReceipt, Receipting


@dataclass(frozen=True, slots=True)
class ReceiptBook:
    """What a job has to know from its beginning on to judge the receipt at its end."""

    model: AnyChatModel
    prompts: int
    unused: bool

    @classmethod
    async def open(cls, model: AnyChatModel, *, prompts: int) -> ReceiptBook:
        """For a job that begins now and asks with that many prompts."""
        unused = not isinstance(model, Receipting) or await model.receipt() is None
        return cls(model, prompts, unused)

    async def receipt(self, emit: EventSink) -> CacheReceipt | None:
        """What the prefix cache was worth since the model was opened, earlier jobs included.

        None where the model keeps no receipt, or has answered nothing. Warnings are emitted too. One is added
        where the job alone had more beginnings than prompts: the rows of a prompt have to share one (C10).
        """
        receipt = await self.model.receipt() if isinstance(self.model, Receipting) else None
        if receipt is None:
            return None
        if self.unused and receipt.prefixes > self.prompts:
            prompts = "is one prompt" if self.prompts == 1 else f"are {self.prompts:,} prompts"
            several = (
                f"the requests had {receipt.prefixes:,} different beginnings, and there {prompts}: something "
                "ahead of the rows has changed, and each time the cache begins anew"
            )
            receipt = replace(receipt, warnings=(several, *receipt.warnings))
        for warning in receipt.warnings:
            emit(Notice(f"prefix cache: {warning}", warning=True))
        return receipt


def receipt_json(receipt: CacheReceipt | None) -> dict[str, Any] | None:
    """A receipt as JSON, with its hit rate."""
    if receipt is None:
        return None
    hit_rate, first_token_s = receipt.hit_rate, receipt.first_token_s
    return asdict(receipt) | {
        "hit_rate": None if hit_rate is None else round(hit_rate, 4),
        "requests_per_s": round(receipt.requests_per_s, 1),
        "first_token_s": None if first_token_s is None else round(first_token_s, 4),
        "warnings": list(receipt.warnings),
    }
