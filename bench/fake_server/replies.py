"""One reply: its bytes, and how they reach the client."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from engine.types import Usage


class Manner(Enum):
    """How a reply is sent."""

    WHOLE = auto()
    DRIP = auto()
    TRUNCATED = auto()
    RESET = auto()
    DISCONNECT = auto()
    HANG = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """`data` is a whole response. Where it is not sent whole, `spoilt_at` is where it ends (truncated, reset)
    or where the drip begins. `status` is 0 where nothing is sent.

    `counted` replies answer model requests; `usable`, `usage` and `key` are for the counts.
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
