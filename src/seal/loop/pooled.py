"""Continued pretraining: the self-edits of all tasks go into one adapter (or all the weights), which is asked
every question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from seal.config import InnerConfig
from seal.domains.base import Domain
from seal.loop.inner import answering, prompts_of, unadapted, understand
from seal.lora.ask import ask
from seal.lora.model import Model
from seal.lora.train import Job, Trained, train_adapters
from seal.records import Attempt, BadEdit, Edit, Example, SealError, Task, seed_of
from seal.store import Stage

AT_ONCE = 128
"""Questions asked together."""


def try_pooled(
    policy: Model,
    domain: Domain,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    config: InnerConfig,
    stage: Stage,
    seed: object,
    full: bool = False,
) -> list[Attempt]:
    """One attempt per task, all of the same finetune; ``full``: of every weight, not an adapter.

    Edits that cannot be used are left out, and settings that an edit asks for are not heard: there is one
    recipe. A task whose edits are all bad is asked all the same: what others taught may help it.

    Raises:
        SealError: training diverged, or the judge left a task ungraded.
    """
    if done := stage.resumed(len(tasks), len(tasks)):
        return done
    before = unadapted(policy, domain, tasks, config, stage)
    start = time.monotonic()
    rows: dict[Example, None] = {}
    bad: dict[str, int] = {}
    for task, texts in zip(tasks, texts_P_E, strict=True):
        for text in texts:
            edit, _ = understand(domain, task, text, config.recipe)
            bad[task.id] = bad.get(task.id, 0) + isinstance(edit, BadEdit)
            rows |= dict.fromkeys(edit.examples if isinstance(edit, Edit) else ())
    job = Job(tuple(rows), config.recipe, seed_of("pooled", seed))
    queries = [domain.queries(t) for t in tasks]
    prompts = [p for q in queries for p in prompts_of(q)]
    parts = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
    if full:
        from seal.loop.full import finetune

        tuned, outcome = finetune(policy, job)
        answers = [a for part in parts for a in ask(tuned, [None], [part], answering(domain, config))[0]]
    else:
        outcome = train_adapters(policy, [job])[0]
        if outcome.adapter is None:
            raise SealError(
                f"continued pretraining diverged at step {outcome.steps}: take a lower "
                "inner.recipe.learning_rate"
            )
        answers = [
            a for part in parts for a in ask(policy, [outcome.adapter], [part], answering(domain, config))[0]
        ]
    flat = iter(answers)
    answers_P_Q = [[next(flat) for _ in q] for q in queries]
    seconds = (time.monotonic() - start) / len(tasks)
    attempts = []
    for task, texts, mine, grade in zip(
        tasks, texts_P_E, answers_P_Q, domain.grade_all(tasks, answers_P_Q), strict=True
    ):
        if grade is None:
            raise SealError(
                f"the judge left the task {task.id} ungraded; run the same command again to go on"
            )
        told: dict[str, Any] = {
            "text": "\n\n".join(texts),
            "rows": len(rows),
            "seconds": seconds,
            **_of(outcome),
        }
        reason = f"{bad[task.id]} of {len(texts)} edits left out" if bad[task.id] else ""
        silent = sum(not a.strip() for a in mine) / max(1, len(mine))
        attempts.append(
            Attempt(
                task.id,
                0,
                0,
                status="ok",
                reason=reason,
                reward=grade.score,
                before=before[task.id].score,
                after=grade.score,
                answers=tuple(mine),
                scores=grade.scores,
                kinds=grade.kinds,
                silent=silent,
                **told,
            )
        )
    stage.append(attempts)
    return attempts


def _of(outcome: Trained) -> dict[str, Any]:
    return {"steps": outcome.steps, "tokens": outcome.tokens, "loss": outcome.loss}
