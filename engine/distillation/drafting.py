"""From clusters to the first prompt: synthesis, the limit on its length, and the general rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.clustering import Clustering, inward
from engine.config import Config
from engine.distillation import synthesis
from engine.distillation.templating import TaskContext
from engine.events import EventSink, Notice
from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.tokens import estimate_tokens
from engine.types import Failure, FloatVector, MicroRule, Sample

# Rules outside every cluster are evidence for the one whose centre is within so many eps. Of rules that a
# frontier model wrote on 17 questions, 82 to 94% of those so near were on a question of the cluster.
_NEARBY = 1.5


@dataclass(frozen=True)
class Draft:
    """A prompt before conflict resolution, and the requests that brought no instruction."""

    prompt: CompiledPrompt
    failures: tuple[Failure, ...]


async def draft_prompt(
    lane: ChatLane,
    rules: Sequence[MicroRule],
    vectors: FloatVector,
    clustering: Clustering,
    *,
    config: Config,
    train: Sequence[Sample],
    max_input_tokens: int,
    faithful: bool,
    emit: EventSink,
) -> Draft:
    """Ask the synthesizer behind `lane` for an instruction of each cluster, and then for the general rules.

    `vectors` (n, d) are those of the `rules`, as they came from the embedder. Instructions of the smallest
    clusters are left out where the prompt would pass `resolve.max_prompt_tokens`. `faithful` is the paper's
    recipe: clusters alone are shown, and become the prompt as they are.
    """
    context = TaskContext(config)
    clusters, nearby = {}, {}
    for cluster in clustering.clusters:
        clusters[cluster.number] = [rules[row] for row in inward(vectors, cluster)]
        if not faithful:
            near = clustering.long_tail.near(cluster.number, 1.0 - _NEARBY * cluster.eps)
            # no more of them than of the cluster's own: they must not become the topic
            nearby[cluster.number] = [rules[row] for row in near[: cluster.size]]
    found = await synthesis.synthesize(
        lane, clusters, context, max_input_tokens=max_input_tokens, nearby=nearby, again=not faithful
    )
    prompt = CompiledPrompt(config.task.description, config.task.labels, found.instructions)
    if faithful:
        return Draft(prompt, found.failures)
    limit = config.resolve.max_prompt_tokens
    prompt = _fitting(prompt, limit, emit)
    if not prompt.instructions:
        return Draft(prompt, found.failures)
    rows_per_label = Counter(sample.label for sample in train)
    general = await synthesis.write_general_rules(lane, prompt, context, rows_per_label)
    if isinstance(general, Failure):
        return Draft(prompt, (*found.failures, general))
    # they count against the limit too
    return Draft(_fitting(replace(prompt, general=general), limit, emit), found.failures)


def _fitting(prompt: CompiledPrompt, limit: int, emit: EventSink) -> CompiledPrompt:
    """Leave out the instructions of the smallest clusters until the prompt is within its limit."""
    kept = prompt
    while kept.instructions and estimate_tokens(kept.text) > limit:
        kept = replace(kept, instructions=kept.instructions[:-1])
    left_out = len(prompt.instructions) - len(kept.instructions)
    if left_out:
        emit(
            Notice(
                f"{left_out} of {len(prompt.instructions)} instructions are left out, those of the "
                f"smallest clusters: the prompt may have {limit} tokens (resolve.max_prompt_tokens)",
                warning=True,
            )
        )
    return kept
