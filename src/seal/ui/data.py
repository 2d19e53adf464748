"""What the pages show, read from run folders and never written: runs, stages, attempts by the page.

An ``attempts.jsonl`` is read once; of each attempt its place in the file and a few numbers stay in memory, so
a page of a file with 100,000 attempts costs the reading of that page. What was appended since is read the
next time.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from seal.domains import load_domain
from seal.domains.base import SPLITS, Domain
from seal.domains.knowledge.features import features
from seal.records import Json, SealError, Task
from seal.stats import Interval, interval
from seal.store import is_claimed, read_config

DEPTH = 3
"""How far below the folder of runs a run may lie."""
DESCRIBED = 48
"""Tasks whose edits are read to tell how alike siblings are."""
Kind = Literal["loop", "continual", "taught"]
WHOLE: Json = {
    "scores": [],
    "answers": [],
    "loss": [0.0, 0.0],
    "text": "",
    "reason": "",
    "rows": 0,
    "steps": 0,
    "tokens": 0,
    "reward": None,
}
"""What an attempt has at least."""
NEEDED = {
    "domain": dict,
    "model": dict,
    "inner": dict,
    "outer": dict,
    "rounds": int,
    "tasks_per_round": int,
    "edits_per_task": int,
}
"""What a run's config has at least."""
MARKS = {"config.json": "loop", "learn.json": "taught"}


@dataclass(frozen=True)
class Brief:
    """Of an attempt what a list needs, and where the rest lies."""

    start: int
    length: int
    task: str
    edit: int
    seed: int
    status: str
    reward: float | None
    before: float
    after: float
    silent: float
    seconds: float


@dataclass
class AttemptsFile:
    """The attempts of a stage, as far as they have been read."""

    path: Path
    briefs: list[Brief] = field(default_factory=list)
    by_task: dict[str, list[int]] = field(default_factory=dict)
    damaged: int = 0
    """Lines that are no attempt: passed over, and told."""
    end: int = 0
    inode: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refresh(self) -> AttemptsFile:
        """Read what has been appended; a file that has become shorter is read anew, and a torn last line
        waits."""
        with self.lock:
            return self._refresh()

    def _refresh(self) -> AttemptsFile:
        try:
            size, inode = (found := self.path.stat()).st_size, found.st_ino
        except OSError:
            size = inode = 0
        if size < self.end or inode != self.inode:
            self.briefs, self.by_task, self.end, self.inode, self.damaged = [], {}, 0, inode, 0
        if size > self.end:
            with self.path.open("rb") as file:
                file.seek(self.end)
                for line in file:
                    try:
                        row = json.loads(line, parse_constant=_no_number) if line.endswith(b"\n") else None
                    except ValueError:
                        row = {}
                    if row is None:  # torn: it may still grow
                        break
                    if not isinstance(row, dict) or "task" not in row or not _in_numbers(row):
                        self.damaged += 1
                        self.end += len(line)
                        continue
                    numbers = {
                        k: row.get(k) or 0 for k in ("edit", "seed", "before", "after", "silent", "seconds")
                    }
                    self.by_task.setdefault(str(row["task"]), []).append(len(self.briefs))
                    self.briefs.append(
                        Brief(
                            self.end,
                            len(line),
                            str(row["task"]),
                            status=str(row.get("status", "")),
                            reward=row.get("reward"),
                            **numbers,
                        )
                    )
                    self.end += len(line)
        return self

    def rows(self, places: Sequence[int]) -> list[Json]:
        """The attempts at these places, whole."""
        with self.path.open("rb") as file:
            found = []
            for place in places:
                file.seek(self.briefs[place].start)
                try:
                    row = json.loads(file.read(self.briefs[place].length))
                    found.append(WHOLE | {k: v for k, v in row.items() if v is not None})
                except ValueError as error:
                    self.end, self.inode = 0, 0
                    raise SealError(f"{self.path} has changed under this page: load it again") from error
        return found


NUMBERS = ("edit", "seed", "before", "after", "silent", "seconds", "reward")


def _in_numbers(row: Json) -> bool:
    return all(isinstance(row.get(k) or 0, (int, float)) for k in NUMBERS)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


