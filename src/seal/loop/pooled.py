"""Continued pretraining: the self-edits of all tasks go into one adapter (or all the weights), which is asked
every question."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from seal.loop.exam import Test, answering, marked, must_be_graded, prompts_of
from seal.loop.inner import InnerLoop, understand
from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.sample import ask
from seal.lora.train import Job, Trained, train_adapters
from seal.records import Attempt, BadEdit, Edit, Example, SealError, Task, Wanted, seed_of
from seal.store import Stage

AT_ONCE = 128
"""Questions asked together."""


def try_pooled(
    inner: InnerLoop,
    model: Model,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    stage: Stage,
    seed: object,
    full: bool = False,
) -> list[Attempt]:
    """One attempt per task, all of the same finetune; ``full``: of every weight, not an adapter.

    Edits that cannot be used are left out, and settings that an edit asks for are not heard: there is one
    recipe. A task whose edits are all bad is asked all the same: what others taught may help it.

    Raises:
        SealError: training diverged, the judge left a task ungraded, or an edit wants rows that the model
            writes.
    """
    if done := stage.resumed(len(tasks), len(tasks)):
        return done
    domain, recipe = inner.domain, inner.config.recipe
    before = inner.before(model, tasks, stage)
    start = time.monotonic()
    rows: dict[Example, None] = {}
    bad: Counter[str] = Counter()
    for task, texts in zip(tasks, texts_P_E, strict=True):
        for text in texts:
            edit, _ = understand(domain, task, text, recipe)
            if isinstance(edit, Wanted):
                raise SealError(
                    "eval.pool: edits whose rows the model writes itself are tried one by one, not pooled"
                )
            bad[task.id] += isinstance(edit, BadEdit)
            rows |= dict.fromkeys(edit.examples if isinstance(edit, Edit) else ())
    tuned, adapter, trained = _train(model, Job(tuple(rows), recipe, seed_of("pooled", seed)), full)
    tests = _tested(inner, tuned, adapter, tasks)
    seconds = (time.monotonic() - start) / len(tasks)
    attempts = []
    for test, texts, grade in zip(tests, texts_P_E, must_be_graded(marked(domain, tests)), strict=True):
        name, left_out = test.task.id, bad[test.task.id]
        attempt = Attempt.begun(name, 0, 0, "\n\n".join(texts), before[name])
        attempt = attempt.trained(len(rows), trained.steps, trained.tokens, trained.loss)
        reason = f"{left_out} of {len(texts)} edits left out" if left_out else ""
        attempts.append(
            replace(attempt.graded(test.answers, grade, grade.score), reason=reason, seconds=seconds)
        )
    stage.append(attempts)
    return attempts


def _train(model: Model, job: Job, full: bool) -> tuple[Model, Adapter | None, Trained]:
    """What is to be asked afterwards (a model, an adapter on it), and what the training was."""
    if full:
        from seal.loop.full import finetune

        tuned, trained = finetune(model, job)
        return tuned, None, trained
    (trained,) = train_adapters(model, [job])
    if trained.adapter is None:
        raise SealError(
            f"continued pretraining diverged at step {trained.steps}: take a lower inner.recipe.learning_rate"
        )
    return model, trained.adapter, trained


def _tested(inner: InnerLoop, model: Model, adapter: Adapter | None, tasks: Sequence[Task]) -> list[Test]:
    """The tests of all tasks, turn by turn, through the one adapter, so many questions at a time."""
    tests, sampling = [Test(inner.domain, t) for t in tasks], answering(inner.domain, inner.config)
    while going := [t for t in tests if t.asked]:
        prompts = [p for t in going for p in prompts_of(t.asked)]
        parts = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
        answers = iter([a for part in parts for a in ask(model, [adapter], [part], sampling)[0]])
        for test in going:
            test.hear([next(answers) for _ in test.asked])
    return tests
