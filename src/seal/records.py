"""What flows through SEAL: frozen records that can be written as JSON. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from seal.lora.records import (
    UNFINISHED,
    Example,
    LoraError,
    Prompt,
    Query,
    Recipe,
    Sampling,
    Written,
    spoken,
)

__all__ = [
    "UNFINISHED",
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
    "Sampling",
    "SealError",
    "Selected",
    "Stopped",
    "Task",
    "Wanted",
    "Written",
    "seed_of",
    "spoken",
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
    f1: float | None = None
    """Mean token F1 of the answers, where the domain has gold answers in words."""


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


DRAWN = Sampling(temperature=1.0)


@dataclass(frozen=True)
class Wanted:
    """A self-edit whose rows the model is to write itself: ``n`` samples after each prompt, of which the
    domain then makes the rows (:meth:`seal.domains.base.Domain.compose`)."""

    text: str
    prompts: tuple[Prompt, ...]
    n: int = 1
    sampling: Sampling = DRAWN


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
    f1: float | None = None
    """Mean token F1 of the answers, where the domain has gold answers in words."""
    rows: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: tuple[float, float] = (0.0, 0.0)
    """Training loss at the first and the last step."""

    # An attempt is told as it goes: begun, then refused, or trained and then diverged, ungraded or graded.

    @staticmethod
    def begun(task: str, edit: int, seed: int, text: str, before: Grade) -> Attempt:
        """One that has not been trained: the model answers as before, and nothing is earned."""
        return Attempt(
            task, edit, seed, text, "ok", "", reward=0.0, before=before.score, after=before.score,
            scores=before.scores, kinds=before.kinds, f1=before.f1,
        )  # fmt: skip

    def refused(self, reason: str) -> Attempt:
        """Of an edit that cannot be used. Its reward is 0 although the model answers as before: a bad edit
        must not pay."""
        return replace(self, status="bad edit", reason=reason)

    def trained(self, rows: int, steps: int, tokens: int, loss: tuple[float, float]) -> Attempt:
        """What its training was."""
        finite = all(map(math.isfinite, loss))
        return replace(self, rows=rows, steps=steps, tokens=tokens, loss=loss if finite else (0.0, 0.0))

    def diverged(self) -> Attempt:
        """Of an adapter that is not finite: nothing can be asked of it."""
        reason = f"training gave a number that is not finite, at step {self.steps}"
        zeros = tuple(0.0 for _ in self.scores)
        return replace(self, status="diverged", reason=reason, after=0.0, scores=zeros, f1=None)

    def ungraded(self, answers: Sequence[str]) -> Attempt:
        """Answered, and no verdict came: neither right nor wrong."""
        zeros = tuple(0.0 for _ in self.scores)
        return replace(
            self, status="ungraded", reason="the judge gave no verdict", reward=None, scores=zeros, f1=None,
            answers=tuple(answers), silent=_silent(answers),
        )  # fmt: skip

    def graded(self, answers: Sequence[str], grade: Grade, reward: float) -> Attempt:
        """Answered, and graded."""
        return replace(
            self, reward=reward, after=grade.score, scores=grade.scores, kinds=grade.kinds, f1=grade.f1,
            answers=tuple(answers), silent=_silent(answers),
        )  # fmt: skip

    def failed(self, reason: str) -> Attempt:
        """No worker lived through it: neither right nor wrong."""
        zeros = tuple(0.0 for _ in self.scores)
        return replace(self, status="failed", reason=reason, reward=None, scores=zeros)

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


def _silent(answers: Sequence[str]) -> float:
    return sum(not a.strip() for a in answers) / max(1, len(answers))


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


class Setting(NamedTuple):
    """A row of the table of writers."""

    key: str
    """Names its folder on disk."""
    label: str
    """Names it for people, and in ``results.json``."""
    kind: Literal["bound", "baseline", "control", "seal"]


BASE = Setting("base", "base", "bound")
OPEN = Setting("open-book", "open book", "bound")
RETRIEVAL = Setting("retrieval", "retrieval", "bound")
ORACLE = Setting("oracle", "oracle", "bound")
EXTERNAL = Setting("external-writer", "external writer", "baseline")
NO_RL = Setting("no-RL", "no RL", "baseline")
FIXED = Setting("best-fixed-edit", "best fixed edit", "baseline")
PASSAGE_10 = Setting("passage-10-epochs", "passage, 10 epochs", "baseline")
PASSAGE_MATCHED = Setting("passage-matched-tokens", "passage, matched tokens", "baseline")
PASSAGE_SATURATED = Setting("passage-saturation", "passage, saturation", "baseline")
ON_BASE = Setting("SEAL-edits-on-base", "SEAL edits on base", "seal")
UNEDITED = Setting("SEAL-weights-no-edit", "SEAL weights, no edit", "seal")


def seal_round(r: int) -> Setting:
    """The row of SEAL's policy after a round."""
    return Setting(f"SEAL-round-{r}", f"SEAL round {r}", "seal")


