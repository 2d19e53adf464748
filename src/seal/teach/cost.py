"""What teaching some documents will cost, reckoned before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from seal.config import LearnConfig
from seal.loop.cost import ROW_BYTES, Cost, Work, flops_of, seconds_of
from seal.lora.hardware import Shape
from seal.lora.records import EMBEDDED
from seal.lora.train import plan_batches
from seal.records import Passage
from seal.teach.learn import ASKED
from seal.teach.quiz import ANSWER_TOKENS, DRAFTS, MAX_DRAFT_TOKENS

EDIT_TOKENS = 512
"""Of an edit, at most."""
ROWS = 8
"""Of an edit, assumed: passages of the paper have 7.9."""
PROBE = 20_000
"""Tokens of the questions and the prose that ship with the package, about."""
QUESTION = 24
"""Tokens of a question, assumed."""


def reckon_learn(config: LearnConfig, passages: Sequence[Passage], shape: Shape) -> Cost:
    """What ``seal learn`` will cost: every quiz question drafted and asked, every edit as long as it may
    be."""
    lengths = [shape.count(p["context"]) for p in passages]
    n, text = len(passages), sum(lengths)
    work = Work()
    if config.questions:  # drafted, asked with the passage in view and without, and once more after training
        each = config.questions * (QUESTION + ANSWER_TOKENS)
        work += Work(0, 0, text, DRAFTS * MAX_DRAFT_TOKENS * n)
        work += Work(
            0, 0, config.questions * 2 * text + 4 * n * each, 4 * n * config.questions * ANSWER_TOKENS
        )
    written = 0 if config.writer else n * config.edits * EDIT_TOKENS
    work += Work(0, 0, text, written)
    if config.keep:
        one = config.recipe.epochs * (EDIT_TOKENS + max(lengths))
        work += Work(1, round(one), QUESTION * config.questions, 0, 1) * (n * config.edits)
    edits = min(config.keep or config.edits, config.edits)
    rows = [*lengths, *[EDIT_TOKENS // ROWS] * (ROWS * edits * n)]
    batches = plan_batches(rows, config.recipe, 0)
    adapters = len({p["source"] for p in passages}) if config.per_document else 1
    work += Work(adapters, sum(rows[i] for batch in batches for i in batch))
    if config.model not in EMBEDDED:  # what it knew before, and what every adapter left of it
        work += Work(0, 0, PROBE * (1 + min(adapters, ASKED)))
    disk = 4 * shape.adapter_weights(config.recipe) * adapters + 4 * (work.written + 2 * text)
    return Cost(
        work.loops,
        work.trained,
        work.read,
        work.written,
        sum(flops_of(shape, work).values()),
        seconds_of(shape, work),
        shape.memory(config.recipe, adapters if not config.keep else "auto", "auto", False),
        disk + ROW_BYTES * work.rows,
    )
