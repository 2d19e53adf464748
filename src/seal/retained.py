"""What the continual experiment says: for every strategy what was learnt, what stayed, and what was lost, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seal.stats import interval
from seal.store import read_json
from seal.types import SealError

Floats = NDArray[np.float64]


def matrix(steps: Sequence[dict[str, Any]]) -> Floats:
    """(S, L, L): the score of passage j after step i; not a number where it was not asked, or not learnt yet."""
    n_sequences, length = len(steps[0]["scores"]), len(steps)
    found = np.full((n_sequences, length, length), np.nan)
    for i, step in enumerate(steps):
        found[:, i, step["first"] : i + 1] = np.array(step["scores"])
    return found


def summarise(records: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """One table over runs (seeds of the loop): a row per strategy. A sequence is the unit (a passage, where there is one sequence alone),
    and runs are crossed with units.

    Raises:
        SealError: the runs are not of the same strategies and lengths.
    """
    records = _by_seed(records)
    shapes = [[(x["strategy"], len(x["steps"]), len(x["steps"][0]["scores"])) for x in r["results"]] for r in records]
    if any(shape != shapes[0] for shape in shapes):
        raise SealError("the runs are not of the same strategies, sequences and lengths: one table cannot hold them")
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
            "untouched": untouched, "diagonal": diagonal, "final": final, "backward_transfer": transfer, "old_knowledge_loss": lost,
        }  # fmt: skip
        for name, values in scores.items():
            row[name] = told(values, (0.0, 1.0) if name in ("untouched", "diagonal", "final") else (-1.0, 1.0))
        row["kept"] = _kept(untouched, diagonal, final)
        row["gain_by_age"] = gain_by_age(whole, before)
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


def _by_seed(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one seed over the same passages are one: their strategies stand in one table."""
    joined: dict[int, dict[str, Any]] = {}
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
    """Mean gain over the untouched model 0, 1, 2, … edits after a passage's own, over all cells of the matrices (R, S, L, L) that were
    asked."""
    gains = whole - untouched[:, :, None, :]
    found = []
    for age in range(whole.shape[-1]):
        cells = np.diagonal(gains, -age, axis1=2, axis2=3)
        found.append(None if np.isnan(cells).all() else round(float(np.nanmean(cells)), 4))
    return found


def read_released(path: Path) -> tuple[dict[str, Any], list[list[float | None]]]:
    """A row and the matrix of a result file of SEAL's continual experiment: ``mean_over_sequences`` is (K + 1, K), the untouched model first;
    what is above the diagonal was not asked. It holds no single sequences, so there are no intervals.

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
        raise SealError(f"{path} is no result file of SEAL's continual experiment: its matrix is {table.shape}, not (K + 1, K)")
    untouched, whole = table[:1], table[1:].copy()
    length = whole.shape[0]
    whole[np.triu_indices(length, 1)] = np.nan
    own, last = np.diagonal(whole), whole[-1]
    gain = float(own.mean() - untouched.mean())
    row: dict[str, Any] = {"setting": path.stem, "n_sequences": n_sequences, "length": length}
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


def told(values: Floats, within: tuple[float, float] | None) -> dict[str, Any]:
    """Mean and interval of (R, S) scores, with the scores and their bounds, so that both can be computed again."""
    found = interval(values.tolist(), within=within)
    told = {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
    return {**told, "within": within and list(within), "scores": values.round(4).tolist()}


def _kept(untouched: Floats, diagonal: Floats, final: Floats) -> dict[str, Any] | None:
    """Share of the gain right after the own edit that is left at the end: a ratio of means, its interval by linearisation over runs and
    sequences. ``None`` where nothing was gained, or where there is one of them alone."""
    gain = float((diagonal - untouched).mean())
    if not gain or untouched.shape[1] == 1:
        return None
    ratio = float((final - untouched).mean()) / gain
    return told(ratio + ((final - untouched) - ratio * (diagonal - untouched)) / gain, None)


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
        cells = [
            _cell(row.get(k)) for k in ("untouched", "diagonal", "final", "backward_transfer", "kept", "old_knowledge_loss")
        ]
        note = f" (routed right {row['routed_right']:.3f})" if "routed_right" in row else ""
        rest = [f"{row['silent']:.3f}", f"{row['seconds']:.2f}"] if "silent" in row else ["–", "–"]
        lines.append([row["setting"] + note, *cells, *rest])
    return lines


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + (f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else "")
