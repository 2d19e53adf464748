"""Grids of the ARC kind: text forms, augmentations with their inverses, and tasks made of demonstrations.

A grid is 1 to 30 rows of 1 to 30 cells, each a colour 0 to 9. The tools are those of SEAL's ARC experiments,
after Akyürek et al., "The Surprising Effectiveness of Test-Time Training for Abstract Reasoning" (arXiv
2411.07279).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

Grid = tuple[tuple[int, ...], ...]
LARGEST = 30
"""Most rows, and most cells in a row."""


@dataclass(frozen=True)
class Pair:
    """A demonstration, or a test with its solution."""

    input: Grid
    output: Grid


@dataclass(frozen=True)
class Puzzle:
    """Demonstrations and one test."""

    demonstrations: tuple[Pair, ...]
    test: Pair

    def map(self, change: Callable[[Grid], Grid]) -> Puzzle:
        """The same change made to every grid."""

        def both(pair: Pair) -> Pair:
            return Pair(change(pair.input), change(pair.output))

        return Puzzle(tuple(both(p) for p in self.demonstrations), both(self.test))

    @property
    def grids(self) -> list[Grid]:
        return [g for p in (*self.demonstrations, self.test) for g in (p.input, p.output)]


# ------------------------------------------------------------------------------------------------------- text


def as_digits(grid: Grid) -> str:
    """A line of digits per row."""
    return "\n".join("".join(map(str, row)) for row in grid)


def as_lists(grid: Grid) -> str:
    """Python's list of lists."""
    return str([list(row) for row in grid])


COLOURS = (
    "#111",
    "#0b6ed1",
    "#e0352b",
    "#2faa3c",
    "#f5d21c",
    "#9a9a9a",
    "#d6179b",
    "#f08020",
    "#7fd4f5",
    "#7a0f22",
)


def as_svg(grid: Grid, cell: int = 12) -> str:
    """A picture of a grid in ARC's colours."""
    height, width = len(grid), len(grid[0])
    cells = "".join(
        f'<rect x="{c * cell}" y="{r * cell}" width="{cell}" height="{cell}" fill="{COLOURS[colour]}" '
        'stroke="#555"/>'
        for r, row in enumerate(grid)
        for c, colour in enumerate(row)
    )
    size = f'width="{width * cell}" height="{height * cell}" viewBox="0 0 {width * cell} {height * cell}"'
    return (
        f'<svg {size} role="img" aria-label="{as_digits(grid)}" style="margin:0 .4rem .4rem 0">{cells}</svg>'
    )


FORMS: dict[str, Callable[[Grid], str]] = {"digits": as_digits, "lists": as_lists}


LABEL = re.compile(
    r"(?:\*\*)?(?:(?:the|my|test|final|predicted|so|here|is)\s+)*(?:output|answer|grid|result|solution)(?:\s+(?:grid|is))*(?:\s*(?:\d+|\(\s*\d+\s*[x×]\s*\d+\s*\))(?=\s*(?:\*\*)?:))?\s*:?(?:\*\*)?:?\s*",
    re.IGNORECASE,
)
"""What may stand before a grid."""
FENCE = re.compile(r"`{3,}(?:[A-Za-z][\w-]*)?[ \t]*\n?")


def read_grid(text: str) -> Grid | None:
    """The grid that a text begins with, in either form; ``None`` where there is none. What follows it does
    not count. What is forgiven (:func:`forgiven` says which): a fence, a label, and space or commas between
    the cells."""
    return _read(text)[0]


def forgiven(text: str) -> list[str]:
    """What stood around or within a text's grid that a strict reader would not take: ``fence``, ``label``,
    ``spaces``; of a text without a grid nothing."""
    return _read(text)[1]


def _read(text: str) -> tuple[Grid | None, list[str]]:
    said: list[str] = []
    text = text.lstrip("\ufeff").strip()
    for _ in range(4):  # a label before a fence, or within it
        if fence := FENCE.match(text):
            said, text = [*said, "fence"], text[fence.end() :].lstrip()
        elif label := LABEL.match(text):
            said, text = [*said, "label"], text[label.end() :].lstrip()
        else:
            break
    grid, spaced = _begun(text)
    return grid, [] if grid is None else list(dict.fromkeys([*said, *(["spaces"] if spaced else [])]))


