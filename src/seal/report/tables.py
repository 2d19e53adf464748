"""Results as JSON: the table of settings with intervals, and the paired differences that the claims rest on.

One run gives a ``results.json``; several runs (seeds of the loop) of the same config make one table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seal.config import RunConfig, experiment, of_earlier
from seal.records import (
    EXTERNAL,
    FIXED,
    NO_RL,
    PASSAGE_MATCHED,
    Difference,
    Json,
    Row,
    SealError,
    Setting,
    Table,
    Told,
    control,
    seal_round,
)
from seal.stats import Interval, difference, interval
from seal.store import Stage, must_be_readable, read_json


def experiment_of(record: Json) -> str:
    """What seeds of one experiment have in common: settings (those that an earlier version did not know are
    at their defaults) and tasks."""
    settings = record.get("of")
    if settings:
        with suppress(ValueError):  # of a version whose settings are no longer known
            settings = experiment(RunConfig.model_validate(of_earlier(settings)))
    return json.dumps([settings, record.get("tasks")], sort_keys=True)


def load_runs(folders: Sequence[Path]) -> list[Json]:
    """The results of several runs.

    Raises:
        SealError: a folder holds no results, or the runs did not evaluate the same settings on as many
            passages.
    """
    records = []
    for folder in folders:
        must_be_readable(folder)
        path = folder / "results.json"
        if not path.exists():
            raise SealError(f"{folder} has no results.json: run `seal eval` on it first")
        records.append(read_json(path))
        if not isinstance(records[-1], dict) or not records[-1].get("settings"):
            raise SealError(f"{path} holds no results")
    names = ", ".join(map(str, folders))
    if len({tuple((s["setting"], len(s["scores"])) for s in r["settings"]) for r in records}) > 1:
        raise SealError(f"the runs {names} did not evaluate the same settings on as many tasks")
    if len({str(r["fingerprint"]) for r in records if r.get("fingerprint")}) > 1:
        raise SealError(
            f"the runs {names} are not seeds of one experiment: their tasks have the same names, but other "
            "texts, questions or answers"
        )
    if len({experiment_of(r) for r in records}) > 1:
        raise SealError(
            f"the runs {names} are not seeds of one experiment: their settings or their tasks differ"
        )
    return records


def summarise(records: Sequence[Json], command: str) -> Table:
    """One table over runs: rows with 95 % intervals, by kind of question too, and the paired differences. It
    holds the scores of every run on every task, so that all of it can be computed again."""
    first = records[0]
    tasks = first.get("tasks") or list(range(len(first["settings"][0]["scores"])))
    groups = first.get("groups") or tasks
    names = [s["setting"] for s in first["settings"]]
    by_name = {n: [next(s for s in r["settings"] if s["setting"] == n) for r in records] for n in names}
    rows: list[Row] = []
    for name, settings in by_name.items():
        whole = interval(_scores(settings), groups)
        kinds = {k: _of_kind([s["kinds"][k] for s in settings], groups) for k in settings[0]["kinds"]}
        rows.append(
            {
                "setting": name,
                "accuracy": _round(whole.mean),
                "low": _round(whole.low),
                "high": _round(whole.high),
                "n_passages": len(settings[0]["scores"]),
                "n_questions": settings[0]["n_questions"],
                "silent": _round(sum(s["silent"] for s in settings) / len(settings)),
                "tokens": round(sum(s["tokens"] for s in settings) / len(settings)),
                "seconds": round(sum(s["seconds"] for s in settings) / len(settings), 3),
                "bad": _round(sum(s.get("bad", 0.0) for s in settings) / len(settings)),
                "cut": _round(sum(s.get("cut", 0.0) for s in settings) / len(settings)),
                "f1": _over([s.get("f1") for s in settings]),
                "if_trained": _over([s.get("if_trained") for s in settings]),
                "kinds": {k: _interval(v) for k, v in kinds.items()},
                "note": " or ".join(dict.fromkeys(s["note"] for s in settings if s["note"])),
                "scores": [[_round(x) for x in row] for row in _scores(settings)],
                "kind scores": {
                    k: [[None if x is None else _round(x) for x in s["kinds"][k]] for s in settings]
                    for k in settings[0]["kinds"]
                },
            }
        )
    final = seal_round(first["rounds"]).label
    chance, fixed = control("random").label, FIXED.label
    pairs = [
        ("SEAL", final, NO_RL.label),
        ("SEAL", final, chance),
        ("SEAL", final, fixed),
        (NO_RL.label, NO_RL.label, PASSAGE_MATCHED.label),
    ]
    differences = [
        _difference(label, by_name[a], b, by_name[b], groups) for label, a, b in pairs if {a, b} <= {*by_name}
    ]
    return {
        "command": command,
        "date": max(r["date"] for r in records),
        "machine": first["machine"],
        "seeds": [r["seed"] for r in records],
        "rounds": first["rounds"],
        "tasks": tasks,
        "groups": groups,
        "rows": rows,
        "differences": differences,
    }


def _difference(
    label: str, mine: Sequence[Json], other: str, theirs: Sequence[Json], groups: Sequence[Any]
) -> Difference:
    """Of the setting ``mine`` to that of the name ``other``, over runs and tasks, and by run."""
    x, y = _scores(mine), _scores(theirs)
    told = _interval(difference(x, y, groups))
    each = [_round(_mean(a) - _mean(b)) for a, b in zip(x, y, strict=True)]
    return {
        "a": label,
        "b": other,
        "mean": told["mean"],
        "low": told["low"],
        "high": told["high"],
        "per_seed": each,
    }


def _of_kind(scores_S_P: Sequence[Sequence[float | None]], groups: Sequence[Any]) -> Interval:
    """Over the tasks that have a question of the kind."""
    whole = [row for row in scores_S_P if len(row) == len(groups)]
    places = [i for i in range(len(groups)) if all(row[i] is not None for row in whole)]
    # an earlier version left out the tasks that have none of the kind
    rows = [[row[i] for i in places] if len(row) == len(groups) else list(row) for row in scores_S_P]
    if len({len(row) for row in rows}) > 1:
        raise SealError(
            "the runs do not ask the same kinds of questions of their tasks, or an earlier version made "
            "some: one table cannot hold them"
        )
    return interval(
        [[float(x or 0.0) for x in row] for row in rows], [groups[i] for i in places] if whole else None
    )


def _over(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return _round(_mean(known)) if known else None


def _scores(settings: Sequence[Json]) -> list[list[float]]:
    return [s["scores"] for s in settings]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _round(value: float) -> float:
    return round(value, 4)


def _interval(value: Interval) -> Told:
    return {"mean": _round(value.mean), "low": _round(value.low), "high": _round(value.high)}


def table_lines(summary: Table) -> list[list[str]]:
    """The table as text cells, header first."""
    kinds = list(dict.fromkeys(k for r in summary["rows"] for k in r["kinds"]))
    show = kinds if len(kinds) > 1 else []
    more = {"bad": "bad edits", "cut": "cut off"}
    more = {key: name for key, name in more.items() if any(r.get(key) for r in summary["rows"])}
    overlap = ["F1"] if any(r.get("f1") is not None for r in summary["rows"]) else []
    lines = [["writer", "accuracy", "95 % interval", *overlap, *show, *more.values(), "silent", "tokens"]]
    for row in summary["rows"]:
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(
            [
                row["setting"] + note,
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} … {row['high']:.3f}",
                *("" if row.get("f1") is None else f"{row['f1']:.3f}" for _ in overlap),
                *(f"{row['kinds'][k]['mean']:.3f}" if k in row["kinds"] else "" for k in show),
                *(f"{row.get(key, 0.0):.3f}" for key in more),
                f"{row['silent']:.3f}",
                str(row["tokens"]),
            ]
        )
    return lines


def difference_lines(summary: Table) -> list[str]:
    """The paired differences, one sentence each."""
    return [
        f"{d['a']} − {d['b']}: {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        for d in summary["differences"]
    ]


def writers_of(rounds: int) -> list[Setting]:
    """Those whose edits are described: before the loop, of another, of the control, and after every round."""
    return [NO_RL, EXTERNAL, control("random"), *(seal_round(r) for r in range(1, rounds + 1))]


def texts_of(folder: Path, summary: Table) -> dict[str, list[list[str]]]:
    """The edits that the policies wrote for the evaluation tasks."""
    texts = {}
    for setting in writers_of(summary["rounds"]):
        if (found := Stage(folder / "eval" / setting.key).read("texts")) is not None:
            texts[setting.label] = found
    return texts


def round_rewards(folder: Path, branch: str, rounds: int) -> list[dict[str, float]]:
    """For each round of the outer loop: mean reward of all edits tried with its interval over tasks, of the
    best edit of each task; the accuracy after the edits (``after``) and of the unadapted model (``before``);
    and the share of bad edits."""
    found = []
    for r in range(1, rounds + 1):
        stage = Stage(folder / branch / f"round-{r}")
        rewards: dict[str, list[float]] = {}
        tried = [a for a in stage.attempts() if a.reward is not None]
        for a in tried:
            rewards.setdefault(a.task, []).append(a.reward or 0.0)
        if not tried:
            continue
        spread = interval([[sum(x) / len(x) for x in rewards.values()]])
        found.append(
            {
                "round": r,
                "mean": spread.mean,
                "low": spread.low,
                "high": spread.high,
                "best": sum(map(max, rewards.values())) / len(rewards),
                "after": sum(a.after for a in tried) / len(tried),
                "before": sum(a.before for a in tried) / len(tried),
                "bad": sum(a.status == "bad edit" for a in tried) / len(tried),
                "cut": cut_share(stage.folder),
                "attempts": len(tried),
            }
        )
    return found


def cut_share(stage: Path) -> float:
    """Share of a stage's edits that the limit of tokens cut off; 0 where an earlier version did not tell."""
    written = [x for row in Stage(stage).read("cut") or () for x in row]
    return sum(x is not None for x in written) / max(1, len(written))
