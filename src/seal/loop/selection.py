"""Which edits to imitate: pure selection over attempts, as in ReST-EM (sample, try, keep what helped,
imitate)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from seal.config import OuterConfig
from seal.records import Attempt, Example, Prompt, Selected, seed_of
from seal.store import Store


def rewards(attempts: Sequence[Attempt]) -> dict[tuple[str, int], tuple[str, float, float]]:
    """(task, edit) → text, mean reward over training seeds, mean gain. Ungraded attempts are left out, and so
    is an edit that has no other, that is bad, or whose training diverged under every seed."""
    grouped: dict[tuple[str, int], list[Attempt]] = {}
    for attempt in attempts:
        if attempt.reward is not None:
            grouped.setdefault((attempt.task, attempt.edit), []).append(attempt)
    return {
        key: (
            group[0].text,
            sum(a.reward or 0.0 for a in group) / len(group),
            sum(a.after - a.before for a in group) / len(group),
        )
        for key, group in grouped.items()
        if any(a.status == "ok" for a in group)
    }


def _by_task(attempts: Sequence[Attempt]) -> dict[str, list[tuple[int, str, float, float]]]:
    tasks: dict[str, list[tuple[int, str, float, float]]] = {}
    for (task, edit), (text, reward, gain) in rewards(attempts).items():
        tasks.setdefault(task, []).append((edit, text, reward, gain))
    return tasks


def best_of(attempts: Sequence[Attempt], keep: int = 1) -> list[Selected]:
    """The ``keep`` edits of highest reward of each task; of equals, the first. None that earned nothing, and
    none of siblings that all earned the same: they tell nothing apart. None after whose training the model
    is :func:`ruined`: a likelihood is above 0 even then."""
    lost = ruined(attempts)
    return [
        Selected(task, text, reward, edit=e)
        for task, edits in _by_task(attempts).items()
        if len(edits) == 1 or len({reward for _, _, reward, _ in edits}) > 1
        for e, text, reward, _ in sorted(edits, key=lambda e: (-e[2], e[0]))[:keep]
        if reward > 0 and (task, e) not in lost
    ]


WORSE = 1.5
"""Training whose loss ends above so many times where it began has not taught but broken something. Of 3,492
attempts on passages and puzzles 321 did, all on puzzles (docs/LOG.md)."""


def ruined(attempts: Sequence[Attempt]) -> set[tuple[str, int]]:
    """(task, edit) whose training made the loss worse under every seed, and the answers under none better."""
    sound = {(a.task, a.edit) for a in attempts if a.loss[1] <= WORSE * a.loss[0] or a.after > a.before}
    return {(a.task, a.edit) for a in attempts} - sound


def nothing_kept(attempts: Sequence[Attempt]) -> str:
    """Why a round has nothing to imitate, in words."""
    if attempts and all(a.reward is None for a in attempts):
        return f"none of {len(attempts)} attempts was graded ({attempts[0].reason or attempts[0].status})"
    graded = [a for a in attempts if a.reward is not None]
    if graded and all(a.status != "ok" for a in graded):
        return f"no edit could be used ({graded[0].reason or graded[0].status})"
    if graded and not any(a.reward for a in graded):
        return "no edit earned anything"
    if graded and all(len({r for _, _, r, _ in edits}) == 1 for edits in _by_task(attempts).values()):
        return "all edits of a task earned the same"
    return "no edit helped"


def improved(attempts: Sequence[Attempt], keep: int = 1) -> list[Selected]:
    """Every edit after which the model answers better than before it."""
    tasks = _by_task(attempts)
    return [
        Selected(t, text, r, edit=e) for t, edits in tasks.items() for e, text, r, gain in edits if gain > 0
    ]


def solved(attempts: Sequence[Attempt], keep: int = 1) -> list[Selected]:
    """Every edit that solves its task whole."""
    return [
        Selected(t, text, r, edit=e)
        for t, edits in _by_task(attempts).items()
        for e, text, r, _ in edits
        if r >= 1
    ]


def worst_of(
    attempts: Sequence[Attempt], keep: int = 1, per_task: Mapping[str, int] | None = None
) -> list[Selected]:
    """A control: the ``keep`` edits of lowest reward of each task, or as many as ``per_task`` says; of
    equals, the first."""
    return [
        Selected(task, text, reward, edit=e)
        for task, edits in _by_task(attempts).items()
        for e, text, reward, _ in sorted(edits, key=lambda e: (e[2], e[0]))[
            : keep if per_task is None else per_task.get(task, 0)
        ]
    ]


def pairs_of(attempts: Sequence[Attempt]) -> list[tuple[Selected, Selected]]:
    """The edit of highest and that of lowest reward of each task in which they differ; a bad edit is the
    lowest there is."""
    bad = {(a.task, a.edit): a for a in attempts if a.status == "bad edit" and a.text.strip()}
    worst_bad = {task: Selected(task, a.text, 0.0) for (task, _), a in reversed(bad.items())}
    pairs = []
    for task, edits in _by_task(attempts).items():
        ranked = sorted(edits, key=lambda e: (-e[2], e[0]))
        best = Selected(task, ranked[0][1], ranked[0][2])
        worst = worst_bad.get(task) or Selected(task, ranked[-1][1], ranked[-1][2])
        if best.reward > worst.reward:
            pairs.append((best, worst))
    return pairs


def random_of(
    attempts: Sequence[Attempt], keep: int = 1, seed: object = 0, per_task: Mapping[str, int] | None = None
) -> list[Selected]:
    """The control: edits drawn without looking at the reward, ``keep`` of each task, or as many as
    ``per_task`` says. Where that is more than ``keep`` of some task, the numbers themselves tell which tasks
    were solved how often, so as many in all are drawn over all tasks."""
    kept = []
    if per_task and max(per_task.values()) > keep:
        every = [
            Selected(t, text, r, edit=e) for t, edits in _by_task(attempts).items() for e, text, r, _ in edits
        ]
        return random.Random(seed_of("random_of", seed)).sample(
            every, min(sum(per_task.values()), len(every))
        )
    for task, edits in _by_task(attempts).items():
        n = keep if per_task is None else per_task.get(task, 0)
        chosen = random.Random(seed_of("random_of", seed, task)).sample(edits, min(n, len(edits)))
        kept += [Selected(task, text, reward, edit=e) for e, text, reward, _ in chosen]
    return kept


def select(attempts: Sequence[Attempt], rule: str, keep: int) -> list[Selected]:
    """Selection by the rule's name in the config."""
    return {"best_of": best_of, "improved": improved, "solved": solved}[rule](attempts, keep)


