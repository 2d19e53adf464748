"""Means with intervals. A passage is the unit: its questions, edits and training seeds are averaged first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(scores_S_P: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Mean over S runs (loop seeds) × P passages, with a bootstrap percentile interval.

    Passages and runs are both resampled, crossed (every run is tested on the same passages): a difference must hold over
    other passages and over other seeds of the loop. With one run only passages are resampled.
    """
    x = np.asarray(scores_S_P, dtype=float)  # (S, P)
    if x.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    n_runs, n_passages = x.shape
    runs = rng.integers(0, n_runs, (N_BOOTSTRAP, n_runs))
    passages = rng.integers(0, n_passages, (N_BOOTSTRAP, n_passages))
    weights_r = np.stack([np.bincount(r, minlength=n_runs) for r in runs]) / n_runs  # (N, S)
    weights_p = np.stack([np.bincount(p, minlength=n_passages) for p in passages]) / n_passages  # (N, P)
    means = np.einsum("ns,sp,np->n", weights_r, x, weights_p)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(x.mean()), float(low), float(high))


def difference(a_S_P: Sequence[Sequence[float]], b_S_P: Sequence[Sequence[float]]) -> Interval:
    """The paired difference a - b, over the same runs and passages."""
    return interval((np.asarray(a_S_P, dtype=float) - np.asarray(b_S_P, dtype=float)).tolist())
