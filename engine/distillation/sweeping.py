"""`sweep`: what other settings of DBSCAN would make of a compiled run's rules, and of its prompt."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from engine.clustering import Clustering
from engine.clustering.grid import cluster_grid
from engine.config import PAPER_MIN_SAMPLES, Config
from engine.distillation import evaluation
from engine.distillation.drafting import draft_prompt
from engine.distillation.manifest import load_run_config
from engine.distillation.predicting import predict
from engine.distillation.session import Session, close_all, open_session
from engine.distillation.swept import Drafted, SweepResult, SweptSetting
from engine.errors import AwaitingAnswers, ConfigError, CorruptStoreError, DataError, RunError
from engine.events import EventSink, Notice, StageFinished, StageStarted, ignore_events
from engine.metrics import score
from engine.ports import Models, Within
from engine.scheduler.totals import Totals
from engine.stopping import StopSignal
from engine.store import Dataset, RunDirectory, load_dataset
from engine.store.rundir import MANIFEST
from engine.types import FloatVector, MicroRule, Sample

OpenModels: TypeAlias = Callable[[Config, Sequence[Sample], RunDirectory], Models]
"""Makes the models of a run from its training rows; the run's directory is locked meanwhile."""


async def sweep(
    run: str | Path,
    eps: Sequence[float],
    *,
    min_samples: Sequence[int] = (),
    within: Within | None = None,
    centred: bool | None = None,
    models: Models | OpenModels | None = None,
    max_cost_usd: float | None = None,
    retry_failed: bool = False,
    emit: EventSink = ignore_events,
    stop: StopSignal | None = None,
) -> SweepResult:
    """Cluster a compiled run's rules anew with each `eps` and `min_samples`, in one pass over their vectors.

    Rules and vectors are the run's: nothing is extracted or embedded again. Not given, `min_samples` and
    `within` are the run's, and the rules are `centred` (the direction they all share is taken off, where they
    share one) unless the run's were clustered by plain DBSCAN.

    With `models`, or a factory of them, each setting also becomes a prompt, as a compilation's before
    conflict resolution, and the student is scored with it on the validation rows. Of the models only
    synthesizer and student are asked, and what they answered before, for this run or another, comes from the
    response cache. Without `models` nothing is asked or written.

    Raises `ConfigError` for a setting out of range, `RunError` where the run is not compiled to its end, and
    `DataError` where prompts are asked for and the data is not what the run was compiled from.
    """
    stop = stop or StopSignal()
    compiled = _Compiled.load(run)
    config, manifest = compiled.config, compiled.manifest
    settings = _settings(eps, min_samples or (compiled.min_samples,))
    used = manifest["stages"]["clustering"]
    scope: Within = within or used["within"]
    emit(StageStarted("clustering"))
    began = time.monotonic()
    grid = await asyncio.to_thread(
        cluster_grid,
        compiled.vectors,
        [rule.label for rule in compiled.rules] if scope == "label" else None,
        settings,
        centre=used["method"] != "dbscan" if centred is None else centred,
        seed=config.run.seed,
    )
    emit(StageFinished("clustering", f"{len(settings)} settings", time.monotonic() - began))
    found = tuple(
        _swept(setting, clustering, compiled.rules)
        for setting, clustering in zip(settings, grid.clusterings, strict=True)
    )
    totals = Totals()
    if models is not None:
        stop.check()
        with compiled.directory.lock():
            dataset = await _load_data(compiled, emit)
            if isinstance(models, Models):
                opened, ours = models, False
            else:
                opened, ours = (
                    await asyncio.to_thread(models, config, dataset.train, compiled.directory),
                    True,
                )
            try:
                async with open_session(
                    compiled.directory,
                    config,
                    emit=emit,
                    stop=stop,
                    max_cost_usd=config.run.max_cost_usd if max_cost_usd is None else max_cost_usd,
                    retry_failed=retry_failed,
                ) as session:
                    drafts = await _Drafting(session, opened, compiled, dataset).each(found, grid.clusterings)
                    totals = session.scheduler.totals
            finally:
                if ours:
                    await close_all(
                        [opened.teacher, opened.synthesizer, opened.resolver, opened.embedder, opened.student]
                    )
        found = tuple(replace(one, drafted=draft) for one, draft in zip(found, drafts, strict=True))
    return SweepResult(
        run=compiled.directory.path,
        rules=len(compiled.rules),
        within=scope,
        centred=grid.centred,
        settings=found,
        validation_rows=manifest["data"]["rows"]["validation"],
        compiled={
            "clustering": used,
            "prompt_tokens": manifest["prompt"]["tokens"],
            "macro_f1": manifest["validation"]["compiled"]["macro_f1"],
        },
        requests={"sent": totals.sent, "cached": totals.cached, "failed": totals.failed},
        cost_usd=totals.cost_usd,
    )


