"""Phase 2, first half (M4): rules to vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.errors import ModelError
from engine.scheduler import Lane
from engine.types import Embedding, EmbedRequest, Failure, FloatVector, MicroRule

STAGE = "embedding"


async def embed_rules(
    lane: Lane[EmbedRequest, Embedding], rules: Sequence[MicroRule]
) -> tuple[tuple[MicroRule, ...], FloatVector, tuple[Failure, ...]]:
    """Embed each distinct instruction once.

    Returns the rules that have a vector, their vectors (n_rules, dim) float32 of unit norm in the same order,
    and a failure for each of the others. Raises `ModelError` where the vectors differ in length.
    """
    first: dict[str, str] = {}
    for rule in rules:
        first.setdefault(rule.instruction, rule.sample_id)
    vectors: dict[str, FloatVector] = {}
    reasons: dict[str, Failure] = {}
    requests = (EmbedRequest(sample_id, text) for text, sample_id in first.items())
    async with lane.stream(requests, stage=STAGE, total=len(first)) as results:
        async for result in results:
            if isinstance(result.outcome, Failure):
                reasons[result.id] = result.outcome
            else:
                vectors[result.id] = result.outcome.vector
    if len({vector.shape for vector in vectors.values()}) > 1:
        raise ModelError(f"{lane.name}: vectors of different lengths came back")
    kept = tuple(rule for rule in rules if first[rule.instruction] in vectors)
    failures = tuple(
        Failure(rule.sample_id, f"embedding: {reason.reason}", reason.detail)
        for rule in rules
        if (reason := reasons.get(first[rule.instruction])) is not None
    )
    if not kept:
        return (), np.zeros((0, 0), dtype=np.float32), failures
    return kept, np.stack([vectors[first[rule.instruction]] for rule in kept]), failures
