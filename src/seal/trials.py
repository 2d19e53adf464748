"""How the sibling edits of a round are tried: all alike, in a race, or not at all where a proxy chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seal.attempts import Crew, trials_of, understand, work_through
from seal.config import InnerConfig, RunConfig
from seal.domains.base import Domain
from seal.models.policy import Policy
from seal.proxy import proxy_scores
from seal.store import Stage
from seal.types import Attempt, BadEdit, Task


def try_siblings(
    policy: Policy,
    domain: Domain,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    config: RunConfig,
    stage: Stage,
    seed: object,
    label: str,
    crew: Crew | None = None,
) -> list[Attempt]:
    """Attempts as a selection is to see them: of a race its finalists'."""
    trial, inner = config.trial, config.inner
    if source := trial.proxy:
        scores = stage.once("proxy", lambda: proxy_scores(source, tasks, texts_P_E))
        return untried(domain, tasks, texts_P_E, inner, scores)
    alive = [dict(enumerate(texts)) for texts in texts_P_E]
    if trial.race:
        return race(policy, domain, tasks, alive, inner, trial.race, stage, seed, label, crew)
    trials = trials_of(domain, tasks, alive, inner, seed, range(inner.seeds))
    return work_through(policy, domain, tasks, trials, inner, stage, label, crew)


def untried(
    domain: Domain,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    config: InnerConfig,
    rewards: Sequence[Sequence[float]] | None = None,
) -> list[Attempt]:
    """Edits as attempts that nobody made, for a selection that looks at no outcome: only bad edits are known as such."""

    def attempt(task: Task, number: int, text: str, reward: float) -> Attempt:
        parsed, _ = understand(domain, task, text, config.recipe)
        status, reason = ("bad edit", parsed.reason) if isinstance(parsed, BadEdit) else ("ok", "")
        return Attempt(task.id, number, 0, text, status, reason, reward=reward, before=0.0, after=0.0)  # type: ignore[arg-type]

    return [
        attempt(t, e, text, rewards[i][e] if rewards else 0.0)
        for i, (t, texts) in enumerate(zip(tasks, texts_P_E, strict=True))
        for e, text in enumerate(texts)
    ]


# ---------------------------------------------------------------------------------------------------------------- racing


def plan_race(n_edits: int, budget: int) -> list[tuple[int, int]]:
    """Legs of a race among ``n_edits`` siblings: how many run, and under how many new training seeds each. About ``budget`` inner loops in all,
    never more, but for a first leg that tries every edit once.

    Sequential halving: Karnin, Koren and Somekh, *Almost optimal exploration in multi-armed bandits*, ICML 2013.
    """
    fields = [n_edits]
    while fields[-1] > 2:
        fields.append(-(-fields[-1] // 2))
    legs, left = [], budget
    for place, n in enumerate(fields):
        each = max(1, left // (len(fields) - place) // n)
        if place and each * n > left:
            break
        legs.append((n, each))
        left -= each * n
    return legs


def race(
    policy: Policy,
    domain: Domain,
    tasks: Sequence[Task],
    texts_P: Sequence[Mapping[int, str]],
    config: InnerConfig,
    budget: int,
    stage: Stage,
    seed: object,
    label: str,
    crew: Crew | None = None,
) -> list[Attempt]:
    """Leg by leg the worse half of each task's edits is left out, and the others run again under new seeds, which siblings share. All
    attempts of those that ran to the end. The first leg lies in the stage itself, the others in ``leg-2``, … below it."""
    alive, first = list(texts_P), 0
    done: list[Attempt] = []
    for leg, (n, seeds) in enumerate(plan_race(max(map(len, texts_P), default=0), budget)):
        alive = [_best(texts, t, done, n) for t, texts in zip(tasks, alive, strict=True)] if leg else alive
        place = stage if not leg else Stage(stage.folder / f"leg-{leg + 1}")
        trials = trials_of(domain, tasks, alive, config, seed, range(first, first + seeds))
        done += work_through(policy, domain, tasks, trials, config, place, f"{label}, leg {leg + 1}", crew)
        first += seeds
    finalists = {(t.id, e) for t, texts in zip(tasks, alive, strict=True) for e in texts}
    turn = {t.id: number for number, t in enumerate(tasks)}
    return sorted((a for a in done if (a.task, a.edit) in finalists), key=lambda a: turn[a.task])


def _best(texts: Mapping[int, str], task: Task, attempts: Sequence[Attempt], n: int) -> dict[int, str]:
    means = {e: _mean([a.reward for a in attempts if a.task == task.id and a.edit == e]) for e in texts}
    best = sorted(texts, key=lambda e: (-means[e], e))[:n]
    return {e: texts[e] for e in sorted(best)}


def _mean(rewards: Sequence[float | None]) -> float:
    known = [r for r in rewards if r is not None]
    return sum(known) / len(known) if known else -1.0
