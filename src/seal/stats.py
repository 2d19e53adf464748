"""Means with 95 % intervals. A task is the unit: its questions, edits and training seeds are averaged first.

Scores are a table of S runs (seeds of the loop) × P tasks, every run on the same tasks. A mean over it is
uncertain in two ways at once: other runs, and other tasks. Tasks of one group (puzzles of a family, passages
of an article) are not independent, so groups count, not tasks. The variance of the mean is that of a table of
two crossed random effects (Searle, Casella & McCulloch, *Variance Components*, 1992), and few runs or groups
widen the interval as Student's t does, with Satterthwaite's degrees of freedom. ``tests/test_stats.py``
checks by simulation that intervals cover.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from seal.records import SealError

TAIL = 0.025
NORMAL = 1.959964
"""The normal distribution's quantile at 1 - TAIL."""
DUST = 1e-20
"""Variance of a mean of scores around 1 that is rounding, and no difference."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(
    scores_S_P: Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
    within: tuple[float, float] | None = (0.0, 1.0),
) -> Interval:
    """Mean over S runs × P tasks: the interval holds over other tasks (other groups of them, where ``groups``
    names each task's) and, with several runs, over other runs.

    Args:
        within: what a score can be. For shares, (0, 1), it is the interval of Korn and Graubard (*Survey
            Methodology* 24, 1998): Clopper and Pearson's of as many independent cases as would be so
            uncertain. Of a single group, or where all scores are alike, it says what they leave open: as much
            of what was not seen as has a chance of one in twenty may be anything within. ``None``: not
            bounded, and then one group alone says nothing (infinite).

    Raises:
        SealError: there is no score, or one that is not a number.
    """
    x = np.asarray(scores_S_P, dtype=float)
    if not x.size or not np.isfinite(x).all():
        raise SealError(
            "there is no score to take the mean of"
            if not x.size
            else "a score is not a number, so there is no mean"
        )
    mean = float(x.mean())
    variance, freedom, n_groups = _variance(x, groups)
    if variance <= DUST * max(1.0, float(np.abs(x).max()) ** 2):
        return Interval(mean, *_unseen(mean, n_groups, within))
    t = float(stdtrit(freedom, 1 - TAIL))
    if within == (0.0, 1.0) and x.min() >= 0 and x.max() <= 1:
        n = mean * (1 - mean) / variance * (NORMAL / t) ** 2  # independent cases that would be as uncertain
        right, wrong = mean * n, (1 - mean) * n
        return Interval(
            mean, float(betaincinv(right, wrong + 1, TAIL)), float(betaincinv(right + 1, wrong, 1 - TAIL))
        )
    low, high = within or (-np.inf, np.inf)
    half = t * variance**0.5
    return Interval(mean, float(max(low, mean - half)), float(min(high, mean + half)))


def share(k: int, n: int) -> Interval:
    """So many of so many, with the exact binomial interval (Clopper & Pearson, 1934)."""
    low = float(betaincinv(k, n - k + 1, TAIL)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - TAIL)) if k < n else 1.0
    return Interval(k / n if n else float("nan"), low, high)


def difference(
    a_S_P: Sequence[Sequence[float]],
    b_S_P: Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The paired difference a - b of shares, over the same runs and tasks."""
    return interval(
        (np.asarray(a_S_P, dtype=float) - np.asarray(b_S_P, dtype=float)).tolist(), groups, (-1.0, 1.0)
    )


def _variance(x: Floats, groups: Sequence[Hashable] | None) -> tuple[float, float, int]:
    """Of the mean of (S, P) scores: variance (0 where it cannot be told), degrees of freedom, and the number
    of groups."""
    n_runs, n_tasks = x.shape
    number: dict[Hashable, int] = {}
    owner = np.array(
        [number.setdefault(g, len(number)) for g in (range(n_tasks) if groups is None else groups)]
    )
    if len(owner) != n_tasks:
        raise SealError(f"{len(owner)} groups are named for {n_tasks} tasks")
    sizes, n_groups = np.bincount(owner), len(number)
    if n_groups < 2:
        return 0.0, 0.0, n_groups
    effective = max(
        2.0, n_tasks**2 / float((sizes**2).sum())
    )  # groups of like size that would say as much (Kish, 1965)
    run_mean, task_mean, mean = x.mean(1), x.mean(0), x.mean()
    off = np.bincount(owner, task_mean - mean, n_groups)
    units = float((off**2).sum()) * n_groups / (n_groups - 1) / n_tasks**2
    if n_runs < 2:
        return units, effective - 1, n_groups
    runs = float(run_mean.var(ddof=1)) / n_runs
    rest = x - run_mean[:, None] - task_mean + mean
    cells = np.stack([np.bincount(owner, row, n_groups) for row in rest])
    both = (
        float((cells**2).sum()) * n_runs / (n_runs - 1) * n_groups / (n_groups - 1) / (n_runs * n_tasks) ** 2
    )
    variance = max(units + runs - both, units, runs)  # what crosses runs and tasks is in both of them
    if not variance:
        return 0.0, 0.0, n_groups
    return variance, (units + runs) ** 2 / (units**2 / (effective - 1) + runs**2 / (n_runs - 1)), n_groups


def _unseen(mean: float, n: int, within: tuple[float, float] | None) -> tuple[float, float]:
    """Where ``n`` cases are alike: others may be as many as would, with a chance of one in twenty, not have
    been met (Clopper and Pearson's one-sided limit of no event; for many cases the *rule of three*, 3 /
    n)."""
    if within is None:
        return (mean, mean) if n > 1 else (-np.inf, np.inf)
    unseen = 1 - (2 * TAIL) ** (1 / n)
    low, high = within
    return (1 - unseen) * mean + unseen * low, (1 - unseen) * mean + unseen * high
