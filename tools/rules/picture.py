"""The picture of what `compare.py` found."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(summary: dict[str, Any], path: Path) -> None:
    """Accuracy by variant in both domains, and the long runs round by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    every = summary["rows"]
    long = [r for r in every if r["variant"].startswith("rounds")]
    puzzles = [r for r in every if r["variant"].startswith("arc")]
    passages = [r for r in every if r not in long and r not in puzzles]
    figure, columns = plt.subplots(1, 2, figsize=(13, 7), layout="constrained", width_ratios=(1.25, 1))
    right = columns[1].get_subplotspec().subgridspec(2, 1, height_ratios=(max(1, len(puzzles)), 7))
    columns[1].remove()
    below, curves = figure.add_subplot(right[0]), figure.add_subplot(right[1])
    for axes, rows, title in (
        (columns[0], passages, "passages: held-out accuracy after two rounds"),
        (below, puzzles, "puzzles: solved after a round"),
    ):
        for place, row in enumerate(rows):
            a = row["accuracy"]
            colour = "#8a929c" if "random" in row["variant"] or "no RL" in row["variant"] else "#0b6e99"
            span = [[a["mean"] - a["low"]], [a["high"] - a["mean"]]]
            axes.errorbar(a["mean"], place, xerr=span, fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(rows)), [r["variant"].removeprefix("arc: ") for r in rows], fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel(f"{title}, 95 % interval")
        for row in rows:
            if "random" in row["variant"]:
                axes.axvline(row["accuracy"]["mean"], color="#d98c21", linestyle="--", linewidth=1)
    for number, variant in enumerate(dict.fromkeys(r["variant"] for r in long)):
        mine = [r for r in long if r["variant"] == variant]
        x = range(1, len(mine) + 1)
        colour = ("#0b6e99", "#7a9e3f", "#8a929c", "#d98c21")[number % 4]
        low, high = ([r["accuracy"][k] for r in mine] for k in ("low", "high"))
        curves.plot(
            x,
            [r["accuracy"]["mean"] for r in mine],
            "o-",
            color=colour,
            label=variant.removeprefix("rounds: "),
        )
        curves.fill_between(x, low, high, color=colour, alpha=0.15)
        curves.plot(x, [r["likeness of siblings"] for r in mine], "x:", color=colour)
    curves.plot([], [], "x:", color="black", label="likeness of siblings")
    curves.set_xlabel("round (passages, five inner loops each)")
    curves.set_ylabel("held-out accuracy, likeness")
    curves.legend(frameon=False, fontsize=8, loc="upper left", ncol=2)
    curves.set_ylim(0, 1.15)
    curves.set_xticks(range(1, 1 + max((int(r["after"].split()[-1]) for r in long), default=1)))
    for axes in (columns[0], below, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
