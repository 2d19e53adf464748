"""Attempts and answers as rows of the table of writers, and what a run's ``results.json`` holds. No model is needed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

from seal.config import RunConfig, experiment
from seal.domains.base import SPLITS, Domain
from seal.machine import machine
from seal.records import Attempt, Grade, Result, SealError, Setting, Task


def from_grades(
    setting: Setting, grades: Sequence[Grade], answers: Sequence[Sequence[str]], start: float
) -> Result:
    kinds = {k: [_mean_of_kind(g.scores, g.kinds, k) for g in grades] for k in _kinds(grades)}
    all_answers = [a for row in answers for a in row]
    silent = sum(not a.strip() for a in all_answers) / max(1, len(all_answers))
    seconds = (time.monotonic() - start) / max(1, len(grades))
    return Result(
        setting.label,
        [g.score for g in grades],
        kinds,
        len(all_answers),
        silent,
        0.0,
        round(seconds, 4),
        f1=_mean([g.f1 for g in grades]),
    )


def from_attempts(
    setting: Setting, tasks: Sequence[Task], attempts: Sequence[Attempt], note: str = ""
) -> Result:
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
            f"{setting.label}: every edit of the task {empty} is ungraded or failed, so it has no score"
        )
    groups = list(by_task.values())
    kinds = {
        k: [_mean([_mean_of_kind(a.scores, a.kinds, k) for a in g]) for g in groups] for k in _kinds(attempts)
    }
    trained = [a.after for a in attempts if a.status != "bad edit"]
    return Result(
        setting.label,
        [sum(a.after for a in g) / len(g) for g in groups],
        kinds,
        sum(len(a.scores) for a in attempts if a.edit == 0 and a.seed == by_task[a.task][0].seed),
        sum(a.silent for a in attempts) / len(attempts),
        sum(a.tokens for a in attempts) / len(attempts),
        round(sum(a.seconds for a in attempts) / len(attempts), 4),
        note,
        1 - len(trained) / len(attempts),
        sum(trained) / len(trained) if trained else None,
        f1=_mean([_mean([a.f1 for a in g]) for g in groups]),
    )


def _kinds(graded: Sequence[Grade] | Sequence[Attempt]) -> list[str]:
    return sorted({k for g in graded for k in g.kinds})


def _mean_of_kind(scores: Sequence[float], kinds: Sequence[str], kind: str) -> float | None:
    return _mean([s for s, k in zip(scores, kinds, strict=True) if k == kind])


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; ``None`` where there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def fingerprints(domain: Domain) -> dict[str, str]:
    """A hash of each split's tasks: their names, what a model is shown, and the gold answers."""
    found = {}
    for split in SPLITS:
        digest = hashlib.sha256()
        for task in domain.tasks(split):
            shown = [
                task.id,
                domain.prompt(task).text,
                *(x for q in domain.queries(task) for x in (q.prompt.text, q.gold)),
            ]
            digest.update(json.dumps(shown).encode())
        found[split] = digest.hexdigest()[:16]
    return found


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
