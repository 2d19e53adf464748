"""What the continual experiment says: for every strategy what was learnt, what stayed, and what was lost, with intervals; as a table, JSON, and
a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seal.stats import interval

Floats = NDArray[np.float64]
N_BOOTSTRAP = 4000


def matrix(steps: Sequence[dict[str, Any]]) -> Floats:
    """(S, L, L): the score of passage j after step i; not a number where it was not asked, or not learnt yet."""
    n_sequences, length = len(steps[0]["scores"]), len(steps)
    found = np.full((n_sequences, length, length), np.nan)
    for i, step in enumerate(steps):
        found[:, i, step["first"] : i + 1] = np.array(step["scores"])
    return found


def summarise(records: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """One table over runs (seeds of the loop): a row per strategy; a sequence is the unit, and runs are crossed with sequences."""
    rows, matrices = [], {}
    for place, result in enumerate(records[0]["results"]):
        runs = [(r, r["results"][place]["steps"]) for r in records]
        whole = np.stack([matrix(steps) for _, steps in runs])  # (R, S, L, L)
        length = whole.shape[-1]
        untouched = np.stack([np.array(r["untouched"]).mean(1) for r, _ in runs])  # (R, S)
        diagonal = np.diagonal(whole, axis1=2, axis2=3).mean(-1)
        final = whole[:, :, -1].mean(-1)
        before = np.diagonal(whole, axis1=2, axis2=3)[..., :-1]
        transfer = (whole[:, :, -1, :-1] - before).mean(-1) if length > 1 else np.zeros_like(final)
        lost = np.stack([r["baseline"]["known"] - np.array(steps[-1]["known"]) for r, steps in runs])
        row = {"setting": result["strategy"], "n_sequences": whole.shape[1], "length": length}
        for name, values in (
            ("untouched", untouched),
            ("diagonal", diagonal),
            ("final", final),
            ("backward_transfer", transfer),
            ("old_knowledge_loss", lost),
        ):
            row[name] = _interval(values)
        row["kept"] = _kept(untouched, diagonal, final)
        row["silent"] = _mean(steps[-1]["silent"] for _, steps in runs)
        row["edit_likelihood_loss"] = _mean(r["baseline"]["edits"] - float(np.mean(steps[-1]["edits"])) for r, steps in runs)
        row["kl"] = _mean(float(np.mean([s["kl"] for s in steps])) for _, steps in runs)
        row["dropped"] = sum(s["dropped"] for _, steps in runs for s in steps)
        if "routed right" in runs[0][1][-1]:
            row["routed_right"] = _mean(steps[-1]["routed right"] for _, steps in runs)
        row["tokens"] = round(_mean(s["tokens"] for _, steps in runs for s in steps))
        row["seconds"] = _mean(s["seconds"] for _, steps in runs for s in steps)
        rows.append(row)
        matrices[result["strategy"]] = [[None if np.isnan(x) else round(float(x), 4) for x in line] for line in _nanmean(whole)]
    first = records[0]
    return {
        "command": command, "date": max(r["date"] for r in records), "machine": first["machine"], "seeds": [r["seed"] for r in records],
        "rows": rows, "matrices": matrices,
    }  # fmt: skip


def _nanmean(whole: Floats) -> Floats:
    """Mean over runs and sequences; not a number where nothing was asked."""
    seen = ~np.isnan(whole[0, 0])
    out = np.full(seen.shape, np.nan)
    out[seen] = whole.mean((0, 1))[seen]
    return out


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)


def _interval(values: Floats) -> dict[str, float]:
    found = interval(values.tolist())
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def _kept(untouched: Floats, diagonal: Floats, final: Floats) -> dict[str, float] | None:
    """Share of the gain right after the own edit that is left at the end: a ratio of means, bootstrapped over runs and sequences.
    ``None`` where nothing was gained."""
    if diagonal.mean() == untouched.mean():
        return None
    rng = np.random.default_rng(0)
    n_runs, n = untouched.shape

    def ratio(r: Any, s: Any) -> float:
        u, d, f = (x[np.ix_(r, s)].mean() for x in (untouched, diagonal, final))
        return float((f - u) / (d - u)) if d != u else float("nan")

    draws = [ratio(rng.integers(0, n_runs, n_runs), rng.integers(0, n, n)) for _ in range(N_BOOTSTRAP)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {
        "mean": round(ratio(np.arange(n_runs), np.arange(n)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def table_lines(summary: dict[str, Any]) -> list[list[str]]:
    """The table as text cells, header first."""
    lines = [
        [
            "strategy",
            "untouched",
            "after own edit",
            "final",
            "backward transfer",
            "gain kept",
            "old knowledge lost",
            "silent",
            "s per edit",
        ]
    ]
    for row in summary["rows"]:
        cells = [_cell(row[k]) for k in ("untouched", "diagonal", "final", "backward_transfer", "kept", "old_knowledge_loss")]
        note = f" (routed right {row['routed_right']:.3f})" if "routed_right" in row else ""
        lines.append([row["setting"] + note, *cells, f"{row['silent']:.3f}", f"{row['seconds']:.2f}"])
    return lines


def _cell(value: dict[str, float] | None) -> str:
    return "–" if value is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _share(value: dict[str, float] | None) -> str:
    return "nothing" if value is None else f"{value['mean']:.0%}"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Heat maps, one per strategy: rows are steps, columns passages; and the share kept beside."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [r["setting"] for r in summary["rows"]]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.1 * columns + 0.8, 3.2 * lines), layout="constrained", squeeze=False)
    image = None
    for ax, row in zip(axes.flat, summary["rows"], strict=False):
        values = np.array(
            [[np.nan if x is None else x for x in line] for line in summary["matrices"][row["setting"]]], dtype=float
        )
        image = ax.imshow(values, vmin=0, vmax=1, cmap="cividis")
        small = len(values) <= 10
        for (i, j), value in np.ndenumerate(values):
            if small and not np.isnan(value):
                ax.text(
                    j,
                    i,
                    f"{value:.2f}".removeprefix("0"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if value < 0.6 else "black",
                )
        ax.set_title(f"{row['setting']}\nfinal {row['final']['mean']:.2f}, kept {_share(row['kept'])}", fontsize=9)
        ax.set_xticks(range(0, len(values), 1 if small else 10), range(1, len(values) + 1, 1 if small else 10), fontsize=7)
        ax.set_yticks(range(0, len(values), 1 if small else 10), range(1, len(values) + 1, 1 if small else 10), fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("after so many edits")
    for ax in axes[-1]:
        ax.set_xlabel("accuracy on passage")
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of questions answered correctly")
    figure.savefig(path, dpi=150)
    plt.close(figure)
