"""Controls of the outer loop: the same budget and the same imitation of other edits than those that helped.

*random*: as many edits, drawn without looking at the reward. *worst*: of each task the edit that did worst. *others*: SEAL's own kept edits, each after the
prompt of another task: does it matter that an edit belongs to its passage?
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from seal.store import Store, read_json
from seal.types import Selected, seed_of

CONTROLS = {
    "random": ("control", "random_of"),
    "worst": ("control-worst", "worst_of"),
    "others": ("control-others", "others_of"),
}
"""Name → branch of the run, selection."""


def kept_in(store: Store, branch: str, r: int) -> list[Selected]:
    """What a branch of the run (``seal``, or a control's) kept in a round; empty before it has run."""
    path = store.folder / f"{branch}/round-{r}/kept.json"
    return [Selected(**k) for k in read_json(path)] if path.exists() else []


def as_many(kept: Sequence[Selected]) -> dict[str, int]:
    """How many edits of each task SEAL kept, for a control that imitates as many."""
    return dict(Counter(k.task for k in kept))


def exchanged(kept: Sequence[Selected], seed: int) -> list[Selected]:
    """Every edit after the prompt of another task: in a seeded order of the tasks, that of the next one. With one task alone, none."""
    tasks = sorted({k.task for k in kept})
    random.Random(seed).shuffle(tasks)
    following = dict(zip(tasks, [*tasks[1:], *tasks[:1]], strict=True))
    return [replace(k, task=following[k.task]) for k in kept] if len(tasks) > 1 else []


def by_chance(texts_P_E: Sequence[Sequence[str]], seed: int) -> list[list[float]]:
    """Rewards for a control whose rule needs some: drawn, not earned."""
    draw = random.Random(seed_of("by chance", seed))
    return [[draw.random() for _ in texts] for texts in texts_P_E]
