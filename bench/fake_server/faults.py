"""Chance, drawn from what is asked and never from when: the same attempts meet the same fate on every run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TypeVar

from bench.fake_server.behaviour import FAULTS, LAPSES, Behaviour, FaultName, LapseName

NameT = TypeVar("NameT", FaultName, LapseName)

_NORMAL = NormalDist()


def body_key(body: bytes) -> bytes:
    """The 8-byte digest that a request is known by; `/fake/seen` and the digest echo write it in hex."""
    return hashlib.sha256(body).digest()[:8]


def draw(seed: int, key: bytes, turn: int, purpose: str) -> float:
    """A number in the open interval (0, 1) for the `turn`-th time that `key` is let in."""
    state = hashlib.sha256(f"{seed}:{turn}:{purpose}:".encode() + key).digest()
    # 52 bits and a half: never 0, and nothing rounds up to 1
    return ((int.from_bytes(state[:8], "big") >> 12) + 0.5) / 2**52


def draw_fault(behaviour: Behaviour, key: bytes, turn: int) -> FaultName | None:
    """What goes wrong with this attempt, if anything."""
    if not behaviour.faults:
        return None
    return _chosen(FAULTS, behaviour.faults, draw(behaviour.seed, key, turn, "fault"))


def draw_lapse(behaviour: Behaviour, key: bytes, turn: int) -> LapseName | None:
    """What the model that answers this attempt does wrong, if anything."""
    if not behaviour.lapses:
        return None
    return _chosen(LAPSES, behaviour.lapses, draw(behaviour.seed, key, turn, "lapse"))


def _chosen(names: Sequence[NameT], shares: Mapping[NameT, float], chance: float) -> NameT | None:
    for name in names:  # in one order, however the shares were written down
        chance -= shares.get(name, 0.0)
        if chance < 0:
            return name
    return None


def draw_latency_s(behaviour: Behaviour, key: bytes, turn: int, output_tokens: int) -> float:
    """Seconds from a request's arrival to its answer."""
    base, spread = behaviour.latency_s, behaviour.latency_spread
    if base and spread:
        chance = draw(behaviour.seed, key, turn, "latency")
        if behaviour.latency == "uniform":
            base *= 1 + spread * (2 * chance - 1)
        else:
            base *= math.exp(spread * _NORMAL.inv_cdf(chance))
    return base + behaviour.latency_per_token_s * output_tokens
