"""Rows that share the beginning of their text, asked for so that a prefix cache keeps it.

Where a prompt was compiled from several columns, many rows may share the first (one contract, 17 hypotheses).
Asked too far apart, the contract has left the cache when they come; asked all at once, a server that keeps a
beginning only when it has been answered computes it for each (vLLM keeps it from the moment it is scheduled).
So the first row of a group goes a little ahead of the others, and few groups are under way at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

from engine.tokens import estimate_tokens

AHEAD = 64
"""About as many as are in flight by default. Far more would be worse where a cache is small: with room for 30
beginnings, 512 ahead lost a twentieth of vLLM's hits, and 64 none."""
LEAST_TOKENS = 64
"""A shorter beginning is not worth another order of the rows."""
_LEAST_GROUPS = 4


def name_groups(texts: Sequence[str | None], beginnings: Callable[[str], Sequence[int]]) -> list[str] | None:
    """The group of each row, "" for a row without; None where no rows share a beginning.

    `beginnings` tells where a text has ends of leading fields, the same number in every text. Where there are
    several, rows are grouped by as many fields as save most: their length times the rows that repeat them.
    """
    ends = [() if text is None else tuple(beginnings(text)) for text in texts]
    best: tuple[int, list[str]] = (0, [])
    for depth in range(max(map(len, ends), default=0)):
        hashes = [
            _hash(text[: at[depth]]) if text is not None and depth < len(at) else ""
            for text, at in zip(texts, ends, strict=True)
        ]
        counts = Counter(filter(None, hashes))
        saved = 0
        shared: set[str] = set()
        alone: set[str] = set()
        for name, text, at in zip(hashes, texts, ends, strict=True):
            if text is None or counts[name] < 2 or name in shared or name in alone:
                continue
            if estimate_tokens(text[: at[depth]]) < LEAST_TOKENS:
                alone.add(name)
            else:
                shared.add(name)
                saved += (counts[name] - 1) * at[depth]
        if saved > best[0]:
            best = saved, [name if name in shared else "" for name in hashes]
    return best[1] or None


def spread(groups: Sequence[str], ahead: int = AHEAD) -> list[int]:
    """An order of some rows, as their places in `groups`, the group of each ("" for a row without).

    First rows of groups, and rows that share nothing, stay in their order. The others of a group follow
    together, behind one of those, when `ahead` rows have come in between; earlier where more groups are under
    way than have `ahead` rows on average (4 at least), and where nothing else is left. Groups end in the
    order in which they began.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        if group:
            members.setdefault(group, []).append(place)
    shared = {group: places for group, places in members.items() if len(places) > 1}
    if not shared:
        return list(range(len(groups)))
    most = max(_LEAST_GROUPS, math.ceil(ahead * len(shared) / len(groups)))
    order: list[int] = []
    waiting: deque[tuple[int, list[int]]] = deque()
    for place, group in enumerate(groups):
        followers = shared.get(group, [])
        if followers and place != followers[0]:
            continue
        order.append(place)
        if followers:
            waiting.append((len(order), followers[1:]))
        if waiting and (len(waiting) > most or len(order) - waiting[0][0] >= ahead):
            order += waiting.popleft()[1]
    for _, followers in waiting:
        order += followers
    return order


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
