"""What the continual experiment says: for every strategy what was learnt, what stayed, and what was lost,
with intervals; and its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from seal.records import Json, SealError
from seal.report.figures import PALETTE
from seal.report.pages import page
from seal.stats import interval
from seal.store import read_json, write_whole

Floats = NDArray[np.float64]


def matrix(steps: Sequence[Json]) -> Floats:
    """(S, L, L): the score of passage j after step i; not a number where it was not asked, or not learnt
    yet."""
    n_sequences, length = len(steps[0]["scores"]), len(steps)
    found = np.full((n_sequences, length, length), np.nan)
    for i, step in enumerate(steps):
        found[:, i, step["first"] : i + 1] = np.array(step["scores"])
    return found


def summarise(records: Sequence[Json], command: str) -> Json:
    """One table over runs (seeds of the loop): a row per strategy. A sequence is the unit (a passage, where
    there is one sequence alone), and runs are crossed with units.

    Raises:
        SealError: the runs are not of the same strategies and lengths.
    """
    records = _by_seed(records)
    shapes = [
        [(x["strategy"], len(x["steps"]), len(x["steps"][0]["scores"])) for x in r["results"]]
        for r in records
    ]
    if any(shape != shapes[0] for shape in shapes):
        raise SealError(
            "the runs are not of the same strategies, sequences and lengths: one table cannot hold them"
        )
    rows, matrices = [], {}
    for place, result in enumerate(records[0]["results"]):
        runs = [(r, r["results"][place]["steps"]) for r in records]
        whole = np.stack([matrix(steps) for _, steps in runs])  # (R, S, L, L)
        length = whole.shape[-1]
        before = np.stack([np.array(r["untouched"]) for r, _ in runs])  # (R, S, L)
        own = np.diagonal(whole, axis1=2, axis2=3)
        untouched, diagonal, final = (_units(x) for x in (before, own, whole[:, :, -1]))
        transfer = _units(whole[:, :, -1, :-1] - own[..., :-1]) if length > 1 else np.zeros_like(final)
        lost = np.stack([r["baseline"]["known"] - np.array(steps[-1]["known"]) for r, steps in runs])
        row = {"setting": result["strategy"], "n_sequences": whole.shape[1], "length": length}
        scores = {
            "untouched": untouched,
            "diagonal": diagonal,
            "final": final,
            "backward_transfer": transfer,
            "old_knowledge_loss": lost,
        }
        for name, values in scores.items():
            row[name] = told(
                values, (0.0, 1.0) if name in ("untouched", "diagonal", "final") else (-1.0, 1.0)
            )
        row["kept"] = _kept(untouched, diagonal, final)
        row["gain_by_age"] = gain_by_age(whole, before)
        row["silent"] = _mean(steps[-1]["silent"] for _, steps in runs)
        row["edit_likelihood_loss"] = _mean(
            r["baseline"]["edits"] - float(np.mean(steps[-1]["edits"])) for r, steps in runs
        )
        row["kl"] = _mean(float(np.mean([s["kl"] for s in steps])) for _, steps in runs)
        row["dropped"] = sum(s["dropped"] for _, steps in runs for s in steps)
        if "routed right" in runs[0][1][-1]:
            row["routed_right"] = _mean(steps[-1]["routed right"] for _, steps in runs)
        row["tokens"] = round(_mean(s["tokens"] for _, steps in runs for s in steps))
        row["seconds"] = _mean(s["seconds"] for _, steps in runs for s in steps)
        rows.append(row)
        matrices[result["strategy"]] = [
            [None if np.isnan(x) else round(float(x), 4) for x in line] for line in _nanmean(whole)
        ]
    first = records[0]
    return {
        "command": command,
        "date": max(r["date"] for r in records),
        "machine": first["machine"],
        "seeds": [r["seed"] for r in records],
        "rows": rows,
        "matrices": matrices,
    }


def _by_seed(records: Sequence[Json]) -> list[Json]:
    """Runs of one seed over the same passages are one: their strategies stand in one table."""
    joined: dict[int, Json] = {}
    for record in records:
        same = joined.get(record["seed"])
        if same is None:
            joined[record["seed"]] = dict(record)
        elif same["untouched"] != record["untouched"]:
            raise SealError(f"two runs have the seed {record['seed']}, and their passages or models differ")
        else:
            same["results"] = [*same["results"], *record["results"]]
    return list(joined.values())


def _units(scores: Floats) -> Floats:
    """(R, S, L) → (R, S), or (R, L) where there is one sequence."""
    return scores[:, 0] if scores.shape[1] == 1 else scores.mean(-1)


def gain_by_age(whole: Floats, untouched: Floats) -> list[float | None]:
    """Mean gain over the untouched model 0, 1, 2, … edits after a passage's own, over all cells of the
    matrices (R, S, L, L) that were asked."""
    gains = whole - untouched[:, :, None, :]
    found = []
    for age in range(whole.shape[-1]):
        cells = np.diagonal(gains, -age, axis1=2, axis2=3)
        found.append(None if np.isnan(cells).all() else round(float(np.nanmean(cells)), 4))
    return found


def read_released(path: Path) -> tuple[Json, list[list[float | None]]]:
    """A row and the matrix of a result file of SEAL's continual experiment: ``mean_over_sequences`` is (K +
    1, K), the untouched model first; what is above the diagonal was not asked. It holds no single sequences,
    so there are no intervals.

    Raises:
        SealError: the file is none.
    """
    data = read_json(path)
    try:
        table = np.array(data["mean_over_sequences"], dtype=float)
        n_sequences = int(data["n_sequences"])
    except (KeyError, TypeError, ValueError) as error:
        raise SealError(f"{path} is no result file of SEAL's continual experiment: {error}") from error
    if table.ndim != 2 or table.shape[0] != table.shape[1] + 1 or not np.isfinite(table).all():
        raise SealError(
            f"{path} is no result file of SEAL's continual experiment: its matrix is {table.shape}, not (K + "
            "1, K)"
        )
    untouched, whole = table[:1], table[1:].copy()
    length = whole.shape[0]
    whole[np.triu_indices(length, 1)] = np.nan
    own, last = np.diagonal(whole), whole[-1]
    gain = float(own.mean() - untouched.mean())
    row: Json = {"setting": path.stem, "n_sequences": n_sequences, "length": length}
    means = {
        "untouched": untouched.mean(),
        "diagonal": own.mean(),
        "final": last.mean(),
        "backward_transfer": (last - own)[:-1].mean() if length > 1 else 0.0,
    }
    row |= {name: {"mean": round(float(x), 4)} for name, x in means.items()}
    row["kept"] = {"mean": round(float(last.mean() - untouched.mean()) / gain, 4)} if gain else None
    row["gain_by_age"] = gain_by_age(whole[None, None], untouched[None])
    return row, [[None if np.isnan(x) else round(float(x), 4) for x in line] for line in whole]


def _nanmean(whole: Floats) -> Floats:
    """Mean over runs and sequences; not a number where nothing was asked."""
    seen = ~np.isnan(whole[0, 0])
    out = np.full(seen.shape, np.nan)
    out[seen] = whole.mean((0, 1))[seen]
    return out


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)


def told(values: Floats, within: tuple[float, float] | None) -> Json:
    """Mean and interval of (R, S) scores, with the scores and their bounds, so that both can be computed
    again."""
    found = interval(values.tolist(), within=within)
    told = {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
    return {**told, "within": within and list(within), "scores": values.round(4).tolist()}


def _kept(untouched: Floats, diagonal: Floats, final: Floats) -> Json | None:
    """Share of the gain right after the own edit that is left at the end: a ratio of means, its interval by
    linearisation over runs and sequences. ``None`` where nothing was gained, or where there is one of them
    alone."""
    gain = float((diagonal - untouched).mean())
    if not gain or untouched.shape[1] == 1:
        return None
    ratio = float((final - untouched).mean()) / gain
    return told(ratio + ((final - untouched) - ratio * (diagonal - untouched)) / gain, None)


def table_lines(summary: Json) -> list[list[str]]:
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
        cells = [
            _cell(row.get(k))
            for k in ("untouched", "diagonal", "final", "backward_transfer", "kept", "old_knowledge_loss")
        ]
        note = f" (routed right {row['routed_right']:.3f})" if "routed_right" in row else ""
        rest = [f"{row['silent']:.3f}", f"{row['seconds']:.2f}"] if "silent" in row else ["–", "–"]
        lines.append([row["setting"] + note, *cells, *rest])
    return lines


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + (f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else "")


PUBLISHED = (0.107, 0.052, -0.026, -0.066, -0.069, -0.100, -0.124, -0.142)
"""Gain of a passage 0, 1, … edits after its own in the SEAL paper (continual self-editing by merging, 64
sequences of 8)."""
SMALL = 10
"""Passages up to which every cell is written out."""


def _figure(width: float, height: float, lines: int = 1, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(lines, columns, figsize=(width, height), layout="constrained", squeeze=False)


def heat_maps(summary: Json) -> Any:
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
        image = ax.imshow(
            values,
            vmin=0,
            vmax=1,
            cmap="cividis",
            aspect="equal" if small else "auto",
            interpolation="nearest",
        )
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


def age_curves(summary: Json) -> Any:
    """Gain over the untouched model by the number of edits since a passage's own, with the published curve
    for comparison."""
    figure, axes = _figure(8.2, 4.6)
    ax = axes[0, 0]
    for number, row in enumerate(summary["rows"]):
        points = binned([(age, 100 * x) for age, x in enumerate(row["gain_by_age"]) if x is not None])
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "os^Dvp"[number % 6], "markersize": 4}
        ax.plot(*zip(*points, strict=True), label=row["setting"], **style)
    ax.plot(
        range(len(PUBLISHED)),
        [100 * x for x in PUBLISHED],
        "--",
        color="#8a929c",
        label="merge, published (Qwen2.5-7B)",
    )
    ax.axhline(0, color="#8a929c", linewidth=0.8)
    ax.set_xlabel("edits since the passage's own")
    ax.set_ylabel("gain over the untouched model, points")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def binned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Many points, of few passages each, as means over tenths of the ages; the first, of the own edit,
    stays."""
    if len(points) <= 2 * SMALL:
        return [(float(age), gain) for age, gain in points]
    groups = np.array_split(np.array(points[1:]), SMALL)
    return [(0.0, points[0][1]), *((float(g[:, 0].mean()), float(g[:, 1].mean())) for g in groups)]


