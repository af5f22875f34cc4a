"""One reply: its bytes, and how they reach the client."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from bench.fake_server.behaviour import FaultName
from bench.fake_server.lapses import Planted
from engine.types import FinishReason, Usage


class Manner(Enum):
    """How a reply is sent."""

    WHOLE = auto()
    DRIP = auto()
    TRUNCATED = auto()
    RESET = auto()
    DISCONNECT = auto()
    HANG = auto()


MANNER: dict[FaultName, Manner] = {
    "drip": Manner.DRIP,
    "truncated": Manner.TRUNCATED,
    "reset": Manner.RESET,
    "disconnect": Manner.DISCONNECT,
    "hang": Manner.HANG,
}
FINISH: dict[FaultName, FinishReason] = {
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.BLOCKED,
}
STATUS: dict[FaultName, int] = {"error_500": 500, "error_503": 503}


@dataclass(frozen=True, slots=True)
class Reply:
    """`data` is a whole response. Where it is not sent whole, `spoilt_at` is where it ends (truncated, reset)
    or where the drip begins. `status` is 0 where nothing is sent.

    `counted` replies answer model requests; `usable`, `usage`, `key` and `planted` are for the counts.
    """

    data: bytes = b""
    status: int = 0
    manner: Manner = Manner.WHOLE
    delay_s: float = 0.0
    spoilt_at: int = 0
    counted: bool = True
    usable: bool = False
    usage: Usage | None = None
    key: bytes | None = None
    planted: Planted | None = None