@dataclass(frozen=True)
class _Compiled:
    """What a finished run holds: `vectors` (n, d) are those of the `rules`, in their order."""

    directory: RunDirectory
    config: Config
    manifest: Mapping[str, Any]
    rules: tuple[MicroRule, ...]
    vectors: FloatVector

    @classmethod
    def load(cls, run: str | Path) -> _Compiled:
        directory = RunDirectory.open(run)
        if not directory.has(MANIFEST):
            raise RunError(f"{directory.path}: holds no rules yet; run `pld compile`")
        config = load_run_config(directory)
        manifest = directory.read_manifest()
        if manifest["state"] != "done":
            raise RunError(
                f"{directory.path}: is not compiled to its end; run `pld compile` again, it goes on"
            )
        embedded = directory.read_parquet("clusters.parquet")["sample_id"].to_list()
        by_id = {
            row["sample_id"]: row for row in directory.read_parquet("rules.parquet").iter_rows(named=True)
        }
        vectors = directory.read_npy("vectors.npy")
        if vectors.ndim != 2 or len(vectors) != len(embedded) or not by_id.keys() >= set(embedded):
            raise CorruptStoreError(
                f"{directory.path}: rules, vectors and clusters are not of one compilation; compile again"
            )
        rules = tuple(
            MicroRule(
                row["sample_id"],
                row["label"],
                row["instruction"],
                analysis=row["analysis"],
                request=row["request"],
            )
            for row in map(by_id.__getitem__, embedded)
        )
        return cls(directory, config, manifest, rules, vectors)

    @property
    def faithful(self) -> bool:
        return bool(self.manifest["recipe"] == "faithful")

    @property
    def min_samples(self) -> int:
        """As the run was configured; the paper's where it was not."""
        return PAPER_MIN_SAMPLES if self.faithful else self.config.cluster.settings[1]


class _Drafting:
    """Makes a prompt of each setting's clusters, and tries it."""

    def __init__(self, session: Session, models: Models, compiled: _Compiled, dataset: Dataset) -> None:
        self._session = session
        self._compiled = compiled
        self._dataset = dataset
        self._most_tokens = models.synthesizer.max_input_tokens
        self._synthesizer = session.chat(models.synthesizer, session.config.role("synthesizer"))
        self._student = session.chat(models.student, session.config.role("student"))

    async def each(
        self, settings: Sequence[SweptSetting], clusterings: Sequence[Clustering]
    ) -> list[Drafted]:
        """One after the other. All of them hand their requests over before one waits for hours."""
        drafts, waiting = [], []
        for setting, clustering in zip(settings, clusterings, strict=True):
            self._session.stop.check()
            named = f"eps {setting.eps:g}, min_samples {setting.min_samples}"
            self._session.emit(Notice(f"{named}: {setting.clusters} clusters, {setting.noise} rules outside"))
            try:
                drafts.append(await self._one(clustering))
            except AwaitingAnswers as exc:
                waiting.append(f"{named}: {exc}")
        if waiting:
            raise AwaitingAnswers("; ".join(waiting))
        return drafts

    async def _one(self, clustering: Clustering) -> Drafted:
        config, validation = self._session.config, self._dataset.validation
        draft = await draft_prompt(
            self._synthesizer,
            self._compiled.rules,
            self._compiled.vectors,
            clustering,
            config=config,
            train=self._dataset.train,
            max_input_tokens=self._most_tokens,
            faithful=self._compiled.faithful,
            emit=self._session.emit,
        )
        answers = await predict(self._student, draft.prompt, validation, stage=evaluation.STAGE)
        scores = score(
            [sample.label for sample in validation],
            answers.of(validation),
            tuple(draft.prompt.labels),
            seed=config.run.seed,
        )
        return Drafted(draft.prompt, scores, (*draft.failures, *answers.failures))


async def _load_data(compiled: _Compiled, emit: EventSink) -> Dataset:
    began = time.monotonic()
    emit(StageStarted("data"))
    dataset = await asyncio.to_thread(load_dataset, compiled.config)
    if dataset.sha256 != compiled.manifest["data"]["sha256"]:
        # rows behind the rules may have become validation rows (C7), and figures would not compare
        raise DataError(
            f"{compiled.directory.path}: its data changed since it was compiled; compile again (what did not "
            "change comes from the cache), or sweep without prompts"
        )
    emit(StageFinished("data", f"{len(dataset.validation)} validation rows", time.monotonic() - began))
    return dataset


def _settings(eps: Sequence[float], min_samples: Sequence[int]) -> list[tuple[float, int]]:
    for one in eps:
        if not 0.0 < one < 2.0:
            raise ConfigError(f"eps is a cosine distance between 0 and 2, both excluded, not {one:g}")
    for least in min_samples:
        if least < 1:
            raise ConfigError(f"min_samples must be at least 1, not {least}")
    if not eps:
        raise ConfigError("a sweep needs at least one eps, such as 0.2,0.3,0.4,0.5")
    return list(dict.fromkeys((float(one), int(least)) for least in min_samples for one in eps))


def _swept(setting: tuple[float, int], clustering: Clustering, rules: Sequence[MicroRule]) -> SweptSetting:
    shares: list[float] = []
    inside: set[str] = set()
    for cluster in clustering.clusters:
        labels = Counter(rules[row].label for row in cluster.members.tolist())
        shares.append(max(labels.values()) / cluster.size)
        inside |= labels.keys()
    return SweptSetting(
        eps=setting[0],
        min_samples=setting[1],
        clusters=len(clustering.clusters),
        noise=len(clustering.long_tail.rows),
        largest=max((cluster.size for cluster in clustering.clusters), default=0),
        majority_share=statistics.fmean(shares) if shares else None,
        missing_labels=tuple(sorted({rule.label for rule in rules} - inside)),
    )
