"""Choose the families that the embedded grid model is not trained on: writes
``src/seal/domains/arc/held_out.json``.

Pretraining turns puzzles and permutes their colours, so a family is held out together with whatever a turn or
other colours make of
it: a rule seen lying on its side has been seen. Families so related are a *kin*; kins are held out whole, and
of each one family stands for all, so that puzzles to train on and to be tested on are no kin either.
"""

from __future__ import annotations

import json
import random
import re

from seal.domains.arc import grids
from seal.domains.arc.families import HELD_OUT, Family, behaviour, families
from seal.domains.arc.grids import TURNS, Grid, Tool

SHARE = 0.55


def kins() -> list[list[Family]]:
    """All families, grouped."""
    every = families()
    root = list(range(len(every)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    first: dict[object, int] = {}
    views = [*TURNS, Tool("transpose the other way", _other_way, _other_way)]
    for i, family in enumerate(every):
        keys: list[object] = [
            re.sub(r"\d+( \d+)?$|\d+( \d+)?(?=, then)", "c", family.name),
            behaviour(family.rule),
        ]
        keys += [behaviour(lambda g, t=t, f=family: t.apply(f.rule(t.undo(g)))) for t in views]  # type: ignore[misc]
        for key in keys:
            root[find(i)] = find(first.setdefault(key, i))
    groups: dict[int, list[Family]] = {}
    for i, family in enumerate(every):
        groups.setdefault(find(i), []).append(family)
    return list(groups.values())


def _other_way(grid: Grid) -> Grid:
    return grids.rotate_180(grids.transpose(grid))


def main() -> None:
    """Hold out more than half of the kins that hold no single rule."""
    free = [kin for kin in kins() if all(", then " in f.name for f in kin)]
    chosen = random.Random(0).sample(free, round(SHARE * len(free)))
    HELD_OUT.write_text(json.dumps([[f.name for f in kin] for kin in chosen], indent=0) + "\n")
    print(
        f"{len(families())} families, {len(free)} kins without a single rule, {len(chosen)} held out: "
        f"{sum(map(len, chosen))} families"
    )


if __name__ == "__main__":
    main()
