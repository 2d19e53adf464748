"""What the policy chooses, before and after RL, and whether the choice depends on the puzzle.

    python tools/arc/choices.py runs/arc-seed-0 runs/arc-seed-1 runs/arc-seed-2 --json
    docs/results/arc-choices.json --figure docs/arc-choices.png

Kinds of puzzle: *directed* (the rule does not commute with flips), *resizing* (the output has another size),
*plain* (neither). Mutual information (bits) between the kind and each choice over held-out edits, with a
permutation test: kinds are dealt out anew among tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from seal.domains import load_domain
from seal.domains.arc import grids
from seal.domains.arc.domain import ArcEdit
from seal.domains.arc.families import Family, behaviour, families

CHOICES = ("basic", "size", "chain", "repeat", "strategy", "learning_rate", "num_train_epochs")
SHUFFLES = 1000


def kind_of(family: Family) -> str:
    """One of *resizing*, *directed* and *plain*, by what the rule does to the probes."""
    made = behaviour(family.rule)
    same = behaviour(lambda g: g)
    if any((len(a), len(a[0])) != (len(b), len(b[0])) for a, b in zip(made, same, strict=True)):
        return "resizing"
    flips = (grids.flip_rows, grids.flip_columns, grids.transpose)
    return (
        "plain" if all(behaviour(lambda g, t=t: t(family.rule(t(g)))) == made for t in flips) else "directed"
    )  # type: ignore[misc]


def choices_of(text: str) -> dict[str, Any] | None:
    try:
        edit = ArcEdit.model_validate_json(text).model_dump()
    except ValueError:
        return None
    flags = {k.split("_")[1]: v for k, v in edit["data_generation"].items()}
    return {**flags, **edit["training"]}


def information(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Mutual information of two discrete variables from samples, in bits (plug-in estimate)."""
    n = len(pairs)
    both, left, right = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    return sum(c / n * math.log2(c * n / (left[a] * right[b])) for (a, b), c in both.items())


def tested(by_task: dict[str, list[Any]], kinds: dict[str, str]) -> dict[str, float]:
    """Mutual information, what it is by chance, and the share of shufflings that reach it."""
    tasks = sorted(by_task)
    found = information([(kinds[t], c) for t in tasks for c in by_task[t]])
    rng = random.Random(0)
    chance = []
    for _ in range(SHUFFLES):
        dealt = dict(zip(tasks, rng.sample([kinds[t] for t in tasks], len(tasks)), strict=True))
        chance.append(information([(dealt[t], c) for t in tasks for c in by_task[t]]))
    p = (1 + sum(c >= found for c in chance)) / (1 + SHUFFLES)
    return {"bits": round(found, 4), "by chance": round(sum(chance) / SHUFFLES, 4), "p": round(p, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    by_name = {f.name: f for f in families()}
    writers = ("no RL", "random control", "SEAL round 1")
    record: dict[str, Any] = {
        "command": f"python tools/arc/choices.py {' '.join(map(str, args.runs))}",
        "date": date.today().isoformat(),
        "writers": {},
    }
    kinds: dict[str, str] = {}
    for writer in writers:
        chosen: dict[str, dict[str, list[Any]]] = {c: {} for c in CHOICES}
        for run in args.runs:
            config = json.loads((run / "config.json").read_text())
            tasks = load_domain(config["domain"]["name"], config["domain"]["options"]).tasks("eval")
            texts = json.loads((run / "eval" / writer.replace(" ", "-") / "texts.json").read_text())
            for task, siblings in zip(tasks, texts, strict=True):
                kinds[task.id] = kind_of(by_name[task.data["family"]])
                for edit in filter(None, map(choices_of, siblings)):
                    for choice in CHOICES:
                        chosen[choice].setdefault(task.id, []).append(edit[choice])
        shares = {
            c: {
                str(k): round(v / sum(n.values()), 4) for k, v in sorted(n.items(), key=lambda kv: str(kv[0]))
            }
            for c in CHOICES
            if (n := Counter(x for xs in chosen[c].values() for x in xs))
        }
        record["writers"][writer] = {
            "shares": shares,
            "information": {c: tested(chosen[c], kinds) for c in CHOICES},
        }
    record["kinds"] = dict(Counter(kinds.values()))
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.figure:
        draw(record, writers, args.figure)


def draw(record: dict[str, Any], writers: Sequence[str], path: Path) -> None:
    """Shares of every level of every choice, by writer."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 5.2), layout="constrained")
    colours = ("#9aa2ab", "#d98c21", "#0b6e99")
    for ax, choice in zip(axes.flat, CHOICES, strict=False):
        levels = sorted({k for w in writers for k in record["writers"][w]["shares"][choice]}, key=_order)
        for i, writer in enumerate(writers):
            shares = record["writers"][writer]["shares"][choice]
            x = [j + 0.27 * (i - 1) for j in range(len(levels))]
            ax.bar(x, [shares.get(k, 0) for k in levels], 0.25, color=colours[i], label=writer)
        names = [k.removeprefix("train_using_").removesuffix("_tokens") for k in levels]
        ax.set_xticks(
            range(len(levels)),
            [f"{float(n):g}" if choice == "learning_rate" else n for n in names],
            fontsize=8,
        )
        ax.tick_params(axis="x", rotation=45 if choice == "learning_rate" else 0)
        ax.set_title(choice + (" tools" if choice in CHOICES[:4] else ""), fontsize=10)
        ax.set_ylim(0, 1)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[0, 0].set_ylabel("share of held-out edits")
    axes[1, 0].set_ylabel("share of held-out edits")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 3].axis("off")
    axes[1, 3].legend(handles, labels, frameon=False, loc="center")
    figure.savefig(path, dpi=150)


def _order(level: str) -> tuple[int, float, str]:
    try:
        return 0, float(level), ""
    except ValueError:
        return 1, 0.0, level


if __name__ == "__main__":
    main()
