"""Intervals: they cover what they should (by simulation, over runs, tasks and groups), and say so where there
is too little to say.

Every figure that this project claims rests on these two functions.
"""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from seal.records import SealError
from seal.stats import difference, interval, share

N = 400
"""Simulated experiments; nominal coverage .95 has a standard error of .011 over them."""
FAMILIES = [i for i, n in enumerate([7, 5, 5, 3, 3, *[2] * 9, *[1] * 19]) for _ in range(n)]
"""Sixty puzzles of thirty-three rules, as in the recorded experiment."""


def coverage(runs: int, tasks: int, truth: float = 0.5, sd_run: float = 0.0, questions: int = 5) -> float:
    rng = np.random.default_rng(runs * 1000 + tasks)
    hits = 0
    for _ in range(N):
        easy = rng.beta(2 * truth, 2 - 2 * truth, tasks)[None] + rng.normal(0, sd_run, (runs, 1))
        found = interval((rng.binomial(questions, easy.clip(0, 1), (runs, tasks)) / questions).tolist())
        hits += found.low <= truth <= found.high
    return hits / N


@pytest.mark.parametrize(("runs", "tasks"), [(1, 5), (1, 16), (1, 64), (3, 8), (3, 64)])
def test_an_interval_covers_over_other_tasks(runs: int, tasks: int) -> None:
    assert coverage(runs, tasks) >= 0.925
    assert coverage(runs, tasks, truth=0.1) >= 0.92


@pytest.mark.parametrize(("tasks", "least"), [(8, 0.82), (24, 0.88), (64, 0.9)])
def test_of_very_skewed_scores_it_covers_less_and_not_much_less(tasks: int, least: float) -> None:
    """Nearly all near 0 and a few not, as likelihoods can be: what has not been met cannot be known
    (docs/how-it-works.md)."""
    rng = np.random.default_rng(tasks)
    found = [interval([rng.beta(0.2, 9.8, tasks).tolist()]) for _ in range(2 * N)]
    covered = sum(i.low <= 0.02 <= i.high for i in found) / (2 * N)
    assert least <= covered < 0.96


def test_an_interval_covers_over_other_runs() -> None:
    """With three runs that differ more than their tasks do, it must be as wide as three runs leave it."""
    assert coverage(3, 64, sd_run=0.1) >= 0.925
    alike, apart = (
        interval(np.outer([1, 1 + x, 1 - x], np.linspace(0.4, 0.6, 50)).tolist()) for x in (0.0, 0.3)
    )
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


@pytest.mark.parametrize("icc", [0.2, 0.6])
def test_an_interval_covers_where_tasks_come_in_families(icc: float) -> None:
    rng = np.random.default_rng(0)
    hits = {True: 0, False: 0}
    for _ in range(N):
        a = 1 / icc - 1
        easy = rng.beta(0.3 * a, 0.7 * a, len(set(FAMILIES)))[FAMILIES]
        scores = [(rng.random(len(FAMILIES)) < easy).astype(float).tolist()]
        for grouped in hits:
            found = interval(scores, FAMILIES if grouped else None)
            hits[grouped] += found.low <= 0.3 <= found.high
    assert hits[True] / N >= 0.93
    if icc > 0.5:
        assert hits[False] / N < 0.92, "that is what counting puzzles instead of families would give"


@pytest.mark.parametrize(("runs", "tasks"), [(1, 5), (1, 6), (1, 8), (3, 8)])
def test_with_few_tasks_nothing_is_called_better_by_luck(runs: int, tasks: int) -> None:
    """`seal learn` says "worth keeping" from five passages on: without any gain that may happen 2.5 times in
    a hundred."""
    rng = np.random.default_rng(tasks)
    worth = 0
    for _ in range(2 * N):
        easy = rng.beta(1, 1, tasks)
        shift = rng.normal(0, 0.1, tasks)
        a, b = (rng.binomial(4, (easy + s).clip(0, 1), (runs, tasks)) / 4 for s in (shift, -shift))
        worth += difference(a.tolist(), b.tolist()).low > 0
    assert worth / (2 * N) <= 0.04


