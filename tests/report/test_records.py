"""Every recorded figure can be computed again from what stands beside it, or says that it is older than
that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seal.records import record_text
from seal.stats import Interval, difference, interval

RESULTS = Path(__file__).parents[2] / "docs/results"
OLDER = {
    "arc-choices",
    "arc-real",
    "displacement",
    "knowledge-atlas-ten-epochs",
    "learn-memory",
    "learning-rules",
    "quiz-trust",
    "soak",
}
"""Recorded before scores were kept with the figures, or holding none (memory, soak). What `make results`
makes anew leaves this list."""
NAMES = sorted(p.stem for p in RESULTS.glob("*.json"))


def tables(value: Any, groups: Any = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every part of a record that holds scores, with the groups of its tasks."""
    if isinstance(value, dict):
        groups = value.get("groups", groups)
        if isinstance(value.get("scores"), list):
            yield value, groups
        for inner in value.values():
            yield from tables(inner, groups)
    elif isinstance(value, list):
        for inner in value:
            yield from tables(inner, groups)


def near(found: Interval, told: dict[str, Any], name: str) -> None:
    mean = told.get("mean", told.get("accuracy"))
    assert (mean, told["low"], told["high"]) == pytest.approx(
        (found.mean, found.low, found.high), abs=6e-4
    ), name


@pytest.mark.parametrize("name", NAMES)
def test_every_interval_can_be_computed_again(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    found = list(tables(record))
    assert bool(found) != (
        name in OLDER or name in ("architectures", "beside", "mutants", "policy", "real-model", "robustness")
    ), f"{name} has no scores to compute its figures from"
    for told, groups in found:
        within = told.get("within", (0.0, 1.0))
        near(interval(told["scores"], groups, within and tuple(within)), told, name)
    for row in record.get("rows", ()) if "groups" in record and isinstance(record["rows"], list) else ():
        for kind, scores in row["kind scores"].items():
            asked = [i for i, x in enumerate(scores[0]) if x is not None]
            groups = [record["groups"][i] for i in asked]
            near(
                interval([[s[i] for i in asked] for s in scores], groups),
                row["kinds"][kind],
                f"{name}: {kind}",
            )
    rows = record.get("rows", {})
    by_name = rows if isinstance(rows, dict) else {r["setting"]: r for r in rows if "setting" in r}
    differences = record.get("differences", ()) if "groups" in record else ()
    pairs = (
        differences
        if isinstance(differences, list)
        else [{"pair": k, **v} for k, v in dict(differences).items()]
    )
    for told in pairs:
        a, b = (told["a"], told["b"]) if "a" in told else told["pair"].split(" - ")
        a = f"SEAL round {record['rounds']}" if a == "SEAL" and "rounds" in record else a
        near(
            difference(by_name[a]["scores"], by_name[b]["scores"], record["groups"]),
            told,
            f"{name}: {a} - {b}",
        )


def test_every_record_says_the_command_that_made_it_and_the_makefile_has_it() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
    for name in NAMES:
        record = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        parts = record if isinstance(record, list) else [record]
        assert all(p.get("command") for p in parts if isinstance(p, dict)), name
        assert f"docs/results/{name}.json" in makefile or name == "arc-real", (
            f"no target of the Makefile makes {name}"
        )


def test_a_record_reads_well_and_is_json() -> None:
    record = {
        "command": "x",
        "rows": [{"scores": [[0.5, 1.0], [0.25, 0.0]], "note": "a, [b]"}],
        "tasks": ["a", "b"],
        "none": [],
    }
    text = record_text(record)
    assert (
        json.loads(text) == record
        and '"tasks": ["a", "b"]' in text.replace("[ ", "[")
        and "[0.5, 1.0]" in text
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_text({"x": float("nan")})
