"""What flows through SEAL: frozen records that can be written as JSON. No torch, nothing of ours imported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SealError(Exception):
    """Something the user can put right: the message is one sentence that says what and where (exit code 2)."""


class Stopped(Exception):
    """The process was asked to stop, and what it was at is on disk."""


@dataclass(frozen=True)
class Task:
    """Something new to learn from. ``data`` is the domain's own JSON record (a passage with questions, a puzzle)."""

    id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What a model is shown. ``text`` is the user's turn (for an instruct model) or the whole prompt (for a base model)."""

    text: str
    system: str = ""


class Written(NamedTuple):
    """What a model wrote, and whether it was cut off at the limit of tokens: then its last line is no whole one."""

    text: str
    cut: bool = False


@dataclass(frozen=True)
class Example:
    """One training row. Loss falls on ``completion`` and one end token; ``prompt`` is context. An empty prompt puts loss
    on everything."""

    completion: str
    prompt: str = ""
    chat: bool = False
    """Render the prompt through the model's chat template, where it has one."""
    loss_on_prompt: bool = False
    """Let loss fall on the prompt as well."""
    ends: bool = True
    """Whether the text ends here: then an end token follows, and carries loss."""


@dataclass(frozen=True)
class Query:
    """A question to a model: the prompt, and the gold answer for likelihood rewards (never shown)."""

    prompt: Prompt
    gold: str


@dataclass(frozen=True)
class Grade:
    """The verdict on one task: overall score in [0, 1], and one score per query with the query's kind."""

    score: float
    scores: tuple[float, ...]
    kinds: tuple[str, ...]


Rate = Annotated[float, Field(gt=0, le=1.0)]


class Recipe(BaseModel):
    """How one adapter is trained. A self-edit may write these itself, so every number has a bound.

    Defaults are the inner loop of the SEAL paper (LoRA rank 32, α 64 on q and v, 1e-3, 10 epochs, batch 1, AdamW with
    linear decay). Exactly one budget holds: ``tokens`` before ``steps`` before ``epochs``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1, le=512)] = 32
    """LoRA rank R."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 64.0
    """LoRA scale: the update is (alpha / rank) · B A."""
    targets: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers to adapt (the last part of the module's path, or all of it), or all but the output head."""
    last_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Adapt the targets in the last so many layers alone; ``None``: in all."""
    learning_rate: Rate = 1e-3
    epochs: Annotated[float, Field(gt=0, le=1000)] = 10
    """Passes over the rows."""
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Optimiser steps, instead of epochs."""
    tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Training tokens (every real token of every row shown), instead of epochs: the last step is the first to reach it."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = 1.0
    """Largest norm of the adapter's gradient; ``None`` for no clipping."""

    @model_validator(mode="after")
    def _some_target(self) -> Recipe:
        if not self.targets:
            raise ValueError("targets is empty: name at least one layer, or all-linear")
        return self


@dataclass(frozen=True)
class Edit:
    """A self-edit understood: its text, the training rows it makes, and the settings it asked for (may be none)."""

    text: str
    examples: tuple[Example, ...]
    directives: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadEdit:
    """A self-edit that cannot be used. It is recorded with the reason and scores 0; it is never silently resampled."""

    text: str
    reason: str


@dataclass(frozen=True)
class Attempt:
    """One inner loop, tried and graded: the row of ``attempts.jsonl``.

    ``reward`` is what the outer loop selects by; ``None`` means *ungraded*, or *failed*: no worker lived
    through it (never to be read as wrong). ``before`` and
    ``after`` are accuracies of the unadapted and the adapted model on the same queries. ``silent`` is the share of
    empty answers.
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
        numbers = {k: [row[k]] for k in ("reward", "before", "after") if row[k] is not None} | {"scores": row.get("scores", ())}
        if wrong := next((k for k, v in numbers.items() if not all(isinstance(x, int | float) for x in v)), None):
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
