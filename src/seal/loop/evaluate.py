"""The table of writers: the same held-out tasks, the same inner loop and budget, one change at a time: who
writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from seal.config import InnerConfig, RunConfig, experiment
from seal.domains.base import Domain
from seal.loop.inner import (
    Crew,
    answering,
    fingerprints,
    graded,
    open_domain,
    prompts_of,
    try_edits,
    unadapted,
)
from seal.loop.outer import load_base, load_round
from seal.loop.pooled import try_pooled
from seal.loop.selection import CONTROLS
from seal.loop.write import finished, from_another, write_edits
from seal.lora.ask import ask
from seal.lora.decoder import fits
from seal.lora.model import Model
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
    Attempt,
    Grade,
    Query,
    Result,
    SealError,
    Task,
    seed_of,
)
from seal.store import Stage, Store, machine

RETRIEVED = 3
"""Passages that retrieval puts in view, where they fit."""


class Evaluation:
    """The held-out tasks, and what has been measured on them."""

    def __init__(self, config: RunConfig, store: Store, split: str, crew: Crew | None = None) -> None:
        self.config, self.store, self.split, self.crew = config, store, split, crew
        self.domain: Domain = open_domain(config)
        store.begun_with(fingerprints(self.domain))
        self.tasks = list(self.domain.tasks(split))
        if not self.tasks:
            raise SealError(
                f"there is no task in the split {split!r} to evaluate on: give sizes.{split} a number"
            )
        e = config.eval
        self.edits = self._external(e.external, e.edits_per_task) if e.external else None
        self.base = load_base(config)

    def _external(self, source: str, n: int) -> list[list[str]]:
        prompts = [self.domain.prompt(t) for t in self.tasks]
        stage = self.stage(EXTERNAL)

        def compute() -> list[list[str]]:
            texts, cut = finished(self.domain, from_another(source, self.tasks, prompts, n))
            stage.put("cut", cut)
            return texts

        texts: list[list[str]] = stage.once("texts", compute)
        return texts

    def table(self) -> list[Result]:
        """Every setting's results on the tasks; what the store holds is not repeated."""
        config = self.config
        results = [self.untouched()]
        written = self.policy_edits(NO_RL, self.base)
        plain = self.texts_of(self.domain.plain)
        if plain:
            matched = config.inner.recipe.tokens or max(1, round(written.tokens))
            epochs = self.saturation_epochs()
            results += [
                self.tried(PASSAGE_10, self.base, plain, self.inner(epochs=10, tokens=None, steps=None)),
                self.tried(PASSAGE_MATCHED, self.base, plain, self.inner(tokens=matched)),
                self.tried(
                    PASSAGE_SATURATED,
                    self.base,
                    plain,
                    self.inner(epochs=epochs, tokens=None, steps=None),
                    f"{epochs} epochs",
                ),
            ]
        results.append(written)
        for name, branch in trained_controls(self.store, config.rounds).items():
            policy = load_round(config, self.store.stage(f"{branch}/round-{config.rounds}"))
            adapt = policy if config.inner.start == "policy" else self.base
            results.append(self.policy_edits(f"{name} control", policy, adapt))
            policy.release()
        for r in range(1, config.rounds + 1):
            policy = load_round(config, self.store.stage(f"seal/round-{r}"))
            name = f"SEAL round {r}"
            results.append(
                self.policy_edits(name, policy, adapt=policy if config.inner.start == "policy" else self.base)
            )
            if r < config.rounds:
                policy.release()
        if config.rounds and config.inner.start == "policy":
            results.append(
                self.tried(ON_BASE, self.base, self.first(self.stage(name).read("texts")), config.inner)
            )
            results[-1] = replace(results[-1], cut=results[-2].cut)  # they are the same edits
        if config.rounds:
            results.append(self.unedited(policy))
        if self.edits:
            results.append(self.tried(EXTERNAL, self.base, self.edits, config.inner))
        if fixed := self.fixed():
            results.append(self.tried(FIXED, self.base, [[fixed]] * len(self.tasks), config.inner))
        if oracle := self.texts_of(self.domain.oracle):
            results.append(self.tried(ORACLE, self.base, oracle, config.inner))
        sampling = answering(self.domain, config.inner)
        for k in range(RETRIEVED, 0, -1):  # as many as the model's context holds
            retrieved = self.domain.retrieval_queries(self.tasks, k)
            if retrieved and fits(self.base, [q.prompt for row in retrieved for q in row], sampling):
                results.append(self.shown(RETRIEVAL, retrieved, f"top {k}"))
                break
        if any(opened := [self.domain.open_queries(t) for t in self.tasks]):
            results.append(self.shown(OPEN, opened))
        return results

    def stage(self, setting: str) -> Stage:
        return self.store.stage(f"{self.split}/{setting.replace(', ', '-').replace(' ', '-')}")

    def inner(self, **changes: Any) -> InnerConfig:
        inner = self.config.inner
        return inner.model_copy(update={"recipe": inner.recipe.model_copy(update=changes)})

    def texts_of(self, known: Any) -> list[list[str]]:
        """One text per task from the domain itself, or nothing where it has none."""
        texts = [known(t) for t in self.tasks]
        return [] if any(t is None for t in texts) else [[t] for t in texts]

    def fixed(self) -> str | None:
        """The one edit for all tasks that the first round's trials on the training tasks speak for, where
        edits are choices."""
        if not self.config.rounds:
            return None
        return self.domain.fixed(self.store.stage("seal/round-1").attempts())

    def unedited(self, policy: Model) -> Result:
        """What the trained policy answers by itself: what it learnt of the tasks by imitating edits, not from
        an edit."""
        start = time.monotonic()
        grades = unadapted(policy, self.domain, self.tasks, self.config.inner, self.stage(UNEDITED))
        answers = self.stage(UNEDITED).read("before")
        return _from_grades(UNEDITED, [grades[t.id] for t in self.tasks], answers, start)

    def untouched(self) -> Result:
        start = time.monotonic()
        grades = unadapted(self.base, self.domain, self.tasks, self.config.inner, self.stage(NO_RL))
        return _from_grades(BASE, [grades[t.id] for t in self.tasks], self.stage(NO_RL).read("before"), start)

    def shown(self, setting: str, queries: Sequence[Sequence[Query]], note: str = "") -> Result:
        """What the base model answers with something in view."""
        start = time.monotonic()
        answers = self.stage(setting).once(
            "answers",
            lambda: ask(
                self.base,
                [None] * len(queries),
                [prompts_of(q) for q in queries],
                answering(self.domain, self.config.inner),
            ),
        )
        return replace(
            _from_grades(setting, graded(self.domain, self.tasks, answers), answers, start), note=note
        )

    def policy_edits(self, setting: str, policy: Model, adapt: Model | None = None) -> Result:
        """The edits a policy writes, each tried on the model that ``adapt`` names (the policy itself, unless
        said)."""
        texts = self.stage(setting).once(
            "texts",
            lambda: write_edits(
                policy,
                self.domain,
                self.tasks,
                max(self.config.eval.edits_per_task, self.config.eval.siblings),
                self.config.write,
                seed_of("eval", self.config.seed),  # the same draws for every policy
                self.stage(setting),
            ),
        )
        return self.tried(setting, adapt or policy, self.first(texts), self.config.inner)

    def first(self, texts: list[list[str]]) -> list[list[str]]:
        """The edits that are tried; the others only serve to describe their writer."""
        return [t[: self.config.eval.edits_per_task] for t in texts]

    def tried(
        self, setting: str, policy: Model, texts: list[list[str]], inner: InnerConfig, note: str = ""
    ) -> Result:
        seed = seed_of("eval", self.config.seed)
        if pool := self.config.eval.pool:
            attempts = try_pooled(
                policy, self.domain, self.tasks, texts, inner, self.stage(setting), seed, pool == "full"
            )
        else:
            attempts = try_edits(
                policy, self.domain, self.tasks, texts, inner, self.stage(setting), seed, setting, self.crew
            )
        written = [
            x for row in self.stage(setting).read("cut") or () for x in row[: self.config.eval.edits_per_task]
        ]
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
                inner = self.inner(epochs=epochs, tokens=None, steps=None)
                seed = seed_of("select", self.config.seed)
                attempts = try_edits(
                    self.base,
                    self.domain,
                    tasks,
                    texts,
                    inner,
                    stage,
                    seed,
                    f"passage, {epochs} epochs",
                    self.crew,
                )
                graded_ = [a.after for a in attempts if a.reward is not None]
                best[epochs] = sum(graded_) / max(1, len(graded_))
            return max(best, key=lambda e: best[e])

        return int(self.store.stage(f"{self.split}/saturation").once("epochs", compute))