def sft_examples(kept: Sequence[Selected], prompts: Mapping[str, Prompt]) -> tuple[Example, ...]:
    """Prompt → kept self-edit, loss on the edit alone: what the policy imitates. One that was cut off is
    imitated as far as it goes, and teaches no end: of four ways the one that did best (docs/LOG.md,
    ``tools/rules/cut.py``)."""
    asked = [prompts[s.task] for s in kept]
    return tuple(
        Example(s.text, ends=not s.cut, prompt=p.text, system=p.system, chat=True)
        for s, p in zip(kept, asked, strict=True)
    )


# ---------------------------------------------------------------------------- branches: SEAL and its controls

Select = Callable[[Sequence[Attempt], Sequence[Selected], OuterConfig, int], list[Selected]]
"""(a round's attempts, what SEAL kept in that round, the settings, the round's seed) → what is to be
imitated."""


@dataclass(frozen=True)
class Branch:
    """One outer loop within a run: SEAL's own, or a control, which is the same budget and the same imitation
    of other edits."""

    name: str
    folder: str
    """Of its rounds, in the run folder."""
    select: Select
    looks: bool = True
    """Whether it looks at rewards; else no edit is tried."""
    writes: bool = True
    """Whether its policy writes edits of its own."""


SEAL = Branch("SEAL", "seal", lambda attempts, _, outer, seed: select(attempts, outer.select, outer.keep))
RANDOM = Branch(
    "random",
    "control",
    lambda attempts, seal, outer, seed: random_of(attempts, outer.keep, seed, as_many(seal)),
    looks=False,
)
"""As many edits, drawn without looking at the reward."""
WORST = Branch(
    "worst",
    "control-worst",
    lambda attempts, seal, outer, seed: worst_of(attempts, outer.keep, as_many(seal)),
)
"""Of each task the edits that did worst."""
OTHERS = Branch(
    "others", "control-others", lambda _, seal, outer, seed: exchanged(seal, seed), looks=False, writes=False
)
"""SEAL's own kept edits, each after the prompt of another task: does it matter that an edit belongs to its
passage?"""
CONTROLS = {branch.name: branch for branch in (RANDOM, WORST, OTHERS)}


def kept_in(store: Store, branch: Branch, r: int) -> list[Selected]:
    """What a branch of the run kept in a round; empty before it has run."""
    rows = store.stage(f"{branch.folder}/round-{r}").read("kept")
    return [Selected(**k) for k in rows or ()]


def as_many(kept: Sequence[Selected]) -> dict[str, int]:
    """How many edits of each task SEAL kept, for a control that imitates as many."""
    return dict(Counter(k.task for k in kept))


def exchanged(kept: Sequence[Selected], seed: int) -> list[Selected]:
    """Every edit after the prompt of another task: in a seeded order of the tasks, that of the next one. With
    one task alone, none."""
    tasks = sorted({k.task for k in kept})
    random.Random(seed).shuffle(tasks)
    following = dict(zip(tasks, [*tasks[1:], *tasks[:1]], strict=True))
    return [replace(k, task=following[k.task]) for k in kept] if len(tasks) > 1 else []
