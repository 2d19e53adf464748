"""How the sibling edits of a round are tried: all alike, in a race, or not at all, where a score that needs
no training chooses.

*exposure*: share of the gold answers that stand in the edit (:mod:`seal.domains.knowledge.features`). A
judge: a model behind an endpoint, or ``hf:MODEL``, with a rubric.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from seal.config import RunConfig
from seal.domains.judges import VERDICT
from seal.domains.knowledge.features import features
from seal.endpoint import Endpoint, is_endpoint
from seal.loop.inner import InnerLoop, understand
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.lora.score import log_likelihood
from seal.records import Attempt, BadEdit, Grade, Prompt, Query, SealError, Task, seed_of, spoken
from seal.store import Round, Stage


def try_siblings(
    inner: InnerLoop,
    policy: Model,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    config: RunConfig,
    round_: Round,
) -> list[Attempt]:
    """Attempts as a selection is to see them: of a race its finalists'."""
    stage, seed = round_.stage, round_.seed()
    if source := config.trial.proxy:
        return untried(
            inner, tasks, texts_P_E, stage.once("proxy", lambda: proxy_scores(source, tasks, texts_P_E))
        )
    alone = config.inner.start == "policy"
    rank = config.inner.recipe.rank
    with nullcontext(policy) if alone else load_model(config.model, rank, policy) as learner:
        if config.trial.race:
            alive = [dict(enumerate(texts)) for texts in texts_P_E]
            return race(inner, learner, tasks, alive, config.trial.race, round_)
        return inner.try_edits(learner, tasks, texts_P_E, stage, seed)


def untried(
    inner: InnerLoop,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    rewards_P_E: Sequence[Sequence[float]],
) -> list[Attempt]:
    """Edits as attempts that nobody made, for a selection that looks at no outcome: only bad edits are known
    as such."""
    found = []
    for task, texts, rewards in zip(tasks, texts_P_E, rewards_P_E, strict=False):
        for edit, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
            parsed, _ = understand(inner.domain, task, text, inner.config.recipe)
            attempt = replace(Attempt.begun(task.id, edit, 0, text, NOTHING), reward=reward)
            found.append(attempt.refused(parsed.reason) if isinstance(parsed, BadEdit) else attempt)
    return found


NOTHING = Grade(0.0, (), ())
"""The score of what nobody was asked."""


def by_chance(texts_P_E: Sequence[Sequence[str]], seed: int) -> list[list[float]]:
    """Rewards for a control whose rule needs some: drawn, not earned."""
    draw = random.Random(seed_of("by chance", seed))
    return [[draw.random() for _ in texts] for texts in texts_P_E]


# ----------------------------------------------------------------------------------------------------- racing