def trained_controls(store: Store, rounds: int) -> dict[str, str]:
    """Name → branch of the controls that a run has."""
    return {
        n: b
        for n, (b, _) in CONTROLS.items()
        if rounds and (store.folder / f"{b}/round-{rounds}/policy").exists()
    }


def _from_grades(
    setting: str, grades: Sequence[Grade], answers: Sequence[Sequence[str]], start: float
) -> Result:
    kinds = {k: [_mean_of_kind(g.scores, g.kinds, k) for g in grades] for k in _kinds(grades)}
    all_answers = [a for row in answers for a in row]
    silent = sum(not a.strip() for a in all_answers) / max(1, len(all_answers))
    seconds = (time.monotonic() - start) / max(1, len(grades))
    return Result(setting, [g.score for g in grades], kinds, len(all_answers), silent, 0.0, round(seconds, 4))


def from_attempts(setting: str, tasks: Sequence[Task], attempts: Sequence[Attempt], note: str = "") -> Result:
    """Attempts averaged within their task; ungraded ones are left out.

    Raises:
        SealError: a task has no graded attempt.
    """
    by_task: dict[str, list[Attempt]] = {t.id: [] for t in tasks}
    attempts = [a for a in attempts if a.reward is not None]
    for attempt in attempts:
        by_task[attempt.task].append(attempt)
    if empty := next((i for i, group in by_task.items() if not group), None):
        raise SealError(
            f"{setting}: every edit of the task {empty} is ungraded or failed, so it has no score"
        )
    groups = list(by_task.values())
    kinds = {
        k: [_mean([_mean_of_kind(a.scores, a.kinds, k) for a in g]) for g in groups] for k in _kinds(attempts)
    }
    trained = [a.after for a in attempts if a.status != "bad edit"]
    return Result(
        setting,
        [sum(a.after for a in g) / len(g) for g in groups],
        kinds,
        sum(len(a.scores) for a in attempts if a.edit == 0 and a.seed == by_task[a.task][0].seed),
        sum(a.silent for a in attempts) / len(attempts),
        sum(a.tokens for a in attempts) / len(attempts),
        round(sum(a.seconds for a in attempts) / len(attempts), 4),
        note,
        1 - len(trained) / len(attempts),
        sum(trained) / len(trained) if trained else None,
    )


def _kinds(graded: Sequence[Grade] | Sequence[Attempt]) -> list[str]:
    return sorted({k for g in graded for k in g.kinds})


def _mean_of_kind(scores: Sequence[float], kinds: Sequence[str], kind: str) -> float | None:
    return _mean([s for s, k in zip(scores, kinds, strict=True) if k == kind])


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; ``None`` where there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def run_record(
    config: RunConfig, results: Sequence[Result], tasks: Sequence[str], groups: Sequence[str], seconds: float
) -> dict[str, Any]:
    """What one run's ``results.json`` holds: every setting with its score per task; ``tasks`` are their
    names, ``groups`` what they belong to (:meth:`seal.Domain.group`)."""
    return {
        "command": " ".join(["seal", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": config.seed,
        "rounds": config.rounds,
        "wall_seconds": round(seconds),
        "of": experiment(config),
        "tasks": list(tasks),
        "groups": list(groups),
        "settings": [vars(r) for r in results],
    }
