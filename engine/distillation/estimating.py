"""What a compilation would send, before anything is sent: requests and tokens, stage by stage.

Requests are rendered by the code that renders them for real. What is not known before the teacher has
answered (rules, clusters, instructions, confusions) has stand-ins, and what each bound rests on is stated
beside it. Nothing is written, and no model is opened.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from engine.config import Config
from engine.distillation import extraction, resolution, synthesis
from engine.distillation.grouping import most_clusters
from engine.distillation.standins import (
    INSTRUCTION_TOKENS,
    RULE_TOKENS,
    confusion_sizes,
    fullest_prompt,
    words,
)
from engine.distillation.templating import TaskContext
from engine.events import EventSink, ignore_events
from engine.prompt import CompiledPrompt
from engine.stopping import StopSignal
from engine.store import Dataset, load_dataset
from engine.student import StudentPrompt
from engine.tokens import billed_texts, estimate_tokens, input_tokens, request_tokens
from engine.types import MicroRule, Request, Sample

Role: TypeAlias = Literal["teacher", "synthesizer", "resolver", "embedder", "student"]

# What answers usually have, thinking aside. 880 extractions that a frontier model wrote had 105 (short
# texts) and 127 (contracts) on average.
_USUAL_EXTRACTION = 130
_USUAL_SYNTHESIS = 300  # analysis, title, and the template's 150 words
_USUAL_RESOLUTION = 600  # analysis and a few edits


@dataclass(frozen=True)
class StageEstimate:
    """What one stage asks of one model.

    `requests` and `input_tokens` are exact or bounds, as `bound` says; `output_tokens` is always what the
    requests allow, and `usual_output_tokens` what as many answers usually have without thinking.
    """

    stage: str
    role: Role
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    usual_output_tokens: int
    bound: Literal["exact", "at most"]
    assumption: str


@dataclass(frozen=True)
class Estimate:
    """The stages in the order in which they run; `rows` counts the usable rows of each split.

    All tokens are estimates, for no model's tokenizer is at hand. Retries are not counted, nor are second
    askings: an answer that fails a check is asked for once more.
    """

    task: str
    rows: Mapping[str, int]
    stages: tuple[StageEstimate, ...]

    @property
    def total(self) -> dict[str, int]:
        """The sums over all stages."""
        names = ("requests", "input_tokens", "output_tokens", "usual_output_tokens")
        return {name: sum(getattr(stage, name) for stage in self.stages) for name in names}

    def to_json(self) -> dict[str, Any]:
        """What `pld estimate --json` prints."""
        return {
            "task": self.task,
            "rows": dict(self.rows),
            "stages": [asdict(stage) for stage in self.stages],
            "total": self.total,
            "estimated": True,
        }


async def estimate(
    config: Config, *, emit: EventSink = ignore_events, stop: StopSignal | None = None
) -> Estimate:
    """Say what `compile_prompt(config)`, and `evaluate` after it, would send, from the real rows.

    Answers that a response cache already holds are not subtracted. Raises `ConfigError` and `DataError` as
    compiling would.
    """
    dataset = await asyncio.to_thread(load_dataset, config)
    for notice in dataset.notices:
        emit(notice)
    if stop is not None:
        stop.check()
    return await asyncio.to_thread(estimate_dataset, config, dataset)


def estimate_dataset(config: Config, dataset: Dataset) -> Estimate:
    """`estimate` for rows that are already loaded."""
    work = _Estimating(config, dataset)
    stages = [work.extraction(), work.embedding(), *work.synthesis(), *work.resolution(), *work.verdicts()]
    rows = {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)}
    return Estimate(config.task.name, rows, tuple(stages))


class _Estimating:
    """The stages of one compilation. `_fullest` is the prompt that the student is taken to have."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self._config = config
        self._dataset = dataset
        self._context = TaskContext(config)
        settings = config.resolve
        self._extraction = _sizes(map(extraction.ExtractionRequests(self._context), dataset.train))
        if config.cluster.method == "calibrated":
            self._clusters = min(most_clusters(config), len(dataset.train) // 2)
        else:
            # A border rule goes to one of the clusters in reach, so another may end below min_samples: hardly
            # ever, but it makes this an assumption.
            self._clusters = len(dataset.train) // config.cluster.settings[1]
        # a confusion is a true label that occurs, and another label
        pairs = len({sample.label for sample in dataset.train}) * (len(config.labels) - 1)
        self._confusions = min(settings.confusions_per_round, pairs)
        added = settings.max_rounds * self._confusions * settings.max_edits + settings.long_tail
        self._fullest = fullest_prompt(config, most=self._clusters + 1 + added)
        self._long = f"prompts of {settings.max_prompt_tokens:,} tokens (resolve.max_prompt_tokens)"

    def extraction(self) -> StageEstimate:
        return self._stage(
            "extraction",
            "teacher",
            len(self._extraction),
            sum(self._extraction),
            output=extraction.MAX_OUTPUT_TOKENS,
            usual=_USUAL_EXTRACTION,
            exact=True,
            assumption="one request for each distinct training row",
        )

    def embedding(self) -> StageEstimate:
        number = len(self._extraction)
        return self._stage(
            "embedding",
            "embedder",
            number,
            number * input_tokens([words(RULE_TOKENS)]),
            assumption=f"no rule twice, none over {RULE_TOKENS} tokens",
        )

    def synthesis(self) -> list[StageEstimate]:
        make = synthesis.SynthesisRequests(self._context, sys.maxsize)
        widest = max(self._config.labels, key=estimate_tokens)
        empty = request_tokens(make("", ()))
        one_rule = request_tokens(make("", [MicroRule("", widest, words(RULE_TOKENS))])) - empty
        # each rule is in one cluster, or near one, at most; the marks around those near one are fewer than
        # what the clusters that they might have made would take
        rules = len(self._extraction) if self._clusters else 0
        clusters = self._stage(
            "synthesis",
            "synthesizer",
            self._clusters,
            self._clusters * empty + rules * one_rule,
            output=synthesis.MAX_OUTPUT_TOKENS,
            usual=_USUAL_SYNTHESIS,
            assumption=f"no cluster under {self._config.cluster.least_rules} rules, no rule over "
            f"{RULE_TOKENS} tokens",
        )
        rows_per_label = Counter(sample.label for sample in self._dataset.train)
        general = synthesis.general_request(self._fullest, self._context, rows_per_label)
        number = 1 if self._clusters else 0
        return [
            clusters,
            self._stage(
                "general rules",
                "synthesizer",
                number,
                number * request_tokens(general),
                output=general.max_output_tokens,
                usual=_USUAL_SYNTHESIS,
                assumption=self._long,
            ),
        ]

    def resolution(self) -> list[StageEstimate]:
        settings = self._config.resolve
        rounds, confusions = settings.max_rounds, self._confusions
        train, validation = self._student(self._dataset.train), self._student(self._dataset.validation)
        tried = sorted(train, reverse=True)[: settings.rows_per_round]
        scored = 1 + rounds * confusions  # the first prompt, then one candidate for each answer
        stages = [
            self._student_stage(
                "student trials",
                rounds * len(tried) + scored * len(validation),
                rounds * sum(tried) + scored * sum(validation),
                assumption=f"{rounds} rounds (resolve.max_rounds), {confusions} candidates in each; "
                f"{self._long}",
            )
        ]
        if rounds:
            make = resolution.ResolutionRequests(self._context, settings.max_edits)
            sizes = confusion_sizes(make, self._fullest, self._dataset.train, self._config)[:confusions]
            cases = settings.cases_per_request
            shown = "all training rows of both labels" if cases is None else f"the {cases} longest rows"
            resolver = self._stage(
                "resolution",
                "resolver",
                rounds * len(sizes),
                rounds * sum(sizes),
                output=resolution.MAX_OUTPUT_TOKENS,
                usual=_USUAL_RESOLUTION,
                assumption=f"{rounds} rounds of {confusions} confusions, {shown} shown; {self._long}",
            )
            stages.insert(0, resolver)
        if rounds and settings.long_tail:
            stages.append(
                self._student_stage(
                    "long tail",
                    len(tried) + settings.long_tail * len(validation),
                    sum(tried) + settings.long_tail * sum(validation),
                    assumption=f"{settings.long_tail} rules (resolve.long_tail); {self._long}",
                )
            )
        if rounds and settings.prune:
            number = len(self._fullest.instructions)
            stages.append(
                self._student_stage(
                    "pruning",
                    number * len(validation),
                    number * sum(validation),
                    assumption=f"{number:,} instructions, {INSTRUCTION_TOKENS} tokens or more on average; "
                    f"{self._long}",
                )
            )
        return stages

    def verdicts(self) -> list[StageEstimate]:
        bare = self._fullest.without_instructions()
        zero_shot = self._student(self._dataset.validation, bare)
        stages = [
            self._student_stage(
                "verdict",
                len(zero_shot),
                sum(zero_shot),
                assumption="zero-shot only: what the best prompt answers is known from resolution",
            )
        ]
        if self._dataset.test:
            sizes = self._student(self._dataset.test) + self._student(self._dataset.test, bare)
            stages.append(
                self._student_stage(
                    "evaluation",
                    len(sizes),
                    sum(sizes),
                    assumption=f"`pld evaluate` on test, with zero-shot; {self._long}",
                )
            )
        return stages

    def _student(self, samples: Sequence[Sample], prompt: CompiledPrompt | None = None) -> list[int]:
        """Input tokens of the student's requests about `samples`, with the fullest prompt unless given."""
        student = StudentPrompt(self._fullest if prompt is None else prompt)
        return _sizes(student.request(sample.id, sample.text) for sample in samples)

    def _student_stage(self, stage: str, requests: int, tokens: int, *, assumption: str) -> StageEstimate:
        output = StudentPrompt(self._fullest).request("", "").max_output_tokens
        usual = max(map(estimate_tokens, self._config.labels)) + 1  # the end of the answer is a token, too
        return self._stage(
            stage, "student", requests, tokens, output=output, usual=usual, assumption=assumption
        )

    def _stage(
        self,
        stage: str,
        role: Role,
        requests: int,
        tokens: int,
        *,
        assumption: str,
        output: int = 0,
        usual: int = 0,
        exact: bool = False,
    ) -> StageEstimate:
        """One stage; `tokens` are its whole input, `output` and `usual` are per request."""
        settings = self._config.embedder if role == "embedder" else self._config.role(role)
        return StageEstimate(
            stage=stage,
            role=role,
            model=settings.model,
            requests=requests,
            input_tokens=tokens,
            output_tokens=requests * output,
            usual_output_tokens=requests * usual,
            bound="exact" if exact else "at most",
            assumption=assumption,
        )


def _sizes(requests: Iterable[Request]) -> list[int]:
    """Input tokens of each request; equal ones are sent, and counted, once (C3)."""
    # all but the row is the same text in every request
    count = lru_cache(maxsize=64)(estimate_tokens)
    seen: set[bytes] = set()
    sizes = []
    for request in requests:
        digest = request.digest("")
        if digest not in seen:
            seen.add(digest)
            sizes.append(input_tokens(billed_texts(request), count))
    return sizes