class Folder:
    """The folder of runs, and what has been read of it.

    Args:
        root: where run folders lie.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._files: dict[Path, AttemptsFile] = {}

    def runs(self) -> list[Run]:
        """Every run below the root, the newest first."""
        found = [Run(self, path) for path in self._walk(self.root, DEPTH)]
        return sorted(found, key=lambda r: -r.touched)

    def _walk(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            entries = sorted(
                (e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name
            )
        except OSError:
            return
        if any(e.name in MARKS for e in entries) and folder != self.root:
            yield folder
            return
        if depth:
            for entry in entries:
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), depth - 1)

    def run(self, name: str) -> Run:
        """The run of that name.

        Raises:
            SealError: there is none, or the name leads out of the root.
        """
        path = _below(self.root, name)
        if path is None or not any((path / mark).is_file() for mark in MARKS):
            raise SealError(f"there is no run {name!r} in {self.root}")
        return Run(self, path)

    def attempts(self, stage: Path) -> AttemptsFile:
        """The attempts of a stage, up to date."""
        path = stage / "attempts.jsonl"
        return self._files.setdefault(path, AttemptsFile(path)).refresh()


class Run:
    """One run folder."""

    def __init__(self, home: Folder, path: Path) -> None:
        self.home, self.path = home, path
        self.name = str(path.relative_to(home.root))
        self.problem = ""
        self.config: Json = {}
        self.kind: Kind = "taught" if (path / "learn.json").exists() else "loop"
        try:
            data = (
                json.loads((path / "learn.json").read_text("utf-8"))
                if self.kind == "taught"
                else read_config(path)
            )
            if not isinstance(data, dict):
                raise ValueError("no settings in it")
            if self.kind == "loop" and any(not isinstance(data.get(k), t) for k, t in NEEDED.items()):
                raise ValueError("it is no run's config.json")
            self.config = data
        except SealError as error:
            self.problem = str(error)
        except (OSError, ValueError) as error:
            self.problem = f"its settings cannot be read: {error}"
        if (path / "continual").is_dir() or (path / "continual.json").exists():
            self.kind = "continual"

    @property
    def touched(self) -> float:
        """When it was last written to."""
        newest = 0.0
        for path in (self.path, *self.path.glob("*/*"), *self.path.glob("*.json")):
            try:
                newest = max(newest, path.stat().st_mtime)
            except OSError:  # a link to nothing, or a file that has just been renamed
                continue
        return newest

    @property
    def status(self) -> str:
        """*running*, *finished*, *stopped*, *empty* or *broken*."""
        done = {"loop": "results.json", "continual": "continual.json", "taught": "card.json"}[self.kind]
        if self.problem:
            return "broken"
        if is_claimed(self.path):
            return "running"
        if (self.path / done).exists():
            return "finished"
        return "stopped" if any(p.is_dir() for p in self.path.iterdir()) else "empty"

    def file(self, name: str) -> Any:
        """A JSON file of the run, or ``None`` where there is none that can be read."""
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def reward(self) -> str:
        """What its edits are rewarded by."""
        return str((self.config.get("inner") or {}).get("reward", "accuracy"))

    def stages(self) -> list[str]:
        """The stages that have edits or attempts, rounds first."""
        found = {p.parent for name in ("attempts.jsonl", "texts.json") for p in self.path.rglob(name)}
        names = [str(p.relative_to(self.path)) for p in found if "policy" not in p.parts]
        order = ("seal", "control", "eval")
        return sorted(
            names, key=lambda n: (order.index(n.split("/")[0]) if n.split("/")[0] in order else len(order), n)
        )

    def stage(self, name: str) -> Path:
        """A stage's folder.

        Raises:
            SealError: there is none of that name.
        """
        path = _below(self.path, name)
        if path is None or not path.is_dir():
            raise SealError(f"the run {self.name} has no stage {name!r}")
        return path

    def attempts(self, stage: str) -> AttemptsFile:
        return self.home.attempts(self.stage(stage))

    def tasks(self) -> Mapping[str, Task]:
        """Tasks by id, where the run's domain is one of the package's own: what a run folder names besides is
        not executed."""
        return _tasks(self._domain)

    @property
    def domain(self) -> Domain | None:
        return domain_of(self._domain)

    @property
    def _domain(self) -> str:
        return json.dumps(self.config.get("domain") or {}, sort_keys=True)

    def planned(self, stage: str) -> int | None:
        """How many attempts a round is to have; ``None`` where that is not known beforehand."""
        c, trial = self.config, self.config.get("trial") or {}
        if round_of(stage) is None or trial.get("race") or trial.get("proxy"):
            return None
        edits = int(c["edits_per_task"])
        split = (c["domain"].get("options", {}).get("sizes") or {}).get("train")
        tasks = min(int(c["tasks_per_round"]), int(split)) if split else int(c["tasks_per_round"])
        return tasks * edits * int(c["inner"]["seeds"])

    def summary(self, stage: str) -> Json:
        """A stage in numbers: attempts, mean reward with interval, unadapted accuracy, silence, bad edits,
        time, likeness of siblings."""
        file = self.attempts(stage)
        graded = [b for b in file.briefs if b.reward is not None]
        by_task: dict[str, list[float]] = {}
        for b in graded:
            by_task.setdefault(b.task, []).append(float(b.reward or 0.0))
        means = tuple(sum(r) / len(r) for r in by_task.values())
        planned, n = self.planned(stage), len(file.briefs)
        each = sum(b.seconds for b in file.briefs) / n if n else 0.0
        return {
            "stage": stage,
            "attempts": n,
            "planned": planned,
            "tasks": len(file.by_task),
            "reward": means_of(means) if means else None,
            "best": sum(max(r) for r in by_task.values()) / len(by_task) if by_task else None,
            "after": sum(b.after for b in graded) / len(graded) if graded else None,
            "before": sum(b.before for b in graded) / len(graded) if graded else None,
            "silent": sum(b.silent for b in graded) / len(graded) if graded else None,
            "bad": sum(b.status == "bad edit" for b in file.briefs) / n if n else None,
            "seconds": each,
            "left": each * (planned - n) if planned and n < planned else 0.0,
            "likeness": self.likeness(stage),
        }

    def likeness(self, stage: str) -> float | None:
        """Mean overlap of sibling edits in pairs of words: 1 is all the same."""
        path = self.stage(stage) / "texts.json"
        return _likeness(path, path.stat().st_mtime) if path.exists() else None


@lru_cache(maxsize=256)
def _likeness(path: Path, _: float) -> float | None:
    try:
        texts = json.loads(path.read_text("utf-8"))[:DESCRIBED]
        found = [features(Task("", {}), row) for row in texts if len(row) > 1]
    except (OSError, ValueError, TypeError):
        return None
    return sum(f["likeness"] for f in found) / len(found) if found else None


@lru_cache(maxsize=512)
def means_of(scores: tuple[float, ...], groups: tuple[str, ...] | None = None) -> Interval:
    """Mean and 95 % interval over tasks, or over groups of them."""
    return interval([scores], groups)


@lru_cache(maxsize=8)
def domain_of(settings: str) -> Domain | None:
    """The domain that a run's settings name (as JSON), if it is one of the package's own and needs no
    network: another would be somebody's code. Answers have been graded, so no judge is asked."""
    given = json.loads(settings)
    options = {**given.get("options", {})}
    if given.get("name") not in ("knowledge", "arc") or str(options.get("source", "")).startswith("hub:"):
        return None
    if given["name"] == "knowledge":
        options["grader"] = "string"
    try:
        return load_domain(given["name"], options)
    except Exception:  # whatever a damaged or foreign config makes of it
        return None


@lru_cache(maxsize=8)
def _tasks(settings: str) -> Mapping[str, Task]:
    domain = domain_of(settings)
    try:
        return {t.id: t for split in SPLITS for t in domain.tasks(split)} if domain else {}
    except Exception:
        return {}


def round_of(stage: str) -> int | None:
    """The number of a round's stage; ``None`` for others (a leg of a race, a copy)."""
    found = re.fullmatch(r"seal/round-(\d{1,6})", stage)
    return int(found[1]) if found else None


def _below(folder: Path, name: str) -> Path | None:
    """The path of that name below a folder; ``None`` for a name that leads elsewhere (a link that lies in the
    folder may)."""
    parts = Path(name).parts
    if not parts or {"..", "/"} & set(parts) or "\0" in name or Path(name).is_absolute():
        return None
    fits = len(name) <= 1000 and all(len(p.encode("utf-8", "replace")) <= 255 for p in parts)
    return folder / name if fits else None