def write_page(path: Path, summary: Json) -> Path:
    """Table and pictures as one self-contained page."""
    head, *rows = table_lines(summary)
    drawn = {
        "Gain of a passage over the untouched model, by how many edits came after its own": age_curves(
            summary
        ),
        "Accuracy on each passage (column) after each edit (row)": heat_maps(summary),
    }
    image = Markup('<img alt="{}" src="data:image/png;base64,{}">')
    pictures = [(caption, image.format(caption, _png(figure))) for caption, figure in drawn.items()]
    write_whole(
        path,
        page("continual.html", title="What stays", summary=summary, head=head, rows=rows, pictures=pictures),
    )
    return path


def _png(figure: Any) -> str:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def draw(summary: Json, path: Path) -> None:
    """The heat maps as a file; the curves beside it, under the name with ``-ages``."""
    from matplotlib import pyplot as plt

    for figure, name in (
        (heat_maps(summary), path),
        (age_curves(summary), path.with_name(f"{path.stem}-ages{path.suffix}")),
    ):
        figure.savefig(name, dpi=150)
        plt.close(figure)


def with_released(summary: Json, others: Sequence[tuple[Json, list[list[float | None]]]]) -> Json:
    """The summary with rows and matrices of result files beside."""
    return summary | {
        "rows": [*summary["rows"], *(row for row, _ in others)],
        "matrices": summary["matrices"] | {row["setting"]: table for row, table in others},
    }
