"""What grows with the size of a run, and how fast: the work of each at n and at 2 n, counted, not timed.

    python bench/robustness.py --json docs/results/robustness.json

The cost is in Python's own steps (lines run, by ``sys.settrace``), or where the work is numpy's in bytes (peak
of ``tracemalloc``), so it is the same on every machine. Nothing may grow faster than n log n: at 2 n it is at
most 2.5 times what it is at n.
"""

from __future__ import annotations

import argparse
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seal.domains.knowledge.division import divide, grouped
from seal.domains.knowledge.features import features
from seal.loop.race import _best, _means
from seal.loop.selection import best_of
from seal.records import Attempt, Task, record_text
from seal.stats import interval
from seal.store import write_whole
from seal.teach.documents import _markdown

MOST = 2.5


def steps(work: Callable[[], object]) -> int:
    """Lines of Python that a piece of work runs."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def peak(work: Callable[[], object]) -> int:
    """Most bytes that a piece of work holds at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attempts(n: int) -> list[Attempt]:
    return [
        Attempt(f"t{t}", e, 0, "x", "ok", "", (t * 7 + e) % 5 / 5, 0.0, 0.1)
        for t in range(n)
        for e in range(4)
    ]


def passages(n: int, chain: bool = False) -> list[dict[str, Any]]:
    draw = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    rows = [" ".join(draw.choices(words, k=30)) for _ in range(n)]
    return [
        {"id": f"p{i}", "title": f"T{i}", "context": rows[i // 2] if chain else rows[i], "questions": []}
        for i in range(n)
    ]


def race_leg(n: int) -> int:
    done, tasks = attempts(n), [Task(f"t{t}", {}) for t in range(n)]

    def leg() -> None:
        means = _means(done)
        for task in tasks:
            _best(dict.fromkeys(range(4), "x"), task, means, 2)

    return steps(leg)


def division(n: int, chain: bool) -> int:
    rows = passages(n, chain)
    return steps(lambda: divide(rows, {"train": n // 4, "eval": n // 4}, 0, grouped(rows)[0]))


def likeness(n: int) -> int:
    texts = [row["context"] for row in passages(n)]
    return steps(lambda: features(Task("t", {"title": "T", "context": texts[0]}), texts))


def intervals(n: int) -> int:
    scores = [[(i * 31 + s) % 7 / 7 for i in range(n)] for s in range(3)]
    return peak(lambda: interval(scores))


WORK: dict[str, tuple[Callable[[int], int], int, str]] = {
    "interval over passages": (intervals, 3000, "bytes at once"),
    "likeness of siblings": (likeness, 100, "steps"),
    "one leg of a race": (race_leg, 250, "steps"),
    "selection of a round": (lambda n: steps(lambda: best_of(attempts(n))), 250, "steps"),
    "division of passages": (lambda n: division(n, False), 400, "steps"),
    "division, every text twice": (lambda n: division(n, True), 400, "steps"),
    "a head of settings that never ends": (
        lambda n: steps(lambda: _markdown("d", "---\n" + "-name: x\n" * n)),
        1000,
        "steps",
    ),
}
"""What is measured: cost of n, n, and the cost's unit."""


def rows() -> list[dict[str, Any]]:
    return [
        {"what": what, "n": n, "cost": cost(n), "n2": 2 * n, "cost2": cost(2 * n), "unit": unit}
        for what, (cost, n, unit) in WORK.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path)
    found = rows()
    out = parser.parse_args().json
    for row in found:
        print(
            f"{row['what']:36} {row['n']:6} {row['cost']:10} {row['n2']:6} {row['cost2']:10}  ×{row['cost2'] / row['cost']:.2f}"
        )
    if out:
        command = f"python bench/robustness.py --json {out}"
        write_whole(out, record_text({"command": command, "rows": found}))


if __name__ == "__main__":
    main()
