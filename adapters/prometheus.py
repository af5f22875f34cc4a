"""Single metrics out of Prometheus' text format, without parsing the rest.

A vLLM server's `/metrics` is 50 KB and more and asked several times a second; all of it is parsed by nobody.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_LABEL = re.compile(rb'([A-Za-z_]\w*)="((?:[^"\\\n]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n"}


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of a metric: its labels as they stand there, and its value, a finite number."""

    raw_labels: bytes
    value: float

    @property
    def labels(self) -> dict[str, str]:
        """The labels by name, escapes resolved."""
        return {
            name.decode("ascii"): _ESCAPED.sub(
                lambda found: _UNESCAPED.get(found[1], found[1]), value.decode("utf-8", "replace")
            )
            for name, value in _LABEL.findall(self.raw_labels)
        }


class Metrics:
    """The text that a server gave. Lines that are not in the format are as if they were not there."""

    def __init__(self, text: bytes) -> None:
        self._text = b"\n" + text  # so that every line has a beginning to be found by

    def readings(self, name: str) -> list[Reading]:
        """All lines of a metric, one for each set of labels."""
        found = []
        for labels, number in _line(name).findall(self._text):
            try:
                value = float(number)
            except ValueError:
                continue
            if math.isfinite(value):
                found.append(Reading(labels, value))
        return found

    def value(self, *names: str, over: Callable[[Sequence[float]], float] = math.fsum) -> float | None:
        """The first of these metrics that is there, added up over its labels; None where none is."""
        for name in names:
            if found := self.readings(name):
                return over([one.value for one in found])
        return None


@lru_cache(maxsize=64)
def _line(name: str) -> re.Pattern[bytes]:
    # begins with the literal name, so that the search is a search for that
    return re.compile(
        rb"\n" + re.escape(name.encode()) + rb'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\})?[ \t]+([^\s]+)'
    )
