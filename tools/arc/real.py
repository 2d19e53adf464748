"""Real ARC-AGI-1 with the embedded grid model: every task of small grids, in context and with test-time
training.

    PYTHONPATH=tools/arc python tools/arc/real.py

Training and evaluation tasks whose grids have at most 64 cells and whose prompt fits. The model has seen no
ARC task. Writes docs/results/arc-real.json with counts and the names of the tasks solved.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from curate import solved

from seal.domains.arc import Arc
from seal.domains.arc.domain import GRIDS_ORACLE
from seal.domains.arc.puzzles import read_tasks
from seal.lora.load import load_model
from seal.lora.records import ModelSpec, Recipe
from seal.machine import machine
from seal.records import Edit, Task

HERE = Path(__file__).resolve().parents[2]
RECIPE = Recipe(rank=16, alpha=16, targets="all-linear", schedule="cosine", batch_size=2)


def small(most: int, longest: int, domain: Arc, tokens: int) -> list[tuple[str, Task]]:
    """(set, task) for every task that fits: grids of at most ``most`` cells, sides at most ``longest``, rows
    within ``tokens``."""
    found = []
    for name, tasks in zip(("training", "evaluation"), read_tasks("arc-1"), strict=True):
        for key, record in sorted(tasks.items()):
            grids = [p[k] for part in ("train", "test") for p in record[part] for k in ("input", "output")]
            task = Task(key, record)
            fits = (
                max(len(g) * len(g[0]) for g in grids) <= most
                and max(max(len(g), len(g[0])) for g in grids) <= longest
            )
            if fits and max(len(q.prompt.text) + len(q.gold) for q in domain.queries(task)) + 20 <= tokens:
                found.append((name, task))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--side", type=int, default=12)
    parser.add_argument("--out", type=Path, default=HERE / "docs/results/arc-real.json")
    args = parser.parse_args()
    policy = load_model(ModelSpec(name="grids", bf16="auto"))
    domain = Arc(limit=40, max_steps=375, batch_size=2)
    tasks = small(args.cells, args.side, domain, policy.context)
    edit = GRIDS_ORACLE.model_dump_json()
    kept = [(s, t) for s, t in tasks if isinstance(domain.parse(t, edit), Edit)]
    names = [t.id for _, t in kept]
    shown = solved(policy, domain, [t for _, t in kept], None, 0)
    trained = [solved(policy, domain, [t for _, t in kept], edit, seed, RECIPE) for seed in range(3)]
    rows = {}
    for part in ("training", "evaluation"):
        mine = [i for i, (s, _) in enumerate(kept) if s == part]
        rows[part] = {
            "tasks": len(mine),
            "in context": sum(shown[i] for i in mine),
            "test-time training, by seed": [sum(t[i] for i in mine) for t in trained],
            "solved in context": [names[i] for i in mine if shown[i]],
            "solved by training, every seed": [names[i] for i in mine if all(t[i] for t in trained)],
            "solved by training, some seed": [names[i] for i in mine if any(t[i] for t in trained)],
        }
        print(
            part,
            {
                k: v if not isinstance(v, list) or not v or isinstance(v[0], int) else len(v)
                for k, v in rows[part].items()
            },
        )
    record = {
        "command": "PYTHONPATH=tools/arc python tools/arc/real.py",
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "most_cells": args.cells,
        "longest_side": args.side,
        "edit": json.loads(edit),
        "recipe": RECIPE.model_dump(),
        "sets": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
