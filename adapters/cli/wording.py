"""What is happening just now, in words and figures short enough for a line of 80 characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.events import Bottleneck, LaneVitals, RowFigures

BETWEEN = " · "
_LAG_WORTH_A_LOOK_S = 0.05
_BARS = " ▁▂▃▄▅▆▇█"
_MOST_LABELS = 6
_WAITS_FOR: dict[Bottleneck, str] = {
    "server": "waiting for the model",
    "source": "reading rows",
    "disk": "writing answers to disk",
    "cost": "the cost cap: money set aside",
}


def rates(lane: LaneVitals) -> list[str]:
    per_s = lane.requests_per_s
    cells = [f"{per_s:,.1f} requests/s" if per_s < 10 else f"{per_s:,.0f} requests/s"]
    if lane.requests_per_minute_limit is not None:
        cells.append(f"{60 * per_s:,.0f} of {lane.requests_per_minute_limit:,}/min")
    if lane.tokens_per_minute_limit is not None:
        limit = short(lane.tokens_per_minute_limit)
        cells.append(f"{short(lane.tokens_per_minute)} of {limit} tokens/min")
    elif lane.tokens_per_minute:
        cells.append(f"{short(lane.tokens_per_minute)} tokens/min")
    return cells


def waiting(lane: LaneVitals, pause_s: float) -> list[str]:
    cells = [f"{lane.in_flight:,} of {lane.concurrency:,} in flight", bottleneck(lane, pause_s)]
    if lane.loop_lag_s >= _LAG_WORTH_A_LOOK_S:
        cells.append(f"loop lag {1000 * lane.loop_lag_s:,.0f} ms")
    return cells


def bottleneck(lane: LaneVitals, pause_s: float = 0.0) -> str:
    """What is waited for, in plain words; `pause_s`: how much is left of the provider's pause."""
    if lane.bottleneck == "limit":
        requests = 60 * lane.requests_per_s / (lane.requests_per_minute_limit or math.inf)
        tokens = lane.tokens_per_minute / (lane.tokens_per_minute_limit or math.inf)
        return f"at the {'tokens' if tokens > requests else 'requests'}-per-minute limit"
    if lane.bottleneck == "client":
        return f"this machine's CPU ({lane.cpu_share:.0%} of a core)"
    if lane.bottleneck == "pause":
        return f"the provider asked to wait{f', {math.ceil(pause_s)} s' if pause_s > 0 else ''}"
    return _WAITS_FOR[lane.bottleneck]


def found(rows: RowFigures) -> list[str]:
    """What bulk classification has found: speed, equal texts, rows to review, label mix, confidences."""
    cells = [f"{rows.rows_per_s:,.0f} rows/s"] if rows.rows_per_s else []
    if rows.duplicates:
        cells.append(f"{short(rows.duplicates)} equal texts")
    if rows.review:
        cells.append(f"{short(rows.review)} to review")
    total = sum(rows.labels.values())
    cells += [f"{name} {count / total:.0%}" for name, count in list(rows.labels.items())[:_MOST_LABELS]]
    if len(rows.labels) > _MOST_LABELS:
        cells.append(f"{len(rows.labels) - _MOST_LABELS} more labels")
    if any(rows.confidence):
        cells.append(f"confidence 0 {histogram(rows.confidence)} 1")
    return cells


def histogram(counts: Sequence[int]) -> str:
    """Counts as bars, one character each; whatever is not 0 can be seen."""
    most = max(counts, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] if most else " " for count in counts)


def packed(cells: Sequence[str], width: int) -> list[str]:
    """The cells in lines of at most `width` characters, none of them broken unless it is longer."""
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + len(BETWEEN) + len(cell) <= width:
            lines[-1] += BETWEEN + cell
        else:
            lines.append(cell)
    return lines


def short(count: float) -> str:
    """A count to three figures: 999, 12.3k, 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:,.0f}{unit}" if value >= 99.95 else f"{value:#.3g}{unit}"
    return f"{count:,.0f}"


def dollars(amount: float) -> str:
    """Dollars to the cent; small sums to a hundredth of one."""
    return f"${amount:,.4f}" if 0 < amount < 1 else f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """A span of time, as exactly as one can mean it: 35 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds < 20 else f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest} h"
