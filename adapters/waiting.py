"""How long a server asks to wait, by the headers of its response."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_LIMITS = ("requests", "tokens")
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1, "": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ms|us|µs|ns|d|h|m|s|$)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_A_MOMENT_S = 1e8  # three years: some servers tell the time at which a limit is whole again instead


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date).

    None where it does not say, or nothing that makes sense. A date is read by the server's own clock.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(headers["Retry-After"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
    try:
        now = parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        now = time.time()
    return max(0.0, until - now)


def reset_after_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds it takes until the limit that is used up is whole again; None where that is not told.

    Times stand in `x-ratelimit-reset-requests` and `-tokens`, as `120ms`, `1s`, `6m0s` or plain seconds. Used
    up is the limit with the smaller part left (`x-ratelimit-remaining-…` of `x-ratelimit-limit-…`); where
    that cannot be told, the longer time counts. See https://platform.openai.com/docs/guides/rate-limits.
    """
    left = {kind: _part_left(headers, kind) for kind in _LIMITS}
    least = min(left.values())
    telling = least <= 0 or math.inf not in left.values()
    used_up = [kind for kind in _LIMITS if not telling or left[kind] == least]
    told = [_duration_s(headers.get(f"x-ratelimit-reset-{kind}", "")) for kind in used_up]
    return max((seconds for seconds in told if seconds is not None), default=None)


def _part_left(headers: Mapping[str, str], kind: str) -> float:
    """What part of a limit is left, infinite where that is not told."""
    try:
        left = float(headers[f"x-ratelimit-remaining-{kind}"])
        if left <= 0:
            return 0.0
        part = left / float(headers[f"x-ratelimit-limit-{kind}"])
    except (KeyError, ValueError, ZeroDivisionError):
        return math.inf
    return part if part > 0 else math.inf  # not a number is neither


def _duration_s(text: str) -> float | None:
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return seconds if seconds < _A_MOMENT_S else None
