"""What DBSCAN is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.clustering.spaces import BoolVector, IntVector


class Setting(NamedTuple):
    """A largest distance of two neighbours, and how many neighbours, itself included, make a row core."""

    eps: float
    min_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Labelling:
    """DBSCAN's answer for one setting: `labels` int64 (n,), clusters numbered from 0 in the order of their
    first core row, noise -1; `core` bool (n,).
    """

    setting: Setting
    labels: IntVector = field(repr=False)
    core: BoolVector = field(repr=False)
