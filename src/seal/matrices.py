"""Pictures of what stays: a heat map for each strategy, the gain by age, and a page that holds both with the table."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seal.retained import table_lines
from seal.store import write_whole

PUBLISHED = (0.107, 0.052, -0.026, -0.066, -0.069, -0.100, -0.124, -0.142)
"""Gain of a passage 0, 1, … edits after its own in the SEAL paper (continual self-editing by merging, 64 sequences of 8)."""
SMALL = 10
"""Passages up to which every cell is written out."""
COLOURS = (
    "#0b6e99",
    "#d98c21",
    "#7a9e3f",
    "#a64d79",
    "#5b5ea6",
    "#b5651d",
    "#2f8f83",
    "#c0392b",
    "#6b7280",
    "#111827",
    "#8e6c8a",
)


def _figure(width: float, height: float, lines: int = 1, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(lines, columns, figsize=(width, height), layout="constrained", squeeze=False)


def heat_maps(summary: dict[str, Any]) -> Any:
    """One map per strategy: rows are steps, columns passages."""
    rows = summary["rows"]
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = _figure(3.1 * columns + 0.8, 3.3 * lines + 0.6, lines, columns)
    image = None
    for ax, row in zip(axes.flat, rows, strict=False):
        table = summary["matrices"][row["setting"]]
        values = np.array([[np.nan if x is None else x for x in line] for line in table], dtype=float)
        small = len(values) <= SMALL
        steps = [
            i for i in range(len(values)) if small or i == 0 or not np.isnan(values[i, 0])
        ]  # a long stream is asked now and then
        values = values[steps]
        image = ax.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="equal" if small else "auto", interpolation="nearest")
        for (i, j), value in np.ndenumerate(values):
            if small and not np.isnan(value):
                text, ink = f"{value:.2f}".removeprefix("0"), "white" if value < 0.6 else "black"
                ax.text(j, i, text, ha="center", va="center", fontsize=7, color=ink)
        kept = "nothing gained" if row["kept"] is None else f"{row['kept']['mean']:.0%} of the gain kept"
        ax.set_title(f"{row['setting']}\nfinal {row['final']['mean']:.2f}, {kept}", fontsize=9)
        ticks = range(0, values.shape[1], 1 if small else max(1, values.shape[1] // 10))
        ax.set_xticks(ticks, [t + 1 for t in ticks], fontsize=7)
        ax.set_yticks(range(len(steps)), [t + 1 for t in steps], fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("after so many edits")
    for ax in axes[-1]:
        ax.set_xlabel("accuracy on passage")
    for ax in axes.flat[len(rows) :]:
        ax.axis("off")
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of questions answered correctly")
    return figure


def age_curves(summary: dict[str, Any]) -> Any:
    """Gain over the untouched model by the number of edits since a passage's own, with the published curve for comparison."""
    figure, axes = _figure(8.2, 4.6)
    ax = axes[0, 0]
    for number, row in enumerate(summary["rows"]):
        points = binned([(age, 100 * x) for age, x in enumerate(row["gain_by_age"]) if x is not None])
        style = {"color": COLOURS[number % len(COLOURS)], "marker": "os^Dvp"[number % 6], "markersize": 4}
        ax.plot(*zip(*points, strict=True), label=row["setting"], **style)
    ax.plot(range(len(PUBLISHED)), [100 * x for x in PUBLISHED], "--", color="#8a929c", label="merge, published (Qwen2.5-7B)")
    ax.axhline(0, color="#8a929c", linewidth=0.8)
    ax.set_xlabel("edits since the passage's own")
    ax.set_ylabel("gain over the untouched model, points")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def binned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Many points, of few passages each, as means over tenths of the ages; the first, of the own edit, stays."""
    if len(points) <= 2 * SMALL:
        return [(float(age), gain) for age, gain in points]
    groups = np.array_split(np.array(points[1:]), SMALL)
    return [(0.0, points[0][1]), *((float(g[:, 0].mean()), float(g[:, 1].mean())) for g in groups)]


def write_page(path: Path, summary: dict[str, Any]) -> Path:
    """Table and pictures as one self-contained page."""
    head, *rows = table_lines(summary)
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    pictures = "".join(
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{_png(figure)}"><figcaption>{html.escape(text)}</figcaption></figure>'
        for text, figure in (
            ("Gain of a passage over the untouched model, by how many edits came after its own", age_curves(summary)),
            ("Accuracy on each passage (column) after each edit (row)", heat_maps(summary)),
        )
    )
    write_whole(
        path,
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>What stays</title><style>body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid "
        "#ddd;white-space:nowrap}.wide{overflow-x:auto}img{max-width:100%}figure{margin:2rem 0}figcaption{color:#555}</style>"
        f"<h1>What stays</h1><p>{summary['rows'][0]['n_sequences']} sequences of {summary['rows'][0]['length']} passages, seeds "
        f"{html.escape(str(summary['seeds']))}; {html.escape(summary['machine'])}, {summary['date']}.</p>"
        f'<div class="wide"><table><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr>{cells}</table></div>{pictures}'
        f"<p>Made by <code>{html.escape(summary['command'])}</code></p></html>\n",
    )
    return path


def _png(figure: Any) -> str:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def draw(summary: dict[str, Any], path: Path) -> None:
    """The heat maps as a file; the curves beside it, under the name with ``-ages``."""
    from matplotlib import pyplot as plt

    for figure, name in ((heat_maps(summary), path), (age_curves(summary), path.with_name(f"{path.stem}-ages{path.suffix}"))):
        figure.savefig(name, dpi=150)
        plt.close(figure)


def with_released(summary: dict[str, Any], others: Sequence[tuple[dict[str, Any], list[list[float | None]]]]) -> dict[str, Any]:
    """The summary with rows and matrices of result files beside."""
    return summary | {
        "rows": [*summary["rows"], *(row for row, _ in others)],
        "matrices": summary["matrices"] | {row["setting"]: table for row, table in others},
    }
