"""The whole compilation: the only module that knows all stages.

Resuming is replaying: every stage asks for all it needs, in the same order as ever, and the response cache
answers what was answered before (C2, C3). Artifacts are written as stages end and depend on nothing else,
so a resumed run leaves the same bytes as an uninterrupted one (C12).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from engine.clustering import Clustering
from engine.config import PAPER_EPS, PAPER_MIN_SAMPLES, ChatRole, ClusterConfig, Config
from engine.config_file import load_config
from engine.distillation import embedding, evaluation, extraction, resolution, synthesis
from engine.distillation.cases import CaseSelector
from engine.distillation.checks import RuleChecks
from engine.distillation.drafting import draft_prompt
from engine.distillation.evaluation import ABLATIONS, Evaluation, evaluate_prompts
from engine.distillation.grouping import group_rules, most_clusters
from engine.distillation.long_tail import LongTailLibrary
from engine.distillation.manifest import Manifest, check_task
from engine.distillation.picturing import write_pictures
from engine.distillation.predicting import predict
from engine.distillation.rates import rate_warnings
from engine.distillation.result import CompileResult
from engine.distillation.session import Session, close_all, open_session
from engine.distillation.tables import clusters_table, failures_table, rules_table
from engine.distillation.templating import TaskContext
from engine.errors import ModelError
from engine.events import EventSink, Notice, StageFinished, StageStarted, ignore_events
from engine.ports import Models
from engine.prompt import CompiledPrompt
from engine.stopping import StopSignal
from engine.store import Dataset, RunDirectory, load_dataset
from engine.store.compiled import save_calibration, save_prompt
from engine.tokens import estimate_tokens
from engine.types import Failure, FloatVector, MicroRule, Sample

CHAT_ROLES: tuple[ChatRole, ...] = ("teacher", "synthesizer", "resolver", "student")
PAPER_CLUSTERS = ClusterConfig(method="dbscan", eps=PAPER_EPS, min_samples=PAPER_MIN_SAMPLES, within="all")


class ModelFactory(Protocol):
    """Makes the models of a run once its training rows are known; `run` is its locked directory."""

    def __call__(self, config: Config, train: Sequence[Sample], run: RunDirectory) -> Models: ...


async def compile_prompt(
    config: Config | str | Path,
    models: Models | ModelFactory,
    *,
    run: str | Path | None = None,
    max_cost_usd: float | None = None,
    faithful: bool = False,
    ablation: bool = False,
    retry_failed: bool = False,
    emit: EventSink = ignore_events,
    stop: StopSignal | None = None,
) -> CompileResult:
    """Compile a labelled set into a prompt; see `docs/architecture.md` for the way of a sample.

    `models` are ready models, or a factory that is given the training rows (local models are fitted on
    them); models that a factory made are closed at the end. `run` defaults to `runs/TASK` beside the
    configuration; calling again with the same one resumes. `max_cost_usd` overrides the configuration's
    cap. `faithful` follows the paper's recipe to the letter instead of this project's refinements.
    `ablation` also keeps the prompt before resolution, and the one that the resolver reaches from an empty
    prompt. `retry_failed` asks again what this run had given up.

    Raises `PldError`: a clear line each for configuration, data, models, budget, interruption.
    """
    config = config if isinstance(config, Config) else load_config(config)
    stop = stop or StopSignal()
    started = time.monotonic()
    folder = default_run_folder(config) if run is None else Path(run)
    # all that can be wrong with what the user gave is found before anything is written
    config.policy_text()
    if folder.exists():
        with RunDirectory.create(folder).lock():
            check_task(RunDirectory(folder), config)
    emit(StageStarted("data"))
    dataset = await asyncio.to_thread(load_dataset, config)
    for notice in dataset.notices:
        emit(notice)
    emit(StageFinished("data", _rows_line(dataset), time.monotonic() - started))
    directory = RunDirectory.create(folder)
    with directory.lock():
        previous = check_task(directory, config)
        if isinstance(models, Models):
            opened, ours = models, False
        else:
            opened, ours = await asyncio.to_thread(models, config, dataset.train, directory), True
        try:
            async with open_session(
                directory,
                config,
                emit=emit,
                stop=stop,
                max_cost_usd=config.run.max_cost_usd if max_cost_usd is None else max_cost_usd,
                retry_failed=retry_failed,
            ) as session:
                manifest = Manifest(config, dataset, opened, previous, faithful=faithful)
                for line in manifest.changes():
                    emit(Notice(line))
                work = _Compilation(session, dataset, opened, manifest, faithful=faithful, started=started)
                return await work.run(ablation=ablation)
        finally:
            if ours:
                await close_all(
                    [opened.teacher, opened.synthesizer, opened.resolver, opened.embedder, opened.student]
                )


def default_run_folder(config: Config) -> Path:
    """`runs/TASK` beside the configuration file."""
    return config.base / "runs" / config.task.name


class _Compilation:
    """One pass through all stages, in order. Each method is one stage: it asks, writes, and hands on."""

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        models: Models,
        manifest: Manifest,
        *,
        faithful: bool,
        started: float,
    ) -> None:
        self._session = session
        self._run = session.run
        self._config = session.config
        self._dataset = dataset
        self._models = models
        self._manifest = manifest
        self._faithful = faithful
        self._started = started
        self._context = TaskContext(self._config)
        self._failures: list[tuple[str, Failure]] = []
        self._teacher = session.chat(models.teacher, self._config.role("teacher"))
        self._synthesizer = session.chat(models.synthesizer, self._config.role("synthesizer"))
        self._resolver = session.chat(models.resolver, self._config.role("resolver"))
        self._student = session.chat(models.student, self._config.role("student"))

    async def run(self, *, ablation: bool) -> CompileResult:
        self._write_manifest(state="running")
        rules = await self._extract()
        rules, vectors = await self._embed(rules)
        clustering = await self._cluster(rules, vectors)
        clustered = await self._synthesize(rules, vectors, clustering)
        selector = CaseSelector(
            vectors,
            {rule.sample_id: row for row, rule in enumerate(rules)},
            max_tokens=self._models.resolver.max_input_tokens // 2,
            max_cases=self._config.resolve.cases_per_request,
        )
        # asked now, though it is for the verdict: a cap on cost that ends the loop must leave a verdict
        zero_shot = clustered.without_instructions()
        await predict(self._student, zero_shot, self._dataset.validation, stage=evaluation.STAGE)
        long_tail = LongTailLibrary(rules, vectors, clustering.long_tail.rows.tolist())
        resolved = await self._resolve(clustered, selector, long_tail, folder="rounds")
        for stale in ABLATIONS:
            self._run.remove(f"ablation/{stale}.json")
        if ablation:
            empty = await self._resolve(
                clustered.without_instructions(), selector, long_tail, folder="ablation/rounds"
            )
            self._run.write_json("ablation/clustered.json", clustered.to_json())
            self._run.write_json("ablation/resolver_only.json", empty.best.prompt.to_json())
        prompt = resolved.best.prompt
        judged = await self._provisional_verdict(prompt)
        self._write_failures()
        if judged.calibration is not None:
            save_calibration(self._run, judged.calibration)
        save_prompt(self._run, prompt)
        self._manifest.stages["resolution"] = {"rounds": resolved.rounds, "stop_reason": resolved.stop_reason}
        self._manifest.prompt = {
            "sha256": prompt.sha256,
            "tokens": estimate_tokens(prompt.text),
            "instructions": len(prompt.instructions),
        }
        self._manifest.validation = judged.to_json()
        self._write_manifest(state="done")
        totals = self._session.scheduler.totals
        return CompileResult(
            run=self._run.path,
            prompt=prompt,
            validation=judged,
            rounds=resolved.rounds,
            stop_reason=resolved.stop_reason,
            addresses=tuple(sorted({self._config.role(role).model for role in CHAT_ROLES})),
            extraction=self._manifest.stages["extraction"],
            requests={"sent": totals.sent, "cached": totals.cached, "failed": totals.failed},
            cost_usd=totals.cost_usd,
            seconds=time.monotonic() - self._started,
        )

    async def _extract(self) -> tuple[MicroRule, ...]:
        train = self._dataset.train
        checks = None
        if not self._faithful:
            # off the event loop: every training text is read
            texts, context = [sample.text for sample in train], self._context
            checks = await asyncio.to_thread(RuleChecks, texts, context.text, context.labels)
        found = await extraction.extract_rules(self._teacher, train, self._context, checks=checks)
        self._note_failures(extraction.STAGE, found.failures)
        self._manifest.stages["extraction"] = found.to_json()
        if not found.rules:
            raise ModelError(
                f"{self._models.teacher.name}: no training row brought a usable rule; the commonest reason: "
                f"{Counter(one.reason for one in found.failures).most_common(1)[0][0]}"
            )
        for line in rate_warnings(found.rates, found.by_label):
            self._session.emit(Notice(f"extraction: {line}", warning=True))
        self._run.write_parquet("rules.parquet", rules_table(found.rules))
        return found.rules

    async def _embed(self, rules: Sequence[MicroRule]) -> tuple[tuple[MicroRule, ...], FloatVector]:
        lane = self._session.embed(self._models.embedder, self._config.embedder)
        kept, vectors, failures = await embedding.embed_rules(lane, rules)
        self._note_failures(embedding.STAGE, failures)
        self._manifest.stages["embedding"] = {"vectors": len(kept), "failures": len(failures)}
        if not kept:
            raise ModelError(f"{self._models.embedder.name}: not one rule could be embedded")
        self._run.write_npy("vectors.npy", vectors)
        return kept, vectors

    async def _cluster(self, rules: Sequence[MicroRule], vectors: FloatVector) -> Clustering:
        began = self._begin("clustering")
        found = await asyncio.to_thread(
            group_rules,
            rules,
            vectors,
            PAPER_CLUSTERS if self._faithful else self._config.cluster,
            preferred=self._models.embedder.within,
            most=most_clusters(self._config),
            seed=self._config.run.seed,
        )
        self._run.write_parquet("clusters.parquet", clusters_table(rules, found.clustering))
        self._run.write_json("clustering.json", found.record)
        await write_pictures(
            self._run,
            vectors,
            [rule.label for rule in rules],
            found.clustering,
            found.record,
            seed=self._config.run.seed,
            emit=self._session.emit,
        )
        self._manifest.stages["clustering"] = found.figures
        for line in found.alarms:
            self._session.emit(Notice(f"clustering: {line}", warning=True))
        clusters, noise = found.figures["clusters"], found.figures["noise"]
        self._end("clustering", began, f"{clusters} clusters, {noise} rules outside them")
        return found.clustering

    async def _synthesize(
        self, rules: Sequence[MicroRule], vectors: FloatVector, clustering: Clustering
    ) -> CompiledPrompt:
        found = await draft_prompt(
            self._synthesizer,
            rules,
            vectors,
            clustering,
            config=self._config,
            train=self._dataset.train,
            max_input_tokens=self._models.synthesizer.max_input_tokens,
            faithful=self._faithful,
            emit=self._session.emit,
        )
        self._note_failures(synthesis.STAGE, found.failures)
        self._manifest.stages["synthesis"] = {
            "instructions": len(found.prompt.instructions),
            "failures": len(found.failures),
            "tokens": estimate_tokens(found.prompt.text),
        }
        return found.prompt

    async def _resolve(
        self, start: CompiledPrompt, selector: CaseSelector, long_tail: LongTailLibrary, *, folder: str
    ) -> resolution.Resolution:
        self._session.stop.check()
        # rounds of an earlier compilation in this directory must not mix with this one's
        for stale in sorted((self._run.path / folder).glob("*.json")):
            self._run.remove(f"{folder}/{stale.name}")

        def write_round(number: int, record: dict[str, Any]) -> None:
            self._run.write_json(f"{folder}/{number:02d}.json", record)

        loop = resolution.Resolver(
            resolver=self._resolver,
            student=self._student,
            train=self._dataset.train,
            validation=self._dataset.validation,
            selector=selector,
            long_tail=long_tail,
            context=self._context,
            config=self._config.resolve,
            seed=self._config.run.seed,
            write_round=write_round,
            tell=lambda line: self._session.emit(Notice(line)),
        )
        found = await (loop.run_faithfully(start) if self._faithful else loop.run(start))
        self._note_failures(resolution.STAGE, found.failures)
        return found

    async def _provisional_verdict(self, prompt: CompiledPrompt) -> Evaluation:
        return await evaluate_prompts(
            self._student,
            {"compiled": prompt, "zero_shot": prompt.without_instructions()},
            self._dataset.validation,
            split="validation",
            train=self._dataset.train,
            validation=None,
            seed=self._config.run.seed,
        )

    def _note_failures(self, stage: str, failures: Sequence[Failure]) -> None:
        self._failures += [(stage, failure) for failure in failures]

    def _write_failures(self) -> None:
        table = failures_table(self._dataset.rejected, self._failures)
        self._run.write_parquet("failures.parquet", table)

    def _write_manifest(self, state: str) -> None:
        document = self._manifest.to_json(
            state=state,
            stages={name: asdict(totals) for name, totals in self._session.scheduler.stage_totals.items()},
            seconds=time.monotonic() - self._started,
        )
        self._run.write_manifest(document)

    def _begin(self, stage: str) -> float:
        self._session.stop.check()
        self._session.emit(StageStarted(stage))
        return time.monotonic()

    def _end(self, stage: str, began: float, detail: str) -> None:
        self._session.emit(StageFinished(stage, detail, time.monotonic() - began))


def _rows_line(dataset: Dataset) -> str:
    line = f"{len(dataset.train)} train, {len(dataset.validation)} validation, {len(dataset.test)} test"
    return f"{line}, {len(dataset.rejected)} set aside" if dataset.rejected else line
