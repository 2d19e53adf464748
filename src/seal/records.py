"""What flows through SEAL: frozen records that can be written as JSON. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from seal.lora.records import Example, LoraError, Prompt, Query, Recipe, Written

__all__ = [
    "Attempt",
    "BadEdit",
    "Edit",
    "Example",
    "Grade",
    "LoraError",
    "Prompt",
    "Query",
    "Recipe",
    "Result",
    "SealError",
    "Selected",
    "Stopped",
    "Task",
    "Written",
    "seed_of",
]


class SealError(LoraError):
    """Something the user can put right: the message is one sentence that says what and where (exit code
    2)."""


class Stopped(Exception):
    """The process was asked to stop, and what it was at is on disk."""


@dataclass(frozen=True)
class Task:
    """Something new to learn from. ``data`` is the domain's own JSON record (a passage with questions, a
    puzzle)."""

    id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Grade:
    """The verdict on one task: overall score in [0, 1], and one score per query with the query's kind."""

    score: float
    scores: tuple[float, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """A self-edit understood: its text, the training rows it makes, and the settings it asked for (may be
    none)."""

    text: str
    examples: tuple[Example, ...]
    directives: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadEdit:
    """A self-edit that cannot be used. It is recorded with the reason and scores 0; it is never silently
    resampled."""

    text: str
    reason: str


@dataclass(frozen=True)
class Attempt:
    """One inner loop, tried and graded: the row of ``attempts.jsonl``.

    ``reward`` is what the outer loop selects by; ``None`` means *ungraded*, or *failed*: no worker lived
    through it (never to be read as wrong). ``before`` and
    ``after`` are accuracies of the unadapted and the adapted model on the same queries. ``silent`` is the
    share of empty answers.
    """

    task: str
    edit: int
    seed: int
    text: str
    status: Literal["ok", "bad edit", "diverged", "ungraded", "failed"]
    reason: str
    reward: float | None
    before: float
    after: float
    answers: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    kinds: tuple[str, ...] = ()
    silent: float = 0.0
    log_likelihood: float | None = None
    likelihoods: tuple[float, ...] = ()
    """Of the gold answer of each query, per token."""
    rows: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: tuple[float, float] = (0.0, 0.0)
    """Training loss at the first and the last step."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(row: Any) -> Attempt:
        """
        Raises:
            ValueError: it is no attempt of this version: why.
        """
        if not isinstance(row, dict):
            raise ValueError("it holds no attempt")
        if unknown := next((k for k in row if k not in _FIELDS), None):
            raise ValueError(f"the field {unknown!r} is of another version of SEAL")
        if missing := next((k for k, f in _FIELDS.items() if f.default is MISSING and k not in row), None):
            raise ValueError(f"the field {missing!r} is missing")
        if wrong := next((k for k in _TUPLES if not isinstance(row.get(k, []), list | tuple)), None):
            raise ValueError(f"the field {wrong!r} is no list")
        numbers = {k: [row[k]] for k in ("reward", "before", "after") if row[k] is not None} | {
            "scores": row.get("scores", ())
        }
        if wrong := next(
            (k for k, v in numbers.items() if not all(isinstance(x, int | float) for x in v)), None
        ):
            raise ValueError(f"the field {wrong!r} holds what is no number")
        values: dict[str, Any] = {k: tuple(v) if k in _TUPLES else v for k, v in row.items()}
        return Attempt(**values)


_FIELDS = {f.name: f for f in fields(Attempt)}
_TUPLES = ("answers", "scores", "kinds", "likelihoods", "loss")


@dataclass(frozen=True)
class Selected:
    """A prompt and a self-edit that the outer loop keeps: the policy is to imitate it."""

    task: str
    text: str
    reward: float
    cut: bool = False
    """Whether the limit of tokens cut it off: then it does not end where its text does."""
    edit: int = -1
    """Its number among its siblings, where it was one of those tried."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed made of anything printable: the same parts give the same seed on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


BASE, OPEN, RETRIEVAL, ORACLE, EXTERNAL = "base", "open book", "retrieval", "oracle", "external writer"
NO_RL, ON_BASE, UNEDITED = "no RL", "SEAL edits on base", "SEAL weights, no edit"
CONTROL = "random control"
FIXED = "best fixed edit"
PASSAGE_10, PASSAGE_MATCHED, PASSAGE_SATURATED = (
    "passage, 10 epochs",
    "passage, matched tokens",
    "passage, saturation",
)


@dataclass(frozen=True)
class Result:
    """One setting's outcome on the tasks, in their order. ``kinds`` holds the same scores by kind of
    question."""

    setting: str
    scores: list[float]
    kinds: dict[str, list[float | None]]
    """``None``: of a task that has no question of the kind."""
    n_questions: int
    silent: float
    tokens: float
    """Training tokens per adapter, on average."""
    seconds: float
    """Inner-loop time per attempt, on average."""
    note: str = ""
    bad: float = 0.0
    """Share of edits that could not be used."""
    if_trained: float | None = None
    """Mean score over those that could; ``None`` where nothing was to be trained."""
    cut: float = 0.0
    """Share of edits that the limit of tokens cut off."""