SPACED = re.compile(r"\d(?:[ \t]*[, |\t][ \t]*\d)*")
RULER = re.compile(r"[|:\- ]*-[|:\- ]*")
"""The line beneath a table's head."""


def _begun(text: str) -> tuple[Grid | None, bool]:
    """The grid that a text begins with, and whether anything stands between its cells."""
    if text.startswith("["):
        depth = 0
        for end, character in enumerate(text):
            depth += (character == "[") - (character == "]")
            if depth == 0:
                if text[1 : end + 1].lstrip().startswith("["):
                    return _checked(text[: end + 1]), False
                break  # a list for every row
        else:
            return None, False
    rows: list[list[int]] = []
    spaced = False
    for line in map(str.strip, text.split("\n")):
        if rows and RULER.fullmatch(line):
            continue
        bare = line.strip("`|[],. \t")
        if not (bare.isascii() and (bare.isdigit() or SPACED.fullmatch(bare))):
            break
        spaced = spaced or line != bare or not bare.isdigit()
        rows.append([int(c) for c in bare if c.isdigit()])
        if len(rows) > LARGEST:
            return None, False
    return make_grid(rows), spaced


def _checked(text: str) -> Grid | None:
    if len(text) > 8 * LARGEST * LARGEST:
        return None
    try:
        return make_grid(json.loads(text))
    except (json.JSONDecodeError, RecursionError):
        return None


def make_grid(rows: object) -> Grid | None:
    """Rows of colours as a grid, or ``None`` if they are not one."""
    if not isinstance(rows, list | tuple) or not 1 <= len(rows) <= LARGEST:
        return None
    for row in rows:
        if not isinstance(row, list | tuple) or not 1 <= len(row) <= LARGEST or len(row) != len(rows[0]):
            return None
        if any(type(c) is not int or not 0 <= c <= 9 for c in row):
            return None
    return tuple(tuple(row) for row in rows)


# ------------------------------------------------------------------------------------------------------ tools


def transpose(grid: Grid) -> Grid:
    return tuple(zip(*grid, strict=True))


def flip_rows(grid: Grid) -> Grid:
    """Upside down."""
    return grid[::-1]


def flip_columns(grid: Grid) -> Grid:
    """Left to right."""
    return tuple(row[::-1] for row in grid)


def rotate_90(grid: Grid) -> Grid:
    """Anticlockwise."""
    return transpose(flip_columns(grid))


def rotate_180(grid: Grid) -> Grid:
    return flip_rows(flip_columns(grid))


def rotate_270(grid: Grid) -> Grid:
    return transpose(flip_rows(grid))


def taller(grid: Grid) -> Grid:
    """Every row twice."""
    return tuple(row for row in grid for _ in range(2))


def wider(grid: Grid) -> Grid:
    """Every cell twice in its row."""
    return tuple(tuple(c for c in row for _ in range(2)) for row in grid)


def finer(grid: Grid) -> Grid:
    """Every cell as a square of four."""
    return taller(wider(grid))


def stack(first: Grid, second: Grid) -> Grid:
    return first + second