def test_a_difference_is_paired_and_has_a_sign() -> None:
    base = np.random.default_rng(0).random((3, 50)) * 0.9
    better = base + np.random.default_rng(1).normal(0.05, 0.01, (3, 50))
    gain = difference(better.tolist(), base.tolist())
    assert gain.low > 0.04 and gain.high < 0.06, "what both have in common does not count"
    back = difference(base.tolist(), better.tolist())
    assert (back.mean, back.low, back.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


def test_scores_that_are_all_alike_still_leave_something_open() -> None:
    """Clopper and Pearson's limit of no event: after sixty-four right answers, 4.6 % may be wrong elsewhere
    (3 / n)."""
    right = interval([[1.0] * 64])
    assert (right.mean, right.high) == (1.0, 1.0) and right.low == pytest.approx(0.05 ** (1 / 64))
    wrong = interval([[0.0] * 64] * 3)
    assert wrong.low == 0 and wrong.high == pytest.approx(1 - right.low)
    same = difference([[0.4, 0.6, 0.2]] * 2, [[0.4, 0.6, 0.2]] * 2)
    assert same.mean == 0 and same.low < -0.5 and same.high > 0.5
    even = difference([[0.5, 0.3, 0.7]], [[0.4, 0.2, 0.6]])
    assert even.low < 0 < even.high, "three passages prove nothing, however even"


@pytest.mark.parametrize("value", [0.1, 0.2, 1 / 3, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("runs", [1, 3])
def test_alike_is_alike_whatever_rounding_makes_of_it(value: float, runs: int) -> None:
    for tasks in (2, 5, 6, 7, 12, 64, 69):
        found = interval([[value] * tasks] * runs)
        assert found.mean == pytest.approx(value) and found.high - found.low > 0.04, tasks
        base = np.random.default_rng(tasks).random((runs, tasks)) * 0.5
        gap = difference((base + 0.2).tolist(), base.tolist())
        assert gap.low < 0.2 < gap.high and gap.high - gap.low > 0.08, tasks


def test_one_task_says_nothing_and_no_task_is_an_error() -> None:
    one = interval([[0.5]])
    assert one.mean == 0.5 and one.low < 0.05 and one.high > 0.95
    family = interval([[0.2, 0.8, 0.5]], ["a", "a", "a"])
    assert family.low < 0.05 and family.high > 0.95, "three puzzles of one rule are one"
    assert interval([[3.0]], within=None).high == math.inf
    for nothing in ([], [[]], [[0.5, math.nan]], [[0.5], [math.inf]]):
        with pytest.raises(SealError, match=r"no mean|no score"):
            interval(nothing)
    with pytest.raises(SealError, match="2 groups are named for 3 tasks"):
        interval([[0.1, 0.2, 0.3]], ["a", "b"])


def test_shares_stay_within_their_bounds_and_ratios_have_none() -> None:
    few = interval([[1.0, 1.0, 1.0, 0.0]])
    assert 0 <= few.low < 0.75 < few.high <= 1
    ratio = interval([[5.0, 6.0, 7.0]], within=None)
    assert (
        ratio.low == pytest.approx(6 - 4.302653 / 3**0.5) and ratio.high > 8
    )  # Student's t with two degrees of freedom


def test_of_many_passages_it_is_the_normal_interval_and_costs_what_they_cost() -> None:
    x = np.random.default_rng(0).random((3, 20_000))
    tracemalloc.start()
    found = interval(x.tolist(), [i // 4 for i in range(20_000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    one = interval([x[0].tolist()])
    assert (
        one.high - one.low == pytest.approx(2 * 1.96 * x[0].std() / 20_000**0.5, rel=0.01)
        and found.low < 0.5 < found.high
    )


def test_a_share_has_the_exact_binomial_interval() -> None:
    from scipy.stats import binomtest

    for k, n in ((0, 5), (3, 7), (60, 60), (45, 60), (1, 1000)):
        theirs = binomtest(k, n).proportion_ci(0.95, method="exact")
        mine = share(k, n)
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert mine.mean == k / n
