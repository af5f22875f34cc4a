"""Phase 2, second half (M7): each cluster of rules becomes one instruction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from engine.distillation.answers import GeneralAnswer, SynthesisAnswer, schema_of
from engine.distillation.asking import ask
from engine.distillation.templating import TaskContext, instruction_blocks, render
from engine.fences import block, fence
from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.tokens import estimate_tokens
from engine.types import Failure, Instruction, Message, MicroRule, Request

STAGE = "synthesis"
GENERAL_ID = "G"
MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True)
class Synthesis:
    """The instructions, largest cluster first, and the clusters that brought none."""

    instructions: tuple[Instruction, ...]
    failures: tuple[Failure, ...]


class SynthesisRequests:
    """Renders the synthesizer's request for one cluster.

    Its rules may fill `max_rule_tokens`, and rules outside every cluster that came near it a quarter as much.
    """

    def __init__(self, context: TaskContext, max_rule_tokens: int) -> None:
        self._system = Message("system", render("synthesis_system", context=context.text))
        self._schema = schema_of(SynthesisAnswer)
        self._max_rule_tokens = max_rule_tokens

    def __call__(self, name: str, rules: Sequence[MicroRule], nearby: Sequence[MicroRule] = ()) -> Request:
        blocks = [_rules_block("rules", rules, self._max_rule_tokens)]
        if nearby:
            blocks.append(_rules_block("nearby", nearby, self._max_rule_tokens // 4))
        shown = render("synthesis_user", rules="\n".join(blocks))
        return Request(name, (self._system, Message("user", shown)), MAX_OUTPUT_TOKENS, self._schema)


async def synthesize(
    lane: ChatLane,
    clusters: Mapping[int, Sequence[MicroRule]],
    context: TaskContext,
    *,
    max_input_tokens: int,
    nearby: Mapping[int, Sequence[MicroRule]] | None = None,
    again: bool = True,
) -> Synthesis:
    """Merge the rules of each cluster into one instruction.

    `clusters` maps a cluster's number to its rules, `nearby` to the rules outside every cluster that are
    shown beside them, each nearest to its centre first; an instruction traces to both. Instructions are
    numbered I01, I02, … by cluster size, largest first (ties by number), so that what decides most rows
    stands first. Rules may fill half of `max_input_tokens`.
    """
    order = sorted(clusters, key=lambda number: (-len(clusters[number]), number))
    names = {f"cluster-{number}": number for number in order}
    requests = SynthesisRequests(context, max_input_tokens // 2)
    beside = nearby or {}

    def make(name: str) -> Request:
        return requests(name, clusters[names[name]], beside.get(names[name], ()))

    asked = await ask(lane, list(names), make, SynthesisAnswer, stage=STAGE, check=_not_empty, again=again)
    instructions = tuple(
        Instruction(
            id=f"I{position:02d}",
            title=" ".join(answer.title.split()),
            text=answer.instruction.strip(),
            cluster=names[name],
            rule_ids=tuple(rule.sample_id for rule in (*clusters[names[name]], *beside.get(names[name], ()))),
        )
        for position, (name, answer) in enumerate(
            ((name, asked.answers[name]) for name in names if name in asked.answers), start=1
        )
    )
    return Synthesis(instructions, tuple(asked.failures[name] for name in names if name in asked.failures))


async def write_general_rules(
    lane: ChatLane,
    prompt: CompiledPrompt,
    context: TaskContext,
    rows_per_label: Mapping[str, int],
) -> Instruction | Failure:
    """The rules ahead of all instructions: which goes first, and the label when none applies.

    `rows_per_label` counts training rows: the default label is a matter of how common labels are.
    It traces to every rule behind the instructions that it orders.
    """
    request = general_request(prompt, context, rows_per_label)
    name = request.id
    asked = await ask(lane, [name], lambda _: request, GeneralAnswer, stage=STAGE, check=_not_empty)
    if name in asked.failures:
        return asked.failures[name]
    behind = sorted({rule for one in prompt.instructions for rule in one.rule_ids})
    return Instruction(GENERAL_ID, asked.answers[name].instruction.strip(), rule_ids=tuple(behind))


def general_request(
    prompt: CompiledPrompt, context: TaskContext, rows_per_label: Mapping[str, int]
) -> Request:
    """The request for the general rules ahead of `prompt`'s instructions."""
    system = Message("system", render("general_system", context=context.text))
    shown = block("instructions", instruction_blocks(prompt.instructions))
    counts = "\n".join(
        fence("label", "", name=label, rows=rows_per_label.get(label, 0)) for label in context.labels
    )
    user = Message("user", render("general_user", labels=counts, instructions=shown))
    return Request("general", (system, user), MAX_OUTPUT_TOKENS, schema_of(GeneralAnswer))


def _rules_block(name: str, rules: Sequence[MicroRule], max_tokens: int) -> str:
    """Distinct rules with their counts, as many as fit in `max_tokens`.

    Where they do not all fit, labels take turns, so that a rare label is not crowded out; within a label the
    commonest go first, then those that `rules` has first (nearest to the cluster's centre).
    """
    counts = Counter((rule.label, rule.instruction) for rule in rules)
    by_label: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(counts, key=lambda key: -counts[key]):
        by_label.setdefault(key[0], []).append(key)
    turns = zip_longest(*(by_label[label] for label in sorted(by_label)))
    shown: list[tuple[str, str]] = []
    used = 0
    for key in (key for turn in turns for key in turn if key is not None):
        used += estimate_tokens(key[1]) + 16
        if used > max_tokens and shown:
            break
        shown.append(key)
    shown.sort(key=lambda key: (-counts[key], key))
    fences = (fence("rule", text, label=label, count=counts[label, text]) for label, text in shown)
    return block(name, "\n".join(fences), total=len(rules))


def _not_empty(_name: str, answer: SynthesisAnswer | GeneralAnswer) -> list[str]:
    return [] if answer.instruction.strip() else ["the instruction is empty"]