def beside(first: Grid, second: Grid) -> Grid:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def top(grid: Grid) -> Grid:
    return grid[: len(grid) // 2]


def bottom(grid: Grid) -> Grid:
    return grid[len(grid) // 2 :]


def left(grid: Grid) -> Grid:
    return tuple(row[: len(row) // 2] for row in grid)


def right(grid: Grid) -> Grid:
    return tuple(row[len(row) // 2 :] for row in grid)


def shift(rows: int, columns: int) -> Callable[[Grid], Grid]:
    """Move every cell, and let what leaves come in on the other side."""

    def move(grid: Grid) -> Grid:
        height, width = len(grid), len(grid[0])
        return tuple(
            tuple(grid[(r - rows) % height][(c - columns) % width] for c in range(width))
            for r in range(height)
        )

    return move


def recolour(colours: Sequence[int]) -> Callable[[Grid], Grid]:
    """Colour ``c`` becomes ``colours[c]``."""
    return lambda grid: tuple(tuple(colours[c] for c in row) for row in grid)


@dataclass(frozen=True)
class Tool:
    """A change of a grid, and the change that undoes it."""

    name: str
    apply: Callable[[Grid], Grid]
    undo: Callable[[Grid], Grid]


def _chain(first: Tool) -> Tool:
    return Tool(f"{first.name}, finer", lambda g: finer(first.apply(g)), lambda g: first.undo(_coarser(g)))


def _coarser(grid: Grid) -> Grid:
    return tuple(row[::2] for row in grid[::2])


TURNS = (
    Tool("rotate 90", rotate_90, rotate_270),
    Tool("rotate 180", rotate_180, rotate_180),
    Tool("rotate 270", rotate_270, rotate_90),
    Tool("flip rows", flip_rows, flip_rows),
    Tool("flip columns", flip_columns, flip_columns),
    Tool("transpose", transpose, transpose),
)
"""The changes that lose nothing and keep every size: also the views that a vote is taken over."""
BASIC = (
    *TURNS,
    Tool("reflect down", lambda g: stack(g, flip_rows(g)), top),
    Tool("reflect up", lambda g: stack(flip_rows(g), g), bottom),
    Tool("reflect right", lambda g: beside(g, flip_columns(g)), left),
    Tool("reflect left", lambda g: beside(flip_columns(g), g), right),
)
"""With a random translation (:func:`translation`) the basic tools."""
SIZE = (
    Tool("finer", finer, _coarser),
    Tool("taller", taller, lambda g: g[::2]),
    Tool("wider", wider, lambda g: tuple(row[::2] for row in g)),
)
CHAIN = tuple(_chain(t) for t in TURNS)
REPEAT = (
    Tool("repeat down", lambda g: stack(g, g), top),
    Tool("repeat right", lambda g: beside(g, g), left),
    Tool("repeat both", lambda g: stack(beside(g, g), beside(g, g)), lambda g: top(left(g))),
)


def translation(rng: random.Random) -> Tool:
    """A shift by up to three cells each way, the same for every grid of a puzzle."""
    rows, columns = rng.randrange(-3, 4), rng.randrange(-3, 4)
    return Tool(f"shift {rows}, {columns}", shift(rows, columns), shift(-rows, -columns))


def colour_permutation(rng: random.Random) -> Tool:
    """All ten colours permuted."""
    there = rng.sample(range(10), 10)
    back = [there.index(c) for c in range(10)]
    return Tool(f"colours {''.join(map(str, there))}", recolour(there), recolour(back))


# ------------------------------------------------------------------------------------ test-time training sets


def leave_out(demonstrations: Sequence[Pair], most: int = 2) -> list[Puzzle]:
    """Puzzles made of the demonstrations alone: one of them is the test, and it, or it and one more, are left
    out of what is shown. At least one stays shown."""
    puzzles = []
    for n_out in range(1, most + 1):
        if len(demonstrations) - n_out < 1:
            break
        for out in combinations(range(len(demonstrations)), n_out):
            shown = tuple(d for i, d in enumerate(demonstrations) if i not in out)
            puzzles += [Puzzle(shown, demonstrations[i]) for i in out]
    return puzzles


def augment(puzzles: Sequence[Puzzle], tools: Sequence[Tool], seed: str, limit: int = 250) -> list[Puzzle]:
    """The puzzles, each through every tool, and each result once more with colours and demonstrations
    permuted.

    None twice, none with a grid over 30 cells; more than ``limit`` are thinned at random. The same for the
    same ``seed``.
    """
    rng = random.Random(seed)
    made = [*puzzles, *(p.map(t.apply) for t in tools for p in puzzles)]
    fits = [p for p in made if all(max(len(g), len(g[0])) <= LARGEST for g in p.grids)]
    permuted = []
    for puzzle in fits:
        other = puzzle.map(colour_permutation(rng).apply)
        shown = tuple(rng.sample(other.demonstrations, len(other.demonstrations)))
        permuted.append(Puzzle(shown, other.test))
    distinct = list(dict.fromkeys([*fits, *permuted]))
    return distinct if len(distinct) <= limit else rng.sample(distinct, limit)
