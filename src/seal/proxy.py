"""Scores of self-edits that need no training: what could take the place of inner loops, or choose where to spend them.

*exposure*: share of the gold answers that stand in the edit (:mod:`seal.features`). A judge: a model behind an endpoint, or ``hf:MODEL``, with a rubric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from seal.endpoint import Endpoint, is_endpoint
from seal.features import features
from seal.models.engine import log_likelihood
from seal.models.policy import load_policy
from seal.types import Prompt, Query, SealError, Task

RUBRIC = (
    "A language model will be trained on the notes below, and will then answer questions about the passage without seeing it.\n\n"
    "Passage: {title}\n{context}\n\nNotes: {edit}\n\nHow well would the notes prepare it? Count what follows from the passage and is said "
    "outright; what is wrong counts against them. Reply with one digit from 0 (useless) to 9 (everything one could ask).\nRating:"
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
        RUBRIC.format(title=t.data.get("title", t.id), context=t.data.get("context", ""), edit=text[:SHOWN_CHARS])
        for t, texts in zip(tasks, texts_P_E, strict=True)
        for text in texts
    ]
    if is_endpoint(source):
        replies = Endpoint(source).write(prompts, max_tokens=8, usable=lambda x: rating_of(x) is not None)
        rated = [rating_of(r or "") for r in replies]
        if left := sum(r is None for r in rated):
            raise SealError(
                f"trial.proxy: the judge left {left} of {len(rated)} edits unrated; run the same command again to go on"
            )
        return _split([r or 0.0 for r in rated], texts_P_E)
    judge = load_policy(source.removeprefix("hf:"), threads="auto")
    ratings = [str(n) for n in range(10)]  # of one digit: a longer one would be favoured by a mean over tokens
    queries = [Query(Prompt(p), (" " if not judge.chat else "") + r) for p in prompts for r in ratings]
    likely = np.array(log_likelihood(judge, [None], [queries])[0]).reshape(-1, len(ratings))
    weights = np.exp(likely - likely.max(1, keepdims=True))
    return _split(((weights / weights.sum(1, keepdims=True)) @ np.arange(10) / 9).tolist(), texts_P_E)


def rating_of(reply: str) -> float | None:
    """The first number of a reply, as a share of nine; ``None`` if there is none from 0 to 9."""
    found = re.search(r"\d{1,3}(?:\.\d{1,3})?", reply)
    return float(found[0]) / 9 if found and float(found[0]) <= 9 else None


def _split(scores: Sequence[float], texts_P_E: Sequence[Sequence[str]]) -> list[list[float]]:
    each = iter(scores)
    return [[next(each) for _ in texts] for texts in texts_P_E]


def rank_correlation(scores_P_E: Sequence[Sequence[float]], rewards_P_E: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Spearman's rank correlation of a proxy with the reward among siblings, averaged over tasks in which both vary; and how many those
    are."""
    found = []
    for scores, rewards in zip(scores_P_E, rewards_P_E, strict=True):
        if len(set(scores)) > 1 and len(set(rewards)) > 1:
            found.append(float(np.corrcoef(_ranks(scores), _ranks(rewards))[0, 1]))
    return (float(np.mean(found)) if found else math.nan), len(found)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks, equals sharing theirs."""
    x = np.asarray(values)
    return [float((x < v).sum() + ((x == v).sum() - 1) / 2) for v in x]
