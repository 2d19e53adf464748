"""``seal try``: one task, everything shown."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from seal.config import RunConfig
from seal.loop.inner import InnerLoop, open_domain
from seal.loop.write import finished, from_policy
from seal.lora.load import load_model
from seal.records import Edit, SealError, seed_of
from seal.store import Stage


def show_task(config: RunConfig, number: int, policy_folder: str | None) -> None:
    """Write, try and print the edits of one held-out task: prompt, edits, training rows, answers, reward.

    Raises:
        SealError: there is no task of that number.
    """
    from seal.progress import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    domain = open_domain(config)
    tasks = domain.tasks("eval")
    if not 0 <= number < len(tasks):
        raise SealError(f"--task {number}: the held-out tasks are numbered 0 to {len(tasks) - 1}")
    task = tasks[number]
    spec = config.model.at(policy_folder) if policy_folder else config.model
    policy = load_model(spec, config.inner.recipe.rank)
    prompt = domain.prompt(task)
    console.rule(f"task {number}: {task.id}")
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
        console.print(
            f"\ntrained {attempt.steps} steps on {attempt.tokens} tokens in {attempt.seconds:.1f} s, "
            f"loss {attempt.loss[0]:.2f} → {attempt.loss[1]:.2f}"
        )
        for query, first, answer, score, kind in zip(
            queries, before, attempt.answers, attempt.scores, attempt.kinds, strict=True
        ):
            lines = [x for x in query.prompt.text.strip().splitlines() if x.strip() != "Answer:"] or [""]
            asked = lines[-1]
            mark = "✓" if score >= 1 else "✗"
            console.print(
                f"  {mark} [{kind}] {asked}  before: {first or '(silence)'}  after: {answer or '(silence)'}  "
                f"gold: {query.gold}",
                style="green" if score >= 1 else "red",
            )
        console.print(f"accuracy {attempt.before:.2f} → {attempt.after:.2f}")


def _rows(console: Any, parsed: object) -> None:
    if isinstance(parsed, Edit):
        console.print(f"\n{len(parsed.examples)} training rows:", style="dim")
        for example in parsed.examples:
            shown = (example.prompt + example.completion).replace("\n", " ⏎ ")
            console.print("  " + (shown if len(shown) < 160 else shown[:157] + "…"), style="dim")
