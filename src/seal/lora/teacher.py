"""Soft targets: what a teacher says at every token of a row, to be learnt beside the row itself.

The teacher is the model as it stands (or its weights under another stack), with an adapter on or without, and
with a text in view that the learner does not see. Its likeliest tokens are kept, computed once before
training; all the others go into one class, so that the loss is the divergence between two distributions of
top + 1 classes:

    KL = Σ_top p (log p - log q) + p_rest (log p_rest - log q_rest)

which is never more than that of the whole distributions, and equal to it where ``top`` is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from seal.lora.adapter import Adapter
from seal.lora.records import Example, LoraError
from seal.lora.slots import slots_of
from seal.lora.tokens import Row, Soft, encode_example

if TYPE_CHECKING:
    from seal.lora.model import Model

PASS = 2048
"""Tokens that a teacher reads at once; a single row may be more."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Who a job learns from, where its rows have a view (:attr:`seal.lora.records.Example.view`)."""

    model: Model | None = None
    """The weights and stack that speak: ``None`` for those that are trained on;
    ``policy.with_stack(None)`` is the untouched model."""
    adapter: Adapter | None = None
    """On top of it."""
    top: int = 32
    """Tokens whose probabilities are kept, at every place."""
    weight: float = 1.0
    """Of the divergence, at every loss token of a row with a view."""
    ordinary: float = 1.0
    """Of the ordinary loss beside it; 0: the teacher alone is learnt from."""


@torch.no_grad()
def taught_rows(teacher: Teacher, learner: Model, examples: Sequence[Example]) -> list[Row]:
    """The rows of some examples, with the teacher's targets where they have a view.

    Raises:
        LoraError: a view does not fit the teacher's context together with its row.
    """
    model = teacher.model or learner
    rows = [learner.clip_row(encode_example(e, learner.conventions)) for e in examples]
    views = {i: _seen(model, e, rows[i]) for i, e in enumerate(examples) if e.view is not None}
    order = sorted((i for i in views if any(views[i].loss)), key=lambda i: len(views[i].ids))
    while order:
        n = max(1, PASS // len(views[order[0]].ids))
        some, order = order[:n], order[n:]
        found = _told(model, teacher, [views[i] for i in some])
        for i, soft in zip(some, found, strict=True):
            rows[i] = replace(rows[i], soft=soft)
    return rows


def _seen(model: Model, example: Example, row: Row) -> Row:
    """A row as the teacher reads it: its view first, and then the very tokens that carry loss."""
    if not example.view:
        return row
    whole = encode_example(replace(example, prompt=f"{example.view}\n\n{example.prompt}"), model.conventions)
    n = len(row.ids) - row.loss.index(True) if any(row.loss) else 0
    ids = (*whole.ids[: len(whole.ids) - n], *row.ids[len(row.ids) - n :])
    if len(ids) > model.context:
        raise LoraError(
            f"a view and its row are {len(ids)} tokens, and the teacher's context holds {model.context}: "
            f"{example.view[:60]!r}…"
        )
    return Row(ids, (*[False] * (len(ids) - n), *row.loss[len(row.ids) - n :]))


def _told(model: Model, teacher: Teacher, rows: Sequence[Row]) -> list[Soft]:
    lines = model.pack([list(rows)])
    room = slots_of(model.runner, [teacher.adapter], model.device)
    with room.attached(model.runner.dtype) if room else nullcontext():
        ids, logs = model.likeliest(lines, min(teacher.top, model.vocabulary - 1))
    counts = np.cumsum([sum(row.loss) for row in rows])[:-1]
    weights = (teacher.ordinary, teacher.weight)
    parts = zip(np.split(ids.cpu().numpy(), counts), np.split(logs.cpu().numpy(), counts), strict=True)
    return [Soft(i.astype(np.int32), x.astype(np.float32), weights) for i, x in parts]