def control(name: str) -> Setting:
    """The row of a control's last policy (*random*, *worst*, *others*)."""
    return Setting(f"{name}-control", f"{name} control", "control")


def settings_of(rounds: int) -> dict[str, Setting]:
    """Every row that a run of so many rounds may have, by its label: for whoever reads a ``results.json``."""
    fixed = (
        BASE,
        OPEN,
        RETRIEVAL,
        ORACLE,
        EXTERNAL,
        NO_RL,
        FIXED,
        PASSAGE_10,
        PASSAGE_MATCHED,
        PASSAGE_SATURATED,
        ON_BASE,
        UNEDITED,
    )
    rounds_ = [seal_round(r) for r in range(1, rounds + 1)]
    return {s.label: s for s in (*fixed, *map(control, ("random", "worst", "others")), *rounds_)}


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
    f1: float | None = None
    """Mean token F1 of the answers; ``None`` where the domain has none."""


# -------------------------------------------------------------------- records as they lie on disk, key by key

Json = dict[str, Any]
"""A JSON object whose keys are somebody else's, or a model's own settings."""


class Passage(TypedDict):
    """A piece of a document, under its title."""

    id: str
    source: str
    title: str
    context: str


class Question(TypedDict):
    """A question of a quiz."""

    question: str
    answer: str
    answers: NotRequired[list[str]]
    """Every gold answer, where there are several."""
    kind: NotRequired[str]
    """*known*: answered rightly without the passage; else *new*."""
    half: NotRequired[str]
    """*practice*, which may choose edits, or *proof*, which may not."""


class Quiz(TypedDict):
    """The quiz of a passage: how many questions were drafted, how many of them are sound, and those."""

    id: str
    drafted: int
    sound: int
    questions: list[Question]


Answers = TypedDict(
    "Answers",
    {"before": list[str], "after": list[str], "open book": list[str], "right": dict[str, list[bool]]},
)
"""What a model says to a passage's quiz, and which of it is right: without the passage, after it was taught,
with it in view."""

Card = TypedDict(
    "Card",
    {
        "settings": Json,
        "read": dict[str, int],
        "written": dict[str, int],
        "known already": int,
        "dropped": list[str],
        "quiz": dict[str, int],
        "training": dict[str, int],
        "seconds": NotRequired[float],
        "accuracy": NotRequired[dict[str, "Told"]],
        "gain": NotRequired["Told"],
        "silent": NotRequired[dict[str, float]],
        "by kind": NotRequired[dict[str, dict[str, float]]],
        "got worse": NotRequired[list[dict[str, str]]],
        "retained": NotRequired[Json],
        "keep": NotRequired[bool | None],
    },
)
"""Of a taught adapter: what was read and written, what the model knows now, what got worse, what it cost."""


class Told(TypedDict):
    mean: float
    low: float
    high: float


"""A mean with its 95 % interval."""

Row = TypedDict(
    "Row",
    {
        "setting": str,
        "accuracy": float,
        "low": float,
        "high": float,
        "n_passages": int,
        "n_questions": int,
        "silent": float,
        "tokens": int,
        "seconds": float,
        "bad": float,
        "cut": float,
        "f1": NotRequired[float | None],
        "if_trained": float | None,
        "kinds": dict[str, Told],
        "note": str,
        "scores": list[list[float]],
        "kind scores": dict[str, list[list[float | None]]],
    },
)
"""A setting of the table of writers, over runs."""


class Difference(TypedDict):
    """Of two settings, paired over tasks and runs."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    per_seed: list[float]


class Table(TypedDict):
    """The table of writers over the runs of one experiment, with every score that it is computed from."""

    command: str
    date: str
    machine: str
    seeds: list[int]
    rounds: int
    tasks: list[Any]
    groups: list[Any]
    rows: list[Row]
    differences: list[Difference]


def record_text(record: Any) -> str:
    """A record as JSON that people can read: indented, with lists of numbers or names on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    return (
        re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: f"[{re.sub(chr(10) + ' +', ' ', m[1])}]", text)
        + "\n"
    )
