"""`evaluate`: the final verdict on a compiled run, beside its baselines."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from engine.distillation.evaluation import ABLATIONS, Evaluation, evaluate_prompts
from engine.distillation.manifest import load_run_config
from engine.distillation.session import open_session
from engine.errors import DataError
from engine.events import EventSink, Notice, StageFinished, StageStarted, ignore_events
from engine.ports import AnyChatModel
from engine.prompt import CompiledPrompt
from engine.receipts import ReceiptBook
from engine.stopping import StopSignal
from engine.store import RunDirectory, load_dataset
from engine.store.compiled import load_calibration, load_optional_prompt, load_prompt
from engine.types import SplitName

RESULT = "evaluation.json"


async def evaluate(
    run: str | Path,
    student: AnyChatModel,
    *,
    split: SplitName = "test",
    zero_shot: bool = True,
    max_cost_usd: float | None = None,
    retry_failed: bool = False,
    emit: EventSink = ignore_events,
    stop: StopSignal | None = None,
) -> Evaluation:
    """Score a compiled prompt on a split that its compilation did not read, and give the verdict (C8).

    Beside it stand the zero-shot prompt with the same student (unless `zero_shot` is False: then there is no
    verdict), the majority class, TF-IDF with logistic regression, and the prompts that `--ablation` kept.
    The data is found where the run's configuration says. The result is also written to `evaluation.json`,
    one entry per split; what the student's prefix cache was worth is not, as no two runs have the same.

    Raises `RunError` where the run is not compiled, `DataError` where the split is empty.
    """
    stop = stop or StopSignal()
    directory = RunDirectory.open(run)
    prompt = load_prompt(run)
    config = load_run_config(directory)
    with directory.lock():
        began = time.monotonic()
        emit(StageStarted("data"))
        dataset = await asyncio.to_thread(load_dataset, config)
        compiled_from = directory.read_manifest()["data"]["sha256"]
        if dataset.sha256 != compiled_from:
            emit(Notice("the data is not what this prompt was compiled from: it changed since", warning=True))
        samples = dataset.split(split)
        if not samples:
            raise DataError(f"the {split} split has no rows; name rows or files for it under [data]")
        emit(StageFinished("data", f"{len(samples)} {split} rows", time.monotonic() - began))
        async with open_session(
            directory,
            config,
            emit=emit,
            stop=stop,
            max_cost_usd=config.run.max_cost_usd if max_cost_usd is None else max_cost_usd,
            retry_failed=retry_failed,
        ) as session:
            prompts = _prompts(directory, prompt, zero_shot=zero_shot)
            book = await ReceiptBook.open(student, prompts=len(prompts))
            found = await evaluate_prompts(
                session.chat(student, config.role("student")),
                prompts,
                samples,
                split=split,
                train=dataset.train,
                validation=dataset.validation,
                seed=config.run.seed,
                calibration=load_calibration(run),
            )
        known = directory.read_json(RESULT) if directory.has(RESULT) else {}
        directory.write_json(RESULT, {**known, split: found.to_json()})
        receipt = await book.receipt(emit)
    return replace(found, receipt=receipt)


def _prompts(
    directory: RunDirectory, prompt: CompiledPrompt, *, zero_shot: bool
) -> dict[str, CompiledPrompt]:
    prompts = {"compiled": prompt}
    if zero_shot:
        prompts["zero_shot"] = prompt.without_instructions()
    for name in ABLATIONS:
        kept = load_optional_prompt(directory, name)
        if kept is not None:
            prompts[name] = kept
    return prompts