def plan_race(n_edits: int, budget: int) -> list[tuple[int, int]]:
    """Legs of a race among ``n_edits`` siblings: how many run, and under how many new training seeds each.
    About ``budget`` inner loops in all, never more, but for a first leg that tries every edit once.

    Sequential halving: Karnin, Koren and Somekh, *Almost optimal exploration in multi-armed bandits*, ICML
    2013.
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
    inner: InnerLoop,
    model: Model,
    tasks: Sequence[Task],
    texts_P: Sequence[Mapping[int, str]],
    budget: int,
    round_: Round,
) -> list[Attempt]:
    """Leg by leg the worse half of each task's edits is left out, and the others run again under new seeds,
    which siblings share. All attempts of those that ran to the end. The first leg lies in the round's stage
    itself, the others in ``leg-2``, … below it."""
    alive, first, stage = list(texts_P), 0, round_.stage
    done: list[Attempt] = []
    for leg, (n, seeds) in enumerate(plan_race(max(map(len, texts_P), default=0), budget)):
        if leg:
            means = _means(done)
            alive = [_best(texts, t, means, n) for t, texts in zip(tasks, alive, strict=True)]
        place = stage if not leg else Stage(stage.folder / f"leg-{leg + 1}")
        trials = inner.trials(tasks, alive, round_.seed(), range(first, first + seeds))
        done += inner.work_through(model, tasks, trials, place)
        first += seeds
    finalists = {(t.id, e) for t, texts in zip(tasks, alive, strict=True) for e in texts}
    turn = {t.id: number for number, t in enumerate(tasks)}
    return sorted((a for a in done if (a.task, a.edit) in finalists), key=lambda a: turn[a.task])


UNKNOWN = -1.0
"""The mean reward of an edit without a graded attempt: below all others."""


def _means(attempts: Sequence[Attempt]) -> dict[tuple[str, int], float]:
    """(task, edit) → mean reward of its graded attempts, in one pass over all."""
    rewards: dict[tuple[str, int], list[float]] = {}
    for a in attempts:
        if a.reward is not None:
            rewards.setdefault((a.task, a.edit), []).append(a.reward)
    return {key: sum(known) / len(known) for key, known in rewards.items()}


def _best(
    texts: Mapping[int, str], task: Task, means: Mapping[tuple[str, int], float], n: int
) -> dict[int, str]:
    best = sorted(texts, key=lambda e: (-means.get((task.id, e), UNKNOWN), e))[:n]
    return {e: texts[e] for e in sorted(best)}


RUBRIC = (
    "A language model will be trained on the notes below, and will then answer questions about the passage "
    "without seeing it.\n\n"
    "Passage: {title}\n{context}\n\nNotes: {edit}\n\nHow well would the notes prepare it? Count what follows "
    "from the passage and is said "
    "outright; what is wrong counts against them. Reply with one digit from 0 (useless) to 9 (everything one "
    "could ask).\nRating:"
)
SHOWN_CHARS = 8000
"""Of an edit, what a judge reads."""


def proxy_scores(source: str, tasks: Sequence[Task], texts_P_E: Sequence[Sequence[str]]) -> list[list[float]]:
    """A score in [0, 1] for each edit of each task; an edit that nobody scored is 0.

    Raises:
        SealError: there is no such proxy, or it does not suit the domain.
    """
    if source == "exposure":
        if any("context" not in t.data for t in tasks):
            raise SealError(f"trial.proxy: {source} is of edits about a passage, and these tasks have none")
        return [[_exposure(t, text) for text in texts] for t, texts in zip(tasks, texts_P_E, strict=True)]
    if is_endpoint(source) or source.startswith("hf:"):
        return _judged(source, tasks, texts_P_E)
    raise SealError(f"trial.proxy: there is no {source!r}; there are: exposure, http://…#model and hf:MODEL")


def _exposure(task: Task, text: str) -> float:
    golds = {k: v for k, v in features(task, [text]).items() if k.startswith("gold ")}
    return sum(golds.values()) / max(1, len(golds))


def _judged(source: str, tasks: Sequence[Task], texts_P_E: Sequence[Sequence[str]]) -> list[list[float]]:
    prompts = [
        RUBRIC.format(
            title=t.data.get("title", t.id), context=t.data.get("context", ""), edit=text[:SHOWN_CHARS]
        )
        for t, texts in zip(tasks, texts_P_E, strict=True)
        for text in texts
    ]
    if is_endpoint(source):
        judge_ = Endpoint(source)
        replies = judge_.write(prompts, max_tokens=VERDICT, usable=lambda x: rating_of(x) is not None)
        rated = [rating_of(r or "") for r in replies]
        if left := sum(r is None for r in rated):
            raise SealError(
                f"trial.proxy: the judge left {left} of {len(rated)} edits unrated: "
                + (judge_.refused or ["it answers without a number from 0 to 9"])[0]
            )
        return _split([r or 0.0 for r in rated], texts_P_E)
    judge = load_model(ModelSpec(name=source.removeprefix("hf:")))
    ratings = [
        str(n) for n in range(10)
    ]  # of one digit: a longer one would be favoured by a mean over tokens
    queries = [Query(Prompt(p), r) for p in prompts for r in ratings]
    likely = np.array(log_likelihood(judge, [None], [queries])[0]).reshape(-1, len(ratings))
    weights = np.exp(likely - likely.max(1, keepdims=True))
    return _split(((weights / weights.sum(1, keepdims=True)) @ np.arange(10) / 9).tolist(), texts_P_E)


def rating_of(reply: str) -> float | None:
    """The first number of a reply, as a share of nine; ``None`` if there is none from 0 to 9."""
    found = re.search(r"\d{1,3}(?:\.\d{1,3})?", spoken(reply) or "")
    return float(found[0]) / 9 if found and float(found[0]) <= 9 else None


def _split(scores: Sequence[float], texts_P_E: Sequence[Sequence[str]]) -> list[list[float]]:
    each = iter(scores)
    return [[next(each) for _ in texts] for texts in texts_P_E]


def rank_correlation(
    scores_P_E: Sequence[Sequence[float]], rewards_P_E: Sequence[Sequence[float]]
) -> tuple[float, int]:
    """Spearman's rank correlation of a proxy with the reward among siblings, averaged over tasks in which
    both vary; and how many those are."""
    found = []
    for scores, rewards in zip(scores_P_E, rewards_P_E, strict=True):
        if len(set(scores)) > 1 and len(set(rewards)) > 1:
            found.append(float(np.corrcoef(_ranks(scores), _ranks(rewards))[0, 1]))
    return (float(np.mean(found)) if found else math.nan), len(found)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks, equals sharing theirs."""
    x = np.asarray(values)
    return [float((x < v).sum() + ((x == v).sum() - 1) / 2) for v in x]
