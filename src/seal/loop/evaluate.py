"""The table of writers: the same held-out tasks, the same inner loop and budget, one change at a time: who
writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal.config import InnerConfig, RunConfig
from seal.domains.base import Domain
from seal.loop.exam import answering, must_be_graded, prompts_of
from seal.loop.inner import HERE, InnerLoop, Workers, open_domain
from seal.loop.pooled import try_pooled
from seal.loop.results import fingerprints, from_attempts, from_grades
from seal.loop.selection import CONTROLS, SEAL, Branch
from seal.loop.write import WRITTEN, finished, from_another, write_edits
from seal.lora.decoder import fits
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.lora.sample import ask
from seal.records import (
    BASE,
    EXTERNAL,
    FIXED,
    NO_RL,
    ON_BASE,
    OPEN,
    ORACLE,
    PASSAGE_10,
    PASSAGE_MATCHED,
    PASSAGE_SATURATED,
    RETRIEVAL,
    UNEDITED,
    Query,
    Result,
    SealError,
    Setting,
    Task,
    control,
    seal_round,
    seed_of,
)
from seal.store import Stage, Store

RETRIEVED = 3
"""Passages that retrieval puts in view, where they fit."""


class Evaluation:
    """The held-out tasks, and what has been measured on them. A context: the base model is loaded within."""

    def __init__(self, config: RunConfig, store: Store, split: str, workers: Workers = HERE) -> None:
        self.config, self.store, self.split, self.workers = config, store, split, workers
        self.domain: Domain = open_domain(config)
        store.begun_with(fingerprints(self.domain))
        self.tasks = list(self.domain.tasks(split))
        if not self.tasks:
            raise SealError(
                f"there is no task in the split {split!r} to evaluate on: give sizes.{split} a number"
            )
        e = config.eval
        self.edits = self._external(e.external, e.edits_per_task) if e.external else None
        self.base = load_model(config.model, config.inner.recipe.rank)

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self.base.release()

    def _load(self, spec: ModelSpec) -> Model:
        return load_model(spec, self.config.inner.recipe.rank, self.base)

    def _external(self, source: str, n: int) -> list[list[str]]:
        prompts = [self.domain.prompt(t) for t in self.tasks]
        stage = self.stage(EXTERNAL)

        def compute() -> list[list[str]]:
            texts, cut = finished(self.domain, from_another(source, self.tasks, prompts, n, self.config.seed))
            stage.put("cut", cut)
            return texts

        texts: list[list[str]] = stage.once("texts", compute)
        return texts

    def table(self) -> list[Result]:
        """Every setting's results on the tasks; what the store holds is not repeated."""
        inner = self.config.inner
        results = [self.untouched()]
        written = self.policy_edits(NO_RL, self.base)
        results += self._passage_alone(written.tokens)
        results.append(written)
        results += self._policies()
        if self.edits:
            results.append(self.tried(EXTERNAL, self.base, self.edits, inner))
        if fixed := self.fixed():
            results.append(self.tried(FIXED, self.base, [[fixed]] * len(self.tasks), inner))
        if oracle := self.texts_of(self.domain.oracle):
            results.append(self.tried(ORACLE, self.base, oracle, inner))
        sampling = answering(self.domain, inner)
        for k in range(RETRIEVED, 0, -1):  # as many as the model's context holds
            retrieved = self.domain.retrieval_queries(self.tasks, k)
            if retrieved and fits(self.base, [q.prompt for row in retrieved for q in row], sampling):
                results.append(self.shown(RETRIEVAL, retrieved, f"top {k}"))
                break
        if any(opened := [self.domain.open_queries(t) for t in self.tasks]):
            results.append(self.shown(OPEN, opened))
        return results

    def _passage_alone(self, tokens: float) -> list[Result]:
        """Training on the passage as it stands: as long as the paper does, as long as edits take, and as long
        as it helps."""
        plain = self.texts_of(self.domain.plain)
        if not plain:
            return []
        matched = self.config.inner.recipe.tokens or max(1, round(tokens))
        epochs = self.saturation_epochs()
        longest, note = self.recipe(epochs=epochs, tokens=None, steps=None), f"{epochs} epochs"
        return [
            self.tried(PASSAGE_10, self.base, plain, self.recipe(epochs=10, tokens=None, steps=None)),
            self.tried(PASSAGE_MATCHED, self.base, plain, self.recipe(tokens=matched)),
            self.tried(PASSAGE_SATURATED, self.base, plain, longest, note),
        ]

    def _policies(self) -> list[Result]:
        """The trained policies as writers: the controls, then SEAL's after every round."""
        rounds, results = self.config.rounds, []
        on_policy = self.config.inner.start == "policy"
        for branch in trained_controls(self.store.folder, rounds):
            with self._load(self.store.policy(branch.folder, rounds)) as policy:
                results.append(
                    self.policy_edits(control(branch.name), policy, policy if on_policy else self.base)
                )
        for r in range(1, rounds + 1):
            with self._load(self.store.policy(SEAL.folder, r)) as policy:
                results.append(self.policy_edits(seal_round(r), policy, policy if on_policy else self.base))
                if r < rounds:
                    continue
                if on_policy:
                    texts = self.first(self.stage(seal_round(r)).read("texts"))
                    same = results[-1].cut  # they are the same edits
                    results.append(
                        replace(self.tried(ON_BASE, self.base, texts, self.config.inner), cut=same)
                    )
                results.append(self.answered(UNEDITED, policy, self.stage(UNEDITED)))
        return results

    def stage(self, setting: Setting) -> Stage:
        return self.store.stage(f"{self.split}/{setting.key}")

    def recipe(self, **changes: Any) -> InnerConfig:
        """The inner loop's settings with another recipe."""
        inner = self.config.inner
        return inner.model_copy(update={"recipe": inner.recipe.model_copy(update=changes)})

    def texts_of(self, known: Callable[[Task], str | None]) -> list[list[str]]:
        """One text per task from the domain itself, or nothing where it has none."""
        texts = [known(t) for t in self.tasks]
        return [] if any(t is None for t in texts) else [[t] for t in texts if t is not None]

    def fixed(self) -> str | None:
        """The one edit for all tasks that the first round's trials on the training tasks speak for, where
        edits are choices."""
        if not self.config.rounds:
            return None
        return self.domain.fixed(self.store.stage("seal/round-1").attempts())

    def untouched(self) -> Result:
        return self.answered(BASE, self.base, self.stage(NO_RL))

    def answered(self, setting: Setting, model: Model, stage: Stage) -> Result:
        """What a model answers by itself. Of a trained policy that is what it learnt of the tasks by
        imitating edits, not from an edit."""
        start = time.monotonic()
        grades = InnerLoop(self.domain, self.config.inner).before(model, self.tasks, stage)
        return from_grades(setting, [grades[t.id] for t in self.tasks], stage.read("before"), start)

    def shown(self, setting: Setting, queries: Sequence[Sequence[Query]], note: str = "") -> Result:
        """What the base model answers with something in view."""
        start = time.monotonic()
        sampling = answering(self.domain, self.config.inner)

        def compute() -> list[list[str]]:
            return ask(self.base, [None] * len(queries), [prompts_of(q) for q in queries], sampling)

        answers = self.stage(setting).once("answers", compute)
        grades = must_be_graded(self.domain.grade_all(self.tasks, answers))
        return replace(from_grades(setting, grades, answers, start), note=note)

    def policy_edits(self, setting: Setting, policy: Model, adapt: Model | None = None) -> Result:
        """The edits a policy writes, each tried on the model that ``adapt`` names (the policy itself, unless
        said)."""
        e, stage = self.config.eval, self.stage(setting)
        n = max(e.edits_per_task, e.siblings)
        seed = seed_of("eval", self.config.seed)  # for every policy the same draws
        texts = stage.once(
            "texts", lambda: write_edits(policy, self.domain, self.tasks, n, self.config.write, seed, stage)
        )
        stage.drop(WRITTEN)
        return self.tried(setting, adapt or policy, self.first(texts), self.config.inner)

    def first(self, texts: list[list[str]]) -> list[list[str]]:
        """The edits that are tried; the others only serve to describe their writer."""
        return [t[: self.config.eval.edits_per_task] for t in texts]

    def tried(
        self, setting: Setting, model: Model, texts: list[list[str]], config: InnerConfig, note: str = ""
    ) -> Result:
        """Edits of all tasks, each in an inner loop of its own; or pooled, where the settings say so."""
        seed, stage = seed_of("eval", self.config.seed), self.stage(setting)
        inner = InnerLoop(self.domain, config, self.workers)
        if pool := self.config.eval.pool:
            attempts = try_pooled(inner, model, self.tasks, texts, stage, seed, pool == "full")
        else:
            attempts = inner.try_edits(model, self.tasks, texts, stage, seed)
        written = [x for row in stage.read("cut") or () for x in row[: self.config.eval.edits_per_task]]
        share = sum(x is not None for x in written) / max(1, len(written))
        return replace(from_attempts(setting, self.tasks, attempts, note), cut=share)

    def saturation_epochs(self) -> int:
        """How long to train on the passage alone: the length that does best on the selection tasks."""

        def compute() -> int:
            tasks = list(self.domain.tasks("select"))[: self.config.eval.saturation_tasks]
            if not tasks:  # nothing to choose on
                return self.config.eval.saturation_epochs[0]
            texts = [[str(self.domain.plain(t))] for t in tasks]
            best: dict[int, float] = {}
            for epochs in self.config.eval.saturation_epochs:
                stage = self.store.stage(f"{self.split}/saturation/{epochs}-epochs")
                inner = InnerLoop(
                    self.domain, self.recipe(epochs=epochs, tokens=None, steps=None), self.workers
                )
                attempts = inner.try_edits(
                    self.base, tasks, texts, stage, seed_of("select", self.config.seed)
                )
                graded_ = [a.after for a in attempts if a.reward is not None]
                best[epochs] = sum(graded_) / max(1, len(graded_))
            return max(best, key=lambda e: best[e])

        return int(self.store.stage(f"{self.split}/saturation").once("epochs", compute))


def trained_controls(run: Path, rounds: int) -> list[Branch]:
    """The controls that a run has."""
    last = f"round-{rounds}/policy"
    return [b for b in CONTROLS.values() if rounds and (run / b.folder / last).exists()]
