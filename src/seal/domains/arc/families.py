"""Puzzle families: rules on grids, alone or two in a row, from which any number of ARC-like puzzles is made.

A family is one rule with its parameters; a puzzle of it is a few random grids before and after the rule.
Families that behave alike on a fixed set of grids are one family, whatever they are called: a flip after a
half turn is the other flip.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from seal.domains.arc import grids
from seal.domains.arc.grids import Grid, Pair, Puzzle

Rule = Callable[[Grid], Grid]
LARGEST_INPUT = 6
"""Most rows and columns of an input; an output may have twice as many."""


@dataclass(frozen=True)
class Family:
    """A rule with a name that says what it does."""

    name: str
    rule: Rule


# ------------------------------------------------------------------------------------------------------ rules


def _cells(grid: Grid, change: Callable[[int, int, int], int]) -> Grid:
    return tuple(tuple(change(r, c, colour) for c, colour in enumerate(row)) for r, row in enumerate(grid))


def fall_down(grid: Grid) -> Grid:
    """Coloured cells fall to the bottom of their column."""
    columns = []
    for column in zip(*grid, strict=True):
        kept = [c for c in column if c]
        columns.append((0,) * (len(column) - len(kept)) + tuple(kept))
    return grids.transpose(tuple(columns))


def trail_right(grid: Grid) -> Grid:
    """Every coloured cell colours what is empty to its right, up to the next."""
    rows = []
    for row in grid:
        last = 0
        filled = []
        for c in row:
            last = c or last
            filled.append(last)
        rows.append(tuple(filled))
    return tuple(rows)


def crop(grid: Grid) -> Grid:
    """The smallest part that holds every coloured cell."""
    rows = [r for r, row in enumerate(grid) if any(row)]
    columns = [c for c in range(len(grid[0])) if any(row[c] for row in grid)]
    if not rows:
        return grid
    return tuple(row[columns[0] : columns[-1] + 1] for row in grid[rows[0] : rows[-1] + 1])


def outline(colour: int) -> Rule:
    """Empty cells beside a coloured one take a colour."""

    def rule(grid: Grid) -> Grid:
        height, width = len(grid), len(grid[0])

        def beside(r: int, c: int) -> bool:
            near = ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
            return any(0 <= a < height and 0 <= b < width and grid[a][b] for a, b in near)

        return _cells(grid, lambda r, c, old: colour if not old and beside(r, c) else old)

    return rule


def frame(colour: int) -> Rule:
    """The cells of the edge take a colour."""
    return lambda grid: _cells(
        grid, lambda r, c, old: colour if r in (0, len(grid) - 1) or c in (0, len(grid[0]) - 1) else old
    )


def paint(colour: int) -> Rule:
    """Every coloured cell takes one colour."""
    return lambda grid: _cells(grid, lambda r, c, old: colour if old else 0)


def ground(colour: int) -> Rule:
    """Every empty cell takes a colour."""
    return lambda grid: _cells(grid, lambda r, c, old: old or colour)


def negative(colour: int) -> Rule:
    """Coloured and empty change places."""
    return lambda grid: _cells(grid, lambda r, c, old: 0 if old else colour)


def exchange(a: int, b: int) -> Rule:
    """Two colours change places."""
    return lambda grid: _cells(grid, lambda r, c, old: b if old == a else a if old == b else old)


def _ranked(grid: Grid) -> list[int]:
    """The colours of a grid, the most frequent first; among equals the smaller."""
    counted = Counter(c for row in grid for c in row if c)
    return sorted(counted, key=lambda c: (-counted[c], c))


def only_most(grid: Grid) -> Grid:
    """Only the most frequent colour stays."""
    colours = _ranked(grid)
    return _cells(grid, lambda r, c, old: old if colours and old == colours[0] else 0)


def without_most(grid: Grid) -> Grid:
    """The most frequent colour goes."""
    colours = _ranked(grid)
    return _cells(grid, lambda r, c, old: 0 if colours and old == colours[0] else old)


def all_most(grid: Grid) -> Grid:
    """Every coloured cell takes the most frequent colour."""
    colours = _ranked(grid)
    return _cells(grid, lambda r, c, old: colours[0] if old else 0)


def chequer(grid: Grid) -> Grid:
    """Every other cell is emptied."""
    return _cells(grid, lambda r, c, old: old if (r + c) % 2 == 0 else 0)


def overlay(turn: Rule) -> Rule:
    """The grid with what it becomes by a turn under it (where the sizes agree)."""

    def rule(grid: Grid) -> Grid:
        other = turn(grid)
        if len(other) != len(grid) or len(other[0]) != len(grid[0]):
            return grid
        return _cells(grid, lambda r, c, old: old or other[r][c])

    return rule


def by_count(grid: Grid) -> Grid:
    """Rows in the order of how many coloured cells they have."""
    return tuple(sorted(grid, key=lambda row: sum(c > 0 for c in row)))


def _turned(rule: Rule, there: Rule, back: Rule) -> Rule:
    return lambda grid: back(rule(there(grid)))


def _after(first: Rule, second: Rule) -> Rule:
    return lambda grid: second(first(grid))


def _singles() -> list[Family]:
    """Every rule by itself."""
    found = [Family(t.name, t.apply) for t in (*grids.BASIC, *grids.SIZE, *grids.REPEAT)]
    turns = {
        "down": (lambda g: g, lambda g: g),
        "up": (grids.flip_rows, grids.flip_rows),
        "right": (grids.transpose, grids.transpose),
        "left": (_after(grids.transpose, grids.flip_rows), _after(grids.flip_rows, grids.transpose)),
    }
    found += [Family(f"fall {way}", _turned(fall_down, *turn)) for way, turn in turns.items()]
    sideways = {
        "right": (lambda g: g, lambda g: g),
        "left": (grids.flip_columns, grids.flip_columns),
        "down": (grids.transpose, grids.transpose),
        "up": (_after(grids.flip_rows, grids.transpose), _after(grids.transpose, grids.flip_rows)),
    }
    found += [Family(f"trail {way}", _turned(trail_right, *turn)) for way, turn in sideways.items()]
    found += [
        Family(f"shift {r}, {c}", grids.shift(r, c)) for r, c in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1))
    ]
    for colour in (1, 3, 5, 7, 9):
        found += [Family(f"outline {colour}", outline(colour)), Family(f"frame {colour}", frame(colour))]
        found += [Family(f"paint {colour}", paint(colour)), Family(f"ground {colour}", ground(colour))]
        found.append(Family(f"negative {colour}", negative(colour)))
    found += [
        Family(f"exchange {a} {b}", exchange(a, b))
        for a, b in ((1, 2), (2, 3), (4, 5), (6, 7), (8, 9), (1, 8))
    ]
    found += [
        Family(f"overlay {t.name}", overlay(t.apply))
        for t in (grids.TURNS[1], grids.TURNS[3], grids.TURNS[4])
    ]
    named = (crop, only_most, without_most, all_most, chequer, by_count)
    return [*found, *(Family(rule.__name__.replace("_", " "), rule) for rule in named)]


# --------------------------------------------------------------------------------------------------- families


def random_grid(rng: random.Random, smallest: int = 2, largest: int = LARGEST_INPUT) -> Grid:
    """A random grid: a share of its cells coloured, with one to four colours."""
    height, width = rng.randint(smallest, largest), rng.randint(smallest, largest)
    colours, share = rng.sample(range(1, 10), rng.randint(1, 4)), rng.uniform(0.2, 0.7)
    return tuple(
        tuple(rng.choice(colours) if rng.random() < share else 0 for _ in range(width)) for _ in range(height)
    )


_PROBES = tuple(random_grid(random.Random(f"probe {i}"), 2, 5) for i in range(40))


def behaviour(rule: Rule) -> tuple[Grid, ...]:
    """What a rule makes of the probes: families are the same if this is."""
    return tuple(rule(g) for g in _PROBES)


@cache
def families(pairs: bool = True) -> tuple[Family, ...]:
    """All families that behave differently: single rules, and with ``pairs`` every two in a row. Not those
    that change nothing in more than half of the probes, nor those that make one grid of most of them, nor any
    that outgrow twice the input."""
    singles = _singles()
    candidates = list(singles)
    if pairs:
        candidates += [
            Family(f"{a.name}, then {b.name}", _after(a.rule, b.rule))
            for a in singles
            for b in singles
            if a is not b
        ]
    found: dict[tuple[Grid, ...], Family] = {}
    for family in candidates:
        made = behaviour(family.rule)
        idle = sum(a == b for a, b in zip(made, _PROBES, strict=True))
        large = max(max(len(g), len(g[0])) for g in made) > 2 * 5
        if idle <= len(_PROBES) // 2 and len(set(made)) > len(_PROBES) // 2 and not large:
            found.setdefault(made, family)
    return tuple(found.values())


def puzzle(family: Family, seed: str, n_shown: int = 3, largest: int = LARGEST_INPUT) -> Puzzle:
    """A puzzle of a family: demonstrations and test with different inputs, each of which the rule changes, of
    at most ``largest`` rows and columns."""
    rng = random.Random(f"{family.name} {seed}")
    inputs: list[Grid] = []
    while len(inputs) <= n_shown:
        grid = random_grid(rng, largest=largest)
        if grid not in inputs and family.rule(grid) != grid:
            inputs.append(grid)
    pairs = [Pair(g, family.rule(g)) for g in inputs]
    return Puzzle(tuple(pairs[:-1]), pairs[-1])


HELD_OUT = Path(__file__).with_name("held_out.json")
"""Families that the embedded grid model was not trained on, in groups of those that are alike but for turns
and colours (tools/arc/hold_out.py)."""


@cache
def known_families() -> tuple[Family, ...]:
    """What the embedded grid model was trained on: every single rule, and most pairs."""
    held = {name for kin in json.loads(HELD_OUT.read_text("utf-8")) for name in kin}
    return tuple(f for f in families() if f.name not in held)


@cache
def held_families() -> tuple[Family, ...]:
    """Families of which the embedded grid model has seen no puzzle, turned or recoloured; and no two of these
    are alike so."""
    by_name = {f.name: f for f in families()}
    return tuple(by_name[kin[0]] for kin in json.loads(HELD_OUT.read_text("utf-8")))
