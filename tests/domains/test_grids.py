"""Grids, augmentation tools and puzzle families, by their properties."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal.domains.arc import families, grids
from seal.domains.arc.grids import BASIC, CHAIN, REPEAT, SIZE, Grid, Pair, Puzzle

ROOT = Path(__file__).parents[2]


@st.composite
def some_grids(draw: st.DrawFn, largest: int = 30) -> Grid:
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    cells = draw(st.lists(st.integers(0, 9), min_size=height * width, max_size=height * width))
    return tuple(tuple(cells[r * width : (r + 1) * width]) for r in range(height))


# ------------------------------------------------------------------------------------------------------ grids


@given(
    grid=some_grids(12),
    form=st.sampled_from(sorted(grids.FORMS)),
    after=st.sampled_from(["", "\n", "\n\nInput:\n", " and so on"]),
)
@settings(deadline=None)
def test_a_grid_is_read_back_from_its_text(grid: Grid, form: str, after: str) -> None:
    text = grids.FORMS[form](grid)
    if form == "digits" and after.startswith(" "):
        after = "\n" + after
    assert grids.read_grid(text + after) == grid


@pytest.mark.parametrize(
    "text", ["", "abc", "12\n345", "[[1, 2], [3]]", "[[1, 10]]", "[[-1]]", "[[1.0]]", "[[true]]", "[", "[" * 10_000, "[[1]" * 5_000,
             "1" * 31, "1\n" * 31, "[]", "[[]]", "٣٤", "[[1e999]]"],
)  # fmt: skip
def test_what_is_no_grid_is_none(text: str) -> None:
    assert grids.read_grid(text) is None


@given(grid=some_grids(15), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_every_tool_is_undone_and_makes_a_grid(grid: Grid, seed: int) -> None:
    rng = grids.random.Random(seed)
    for tool in (*BASIC, *SIZE, *CHAIN, *REPEAT, grids.translation(rng), grids.colour_permutation(rng)):
        changed = tool.apply(grid)
        assert grids.make_grid(changed) == changed
        assert tool.undo(changed) == grid, tool.name


@given(grid=some_grids(8))
@settings(deadline=None, max_examples=50)
def test_tools_do_what_their_names_say(grid: Grid) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.array(grid)

    def same(found: Grid, expected: object) -> bool:
        return numpy.array_equal(numpy.array(found), expected)

    by_name = {t.name: t.apply(grid) for t in (*BASIC, *SIZE, *CHAIN, *REPEAT)}
    for turns in (1, 2, 3):
        assert same(by_name[f"rotate {90 * turns}"], numpy.rot90(array, turns))
    assert same(by_name["flip rows"], array[::-1]) and same(by_name["flip columns"], array[:, ::-1])
    assert same(by_name["transpose"], array.T)
    assert same(by_name["finer"], numpy.kron(array, numpy.ones((2, 2), int)))
    assert same(by_name["taller"], numpy.repeat(array, 2, 0)) and same(
        by_name["wider"], numpy.repeat(array, 2, 1)
    )
    assert same(by_name["transpose, finer"], numpy.kron(array.T, numpy.ones((2, 2), int)))
    assert same(by_name["repeat down"], numpy.tile(array, (2, 1))) and same(
        by_name["repeat both"], numpy.tile(array, (2, 2))
    )
    assert same(by_name["reflect down"], numpy.concatenate([array, array[::-1]], 0))
    assert same(by_name["reflect left"], numpy.concatenate([array[:, ::-1], array], 1))


@given(pairs=st.lists(st.tuples(some_grids(4), some_grids(4)), min_size=1, max_size=6))
@settings(deadline=None)
def test_leaving_out_makes_every_puzzle_once_and_shows_no_test(pairs: list[tuple[Grid, Grid]]) -> None:
    demonstrations = [Pair(a, b) for a, b in pairs]
    n = len(demonstrations)
    puzzles = grids.leave_out(demonstrations)
    assert len(puzzles) == (n if n > 1 else 0) + (n * (n - 1) if n > 2 else 0)
    for puzzle in puzzles:
        assert puzzle.test in demonstrations and set(puzzle.demonstrations) <= set(demonstrations)
        assert len(puzzle.demonstrations) in (n - 1, n - 2)


@given(
    pairs=st.lists(st.tuples(some_grids(10), some_grids(10)), min_size=2, max_size=4),
    limit=st.integers(1, 250),
)
@settings(deadline=None, max_examples=25)
def test_augmentation_is_bounded_and_deterministic(pairs: list[tuple[Grid, Grid]], limit: int) -> None:
    puzzles = grids.leave_out([Pair(a, b) for a, b in pairs])
    tools = (*BASIC, *SIZE, *CHAIN, *REPEAT)
    made = grids.augment(puzzles, tools, "seed", limit)
    assert made == grids.augment(puzzles, tools, "seed", limit)
    assert 1 <= len(made) <= limit and len(set(made)) == len(made)
    assert all(max(len(g), len(g[0])) <= 30 for p in made for g in p.grids)


def test_a_grid_that_outgrows_the_board_is_dropped() -> None:
    large = tuple(tuple(1 for _ in range(16)) for _ in range(16))
    puzzles = grids.leave_out([Pair(large, ((1,),)), Pair(((2,),), ((3,),))])
    assert len(grids.augment(puzzles, SIZE, "s")) == len(grids.augment(puzzles, (), "s"))


def test_a_change_is_made_to_demonstrations_and_test_alike() -> None:
    puzzle = Puzzle((Pair(((1, 2),), ((2, 1),)),), Pair(((3, 4),), ((4, 3),)))
    assert puzzle.map(grids.transpose) == Puzzle(
        (Pair(((1,), (2,)), ((2,), (1,))),), Pair(((3,), (4,)), ((4,), (3,)))
    )


# --------------------------------------------------------------------------------------------------- families


def test_families_differ_in_what_they_do_and_not_in_name_alone() -> None:
    every = families.families()
    assert len(every) > 2000
    behaviours = {families.behaviour(f.rule) for f in every}
    assert len(behaviours) == len(every)
    names = {f.name for f in every}
    assert "rotate 180, then flip rows" not in names  # the other flip
    assert not {"flip rows, then flip rows", "rotate 90, then rotate 270"} & names  # nothing at all


def test_held_out_families_are_no_kin_of_known_ones_nor_of_each_other() -> None:
    known, held = families.known_families(), families.held_families()
    assert len(held) > 200 and all(", then " in f.name for f in held)
    seen = {families.behaviour(f.rule) for f in known}
    for family in held:
        turned = {
            families.behaviour(lambda g, t=t, f=family: t.apply(f.rule(t.undo(g)))) for t in grids.TURNS
        }  # type: ignore[misc]
        turned.add(families.behaviour(family.rule))
        assert not turned & seen
        seen |= turned


def test_a_puzzle_is_the_same_for_its_seed_and_shows_its_rule() -> None:
    for family in families.families(pairs=False):
        made = families.puzzle(family, "a")
        assert made == families.puzzle(family, "a") != families.puzzle(family, "b")
        assert len(made.demonstrations) == 3
        assert len({p.input for p in (*made.demonstrations, made.test)}) == 4
        for pair in (*made.demonstrations, made.test):
            assert pair.output == family.rule(pair.input) != pair.input
            assert grids.make_grid(pair.output) == pair.output


@given(grid=some_grids(6))
@settings(deadline=None, max_examples=50)
def test_falling_keeps_every_cell_and_trails_keep_every_coloured_one(grid: Grid) -> None:
    by_name = {f.name: f.rule for f in families.families(pairs=False)}
    for way in ("up", "down", "left", "right"):
        fallen = by_name[f"fall {way}"](grid)
        assert sorted(c for row in fallen for c in row) == sorted(c for row in grid for c in row)
        assert by_name[f"fall {way}"](fallen) == fallen
        trailed = by_name[f"trail {way}"](grid)
        assert all(
            new == old or not old
            for a, b in zip(trailed, grid, strict=True)
            for new, old in zip(a, b, strict=True)
        )
