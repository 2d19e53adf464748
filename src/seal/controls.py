"""Controls of the outer loop: the same budget and the same imitation of other edits than those that helped.

*random*: as many edits, drawn without looking at the reward. *worst*: of each task the edit that did worst. *others*: SEAL's own kept edits, each after the
prompt of another task: does it matter that an edit belongs to its passage?
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from seal.attempts import understand
from seal.config import InnerConfig
from seal.domains.base import Domain
from seal.store import Store, read_json
from seal.types import Attempt, BadEdit, Selected, Task

CONTROLS = {
    "random": ("control", "random_of"),
    "worst": ("control-worst", "worst_of"),
    "others": ("control-others", "others_of"),
}
"""Name → branch of the run, selection."""


def kept_by_seal(store: Store, r: int) -> list[Selected]:
    """What SEAL kept in a round; empty before it has run."""
    path = store.folder / f"seal/round-{r}/kept.json"
    return [Selected(**k) for k in read_json(path)] if path.exists() else []


def as_many(kept: Sequence[Selected]) -> dict[str, int]:
    """How many edits of each task SEAL kept, for a control that imitates as many."""
    return dict(Counter(k.task for k in kept))


def exchanged(kept: Sequence[Selected], seed: int) -> list[Selected]:
    """Every edit after the prompt of another task: in a seeded order of the tasks, that of the next one. With one task alone, none."""
    tasks = sorted({k.task for k in kept})
    random.Random(seed).shuffle(tasks)
    following = dict(zip(tasks, [*tasks[1:], *tasks[:1]], strict=True))
    return [Selected(following[k.task], k.text, k.reward) for k in kept] if len(tasks) > 1 else []


def untried(domain: Domain, tasks: Sequence[Task], texts_P_E: Sequence[Sequence[str]], config: InnerConfig) -> list[Attempt]:
    """Edits as attempts that nobody made, for a selection that does not look at the outcome: only bad edits are known as such."""

    def attempt(task: Task, number: int, text: str) -> Attempt:
        parsed, _ = understand(domain, task, text, config.recipe)
        status, reason = ("bad edit", parsed.reason) if isinstance(parsed, BadEdit) else ("ok", "")
        return Attempt(task.id, number, 0, text, status, reason, reward=0.0, before=0.0, after=0.0)  # type: ignore[arg-type]

    return [attempt(t, e, text) for t, texts in zip(tasks, texts_P_E, strict=True) for e, text in enumerate(texts)]
