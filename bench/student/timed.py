"""The shipped adapter with a clock."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adapters.addresses import RemoteAddress
from adapters.vllm import VllmChat
from engine.types import ChatOutcome, Request


class TimedChat(VllmChat):
    """`answered_s` are the moments of the answers by `time.perf_counter`, in order; `latencies_s` belong to
    them.
    """

    def __init__(self, address: RemoteAddress) -> None:
        super().__init__(address)
        self.answered_s: list[float] = []
        self.latencies_s: list[float] = []

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        began = time.perf_counter()
        outcomes = await super().complete(requests)
        self.answered_s.append(time.perf_counter())
        self.latencies_s.append(self.answered_s[-1] - began)
        return outcomes
