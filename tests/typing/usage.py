"""How the library is used, for the type checker: `mypy --strict` accepts this file, nothing here is run.

`assert_type` pins what the public names give back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import engine
from adapters import open_models, open_student
from engine import (
    ClassifyResult,
    CompiledPrompt,
    CompileResult,
    Config,
    Evaluation,
    PldError,
    StopSignal,
    SweepResult,
)
from engine.confidence import Calibration
from engine.config import ModelConfig
from engine.errors import BudgetError, ConfigError, DataError, ModelError, RunError
from engine.events import Event, Notice, StageProgress
from engine.ports import FREE, ChatModel, Embedder, Models, Price, Within
from engine.types import (
    Answer,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    Instruction,
    Prediction,
    Request,
    Scores,
    rate_limited,
)


class OwnModel:
    """A model of the user's own: no base class, the port is a protocol."""

    name = "own"
    max_batch = 1
    max_input_tokens = 8000
    price: Price | None = FREE

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        return [Answer(one.choices[0]) if one.choices else AttemptFailure("busy") for one in requests]

    async def aclose(self) -> None:
        pass


class OwnEmbedder:
    """An embedder of the user's own."""

    name = "own"
    max_batch = 100
    price: Price | None = None
    within: Within = "label"

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        return [AttemptFailure("busy", retry=rate_limited(2.0)) for _ in texts]

    async def aclose(self) -> None:
        pass


def show(event: Event) -> None:
    if isinstance(event, StageProgress):
        assert_type(event.cost_usd, float)
    elif isinstance(event, Notice):
        assert_type(event.text, str)


async def compile_evaluate_classify(folder: Path) -> None:
    config = engine.load_config(folder / "pld.toml")
    assert_type(config, Config)
    assert_type(config.role("teacher"), ModelConfig)
    stop = StopSignal()
    student: ChatModel = open_student("local:")
    try:
        compiled = await engine.compile_prompt(
            config, open_models, run=folder / "run", max_cost_usd=1.0, emit=show, stop=stop
        )
        assert_type(compiled, CompileResult)
        evaluation = await engine.evaluate(folder / "run", student, split="test", stop=stop)
        assert_type(evaluation, Evaluation)
        assert_type(evaluation.compiled, Scores)
        assert_type(evaluation.compiled.macro_f1, float)
        table = await engine.sweep(folder / "run", [0.2, 0.4], min_samples=[6], models=open_models, stop=stop)
        assert_type(table, SweepResult)
        assert_type(table.settings[0].clusters, int)
        prompt = engine.load_prompt(folder / "run")
        assert_type(prompt, CompiledPrompt)
        assert_type(prompt.text, str)
        assert_type(prompt.all_instructions(), tuple[Instruction, ...])
        calibration = engine.load_calibration(folder / "run")
        assert_type(calibration, Calibration | None)
        done = await engine.classify(
            prompt, student, [folder / "a.parquet"], folder / "out", id="id", calibration=calibration
        )
        assert_type(done, ClassifyResult)
        assert_type(done.rows, int)
    except (ConfigError, DataError, RunError, ModelError, BudgetError) as exc:
        assert_type(exc.exit_code, int)
    except PldError as exc:
        assert_type(str(exc), str)
    finally:
        await student.aclose()


async def with_own_models(folder: Path) -> None:
    writer: ChatModel = OwnModel()
    embedder: Embedder = OwnEmbedder()
    models = Models(teacher=writer, synthesizer=writer, resolver=writer, embedder=embedder, student=writer)
    await engine.compile_prompt(folder / "pld.toml", models)


def read_answers(outcomes: Sequence[ChatOutcome | EmbedOutcome]) -> list[str]:
    told = []
    for outcome in outcomes:
        if isinstance(outcome, Answer):
            told.append(outcome.text)
        elif isinstance(outcome, Embedding):
            told.append(str(outcome.vector.shape))
        else:
            assert_type(outcome, AttemptFailure)
            told.append(outcome.reason)
    return told


def keep(predictions: Sequence[Prediction]) -> dict[str, str]:
    return {one.id: one.label for one in predictions if one.label is not None}


def scripts() -> None:
    """The same without a word of asyncio."""
    result = engine.compile_prompt_sync("pld.toml", open_models, max_cost_usd=5.0)
    assert_type(result, CompileResult)
    found = engine.evaluate_sync(result.run, open_student("local:"), split="validation")
    assert_type(found, Evaluation)
    assert_type(engine.sweep_sync(result.run, [0.2, 0.4], within="label", centred=False), SweepResult)
    done = engine.classify_sync(result.prompt, open_student("local:"), "rows.parquet", "out", part_rows=1000)
    assert_type(done, ClassifyResult)
    student = open_student("local:")
    engine.classify_sync(result.prompt, student, "rows.parquet", "out", text=["premise", "hypothesis"])
    engine.classify_sync(
        result.prompt, student, "rows.parquet", "out", text={"premise": "p", "hypothesis": "h"}
    )
