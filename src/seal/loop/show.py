"""``seal try``: one task, everything shown."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from seal.config import RunConfig
from seal.domains.base import Domain
from seal.loop.exam import answering, prompts_of
from seal.loop.inner import InnerLoop, open_domain
from seal.loop.write import finished, from_policy
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.sample import ask
from seal.records import Attempt, Edit, Query, SealError, Task, seed_of
from seal.store import Stage


def show_task(config: RunConfig, number: int, policy_folder: str | None) -> None:
    """Write, try and print the edits of one held-out task: prompt, edits, training rows, answers, reward.

    Raises:
        SealError: there is no task of that number.
    """
    domain = open_domain(config)
    tasks = domain.tasks("eval")
    if not 0 <= number < len(tasks):
        raise SealError(f"--task {number}: the held-out tasks are numbered 0 to {len(tasks) - 1}")
    spec = config.model.at(policy_folder) if policy_folder else config.model
    policy = load_model(spec, config.inner.recipe.rank)
    show(config, domain, tasks[number], policy)


def show(config: RunConfig, domain: Domain, task: Task, policy: Model) -> None:
    """Write, try and print the edits of one task."""
    from seal.progress import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    prompt = domain.prompt(task)
    console.rule(f"task: {task.id}")
    console.print(prompt.text)
    (texts,), (cut,) = finished(
        domain,
        from_policy(
            policy,
            [prompt],
            config.edits_per_task,
            config.write,
            seed_of("try", config.seed),
            domain.schema(),
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        attempts = InnerLoop(domain, config.inner).try_edits(
            policy, [task], [texts], Stage(Path(folder)), config.seed
        )
        before = Stage(Path(folder)).read("before")[0]
    queries = domain.queries(task)
    _before(console, config, domain, task, policy, before)
    for attempt in sorted(attempts, key=lambda a: -(a.reward or 0.0)):
        reward = "ungraded" if attempt.reward is None else f"{attempt.reward:.2f}"
        console.rule(f"edit {attempt.edit + 1} of {len(texts)}: reward {reward}", style="bold")
        console.print(attempt.text or "(empty)")
        if cut[attempt.edit] is not None:
            console.print(
                f"(cut off at write.max_tokens = {config.write.max_tokens}: what was not whole is left out)",
                style="dim",
            )
        if attempt.status != "ok":
            console.print(f"\n{attempt.status}: {attempt.reason}", style="red")
            continue
        _rows(console, domain.parse(task, attempt.text))
        _after(console, queries, before, attempt)


def _before(
    console: Any, config: RunConfig, domain: Domain, task: Task, policy: Model, before: list[str]
) -> None:
    """What the model answers before any edit: from memory, and with the text in view."""
    opened = domain.open_queries(task)
    if not opened:
        return
    (answers,) = ask(policy, [None], [prompts_of(opened)], answering(domain, config.inner))
    marks = domain.grade(task, answers).scores if domain.judge is None else (0.0,) * len(answers)
    console.rule("before any edit")
    for query, closed, answer, score in zip(domain.queries(task), before, answers, marks, strict=True):
        console.print(
            f"  {_asked(query)}  closed book: {closed or '(silence)'}  with the text in view: "
            f"{answer or '(silence)'}  gold: {query.gold}",
            style="green" if score >= 1 else None,
        )


def _after(console: Any, queries: Any, before: list[str], attempt: Attempt) -> None:
    console.print(
        f"\ntrained {attempt.steps} steps on {attempt.tokens} tokens in {attempt.seconds:.1f} s, "
        f"loss {attempt.loss[0]:.2f} → {attempt.loss[1]:.2f}"
    )
    for query, first, answer, score, kind in zip(
        queries, before, attempt.answers, attempt.scores, attempt.kinds, strict=True
    ):
        mark = "✓" if score >= 1 else "✗"
        console.print(
            f"  {mark} [{kind}] {_asked(query)}  before: {first or '(silence)'}  after: {answer or '(silence)'}  "
            f"gold: {query.gold}",
            style="green" if score >= 1 else "red",
        )
    console.print(f"accuracy {attempt.before:.2f} → {attempt.after:.2f}")


def _asked(query: Query) -> str:
    """The last line of a question."""
    lines = [x for x in query.prompt.text.strip().splitlines() if x.strip() != "Answer:"] or [""]
    return lines[-1]


def _rows(console: Any, parsed: object) -> None:
    if isinstance(parsed, Edit):
        console.print(f"\n{len(parsed.examples)} training rows:", style="dim")
        for example in parsed.examples:
            shown = (example.prompt + example.completion).replace("\n", " ⏎ ")
            console.print("  " + (shown if len(shown) < 160 else shown[:157] + "…"), style="dim")
