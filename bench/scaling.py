"""One picture of all recorded inner-loop benchmarks: how much faster than one-by-one PEFT, by adapters side
by side.

python bench/scaling.py [FOLDER]        # reads FOLDER/inner_loop-*.json (bench/results/), writes
FOLDER/scaling.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results")
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
    for colour, marker, path in zip(
        colours, "os^vDP", sorted(folder.glob("inner_loop-*.json")), strict=False
    ):
        data = json.loads(path.read_text())
        one = next(r["seconds_per_edit"] for r in data["rows"] if r["way"] == "peft")
        mine = [r for r in data["rows"] if r["way"] == "seal"]
        work = data["workload"]
        label = f"{work['name']}: {work['weights'] / 1e6:.3g}M weights, rows of {work['tokens_per_row']:.0f}, batch {work['recipe']['batch_size']}"
        axes.plot(
            [r["K"] for r in mine],
            [one / r["seconds_per_edit"] for r in mine],
            marker=marker,
            color=colour,
            label=label,
        )
    axes.axhline(1, color="#999999", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="adapters side by side, K", ylabel="times as fast as PEFT one by one")
    ticks = [1, 2, 4, 8, 16, 32, 64]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "scaling.png", dpi=150)
    print(f"written: {folder / 'scaling.png'}")


if __name__ == "__main__":
    main()
