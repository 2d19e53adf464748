"""What leaves a run for papers and trackers: its figures as SVG with their data as CSV, and its numbers by
round."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal.domains import load_domain
from seal.domains.knowledge.features import mean_features
from seal.records import Json, SealError, settings_of
from seal.report.figures import accuracy_figure, changes_figure, reward_figure
from seal.report.tables import load_runs, round_rewards, summarise, texts_of
from seal.store import Stage, read_config, write_whole


def figures_of(folder: Path) -> dict[str, tuple[Any, list[Json]]]:
    """A run's figures by name, each with its data as rows.

    Raises:
        SealError: the run has no results.
    """
    records = load_runs([folder])
    summary = summarise(records, records[0]["command"])
    rewards = round_rewards(folder, "seal", summary["rounds"])
    config = read_config(folder)
    domain = load_domain(config["domain"]["name"], config["domain"]["options"])
    tasks = list(domain.tasks("eval"))
    changes = {
        name: mean_features(tasks, texts, domain.features)
        for name, texts in texts_of(folder, summary).items()
    }
    accuracy = [
        {k: r[k] for k in ("setting", "accuracy", "low", "high", "n_passages", "silent", "tokens")}
        for r in summary["rows"]
    ]
    found = {"accuracy": (accuracy_figure(summary), accuracy)}
    if rewards:
        found["rewards"] = (reward_figure(rewards, config["inner"]["reward"]), [dict(r) for r in rewards])
    if changes:
        found["edits"] = (changes_figure(changes), [{"writer": name, **row} for name, row in changes.items()])
    return found


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Every figure of a run as SVG, and its data as CSV, in a new folder.

    Raises:
        SealError: the folder is there, or the run has no results.
    """
    if out.exists():
        raise SealError(
            f"{out} exists already, and nothing is overwritten: give another name, or move it away"
        )
    written = []
    for name, (figure, rows) in figures_of(folder).items():
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
        write_whole(out / f"{name}.svg", text.getvalue())
        write_whole(out / f"{name}.csv", csv_text(rows))
        written += [out / f"{name}.svg", out / f"{name}.csv"]
    return written


def csv_text(rows: Sequence[Json]) -> str:
    """Rows as CSV; the columns are all their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def metrics_of(folder: Path) -> Iterator[tuple[int, str, float]]:
    """(round, name, value) of a run: rewards, shares and times of each round tried so far, and the table of
    writers at the last."""
    last = 0
    rounds = [p for p in (folder / "seal").glob("round-*") if p.is_dir() and p.name[6:].isdigit()]
    for row in round_rewards(folder, "seal", len(rounds)):
        last = int(row["round"])
        for name in ("mean", "low", "high", "best", "after", "before", "bad", "attempts"):
            yield last, f"reward/{name}", float(row[name])
        tried = Stage(folder / f"seal/round-{last}").attempts()
        yield last, "attempt/seconds", sum(a.seconds for a in tried) / len(tried)
        yield last, "attempt/silent", sum(a.silent for a in tried) / len(tried)
    if (folder / "results.json").exists():
        records = load_runs([folder])
        summary = summarise(records, "")
        known = settings_of(summary["rounds"])
        for told in summary["rows"]:
            name = known[told["setting"]].key if told["setting"] in known else told["setting"]
            yield last, f"held-out/{name}/accuracy", told["accuracy"]
            yield last, f"held-out/{name}/low", told["low"]
            yield last, f"held-out/{name}/high", told["high"]


Metrics = Sequence[tuple[int, str, float]]
"""(round, name, value)."""


def tensorboard(metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """Event files: ``tensorboard --logdir OUT``.

    Raises:
        SealError: tensorboard is not installed, there is no number to write, or it cannot be written.
    """
    if not metrics:
        raise SealError("the run has no finished attempt yet: there is nothing to export")
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise SealError("exporting to tensorboard needs its library: pip install tensorboard") from error
    try:
        with SummaryWriter(str(out)) as writer:
            for step, name, value in metrics:
                writer.add_scalar(name, value, step)
            writer.add_text("config", "\n".join(f"    {k} = {v}" for k, v in flat(config).items()))
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)  # it was new: what is in it is half of ours
        raise SealError(f"cannot write {out}: {error.strerror or error}") from error


def flat(config: Mapping[str, Any], at: str = "") -> Json:
    """Dotted keys."""
    found: Json = {}
    for key, value in config.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, Mapping) and value else {f"{at}{key}": value}
    return found
