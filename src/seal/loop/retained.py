"""What a real model knew before and still knows: questions with four choices, and plain prose.

Written for this project (``data/probe``): common facts, idioms, small sums, grammar; each item scored by the
likelihood of its choices, so that no answer has to be parsed. Only items that the untouched model has right count:
what it never knew it cannot lose. A guess is right one time in four, so some of those are luck.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.records import EMBEDDED
from seal.lora.score import row_likelihood
from seal.lora.tokens import Row, encode_example
from seal.records import Example, Json

PROBE = Path(__file__).parents[1] / "data" / "probe"
ENOUGH = 0.4
"""Share of the items that a model must have right to be asked at all: a guess has .25."""
FIRST = 80
"""Items that tell whether the others are worth asking."""
ROW = 256
"""Longest row of prose, in tokens."""
SOME_PROSE = 12_000
"""Characters of prose that are read where all of it would take too long: eight seconds of a busy core at 135M weights,
in bf16."""


@dataclass(frozen=True)
class Item:
    """A question with four choices, the first of which is right."""

    kind: str
    question: str
    choices: tuple[str, ...]


@cache
def items() -> tuple[Item, ...]:
    """All of them, kinds mixed, always in one order."""
    lines = (PROBE / "items.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return tuple(Item(x["kind"], x["question"], tuple(x["choices"])) for x in found)


@cache
def prose() -> str:
    """Plain prose on common things."""
    return (PROBE / "prose.txt").read_text("utf-8")


def right_items(
    model: Model, adapters: Sequence[Adapter | None], items_K_N: Sequence[Sequence[Item]]
) -> list[list[bool]]:
    """Whether the right choice is the likeliest per token, of each adapter's items."""
    rows = [[_row(model, i.question, c) for i in mine for c in i.choices] for mine in items_K_N]
    found = []
    for mine, scores in zip(items_K_N, row_likelihood(model, adapters, rows, 8), strict=True):
        flat = iter(scores)
        by_item = [[next(flat) for _ in i.choices] for i in mine]
        found.append([s[0] > max(s[1:]) for s in by_item])
    return found


def known_items(model: Model) -> list[Item]:
    """The items that the untouched model has right; none where it is little better than a guess at the first of
    them, or the model is of an invented world."""
    if model.base_name in EMBEDDED:
        return []
    mine: list[Item] = []
    for some in (items()[:FIRST], items()[FIRST:]):
        (right,) = right_items(model, [None], [some])
        mine += [i for i, r in zip(some, right, strict=True) if r]
        if len(mine) < ENOUGH * FIRST:
            return []
    return mine


def perplexity(
    model: Model, adapters: Sequence[Adapter | None], characters: int | None = None
) -> list[float]:
    """Of the prose (its first so many characters), per token, under each adapter."""
    rows = _prose_rows(model, prose()[:characters])
    tokens = [sum(r.loss) for r in rows]
    return [
        math.exp(-sum(s * n for s, n in zip(scores, tokens, strict=True)) / sum(tokens))
        for scores in row_likelihood(model, adapters, [rows] * len(adapters), 4)
    ]


def retained(model: Model, adapters: Sequence[Adapter]) -> Json | None:
    """What several adapters, each by itself, left of what the model knew before it was taught; ``None`` where the
    items say nothing of this model.

    Returns:
        ``items`` there are, ``known`` before, ``kept`` by each adapter, the questions that one of them ``lost``, and
        the ``perplexity`` of prose before and by each.
    """
    mine = known_items(model)
    if not mine or not adapters:
        return None
    kept = right_items(model, adapters, [mine] * len(adapters))
    before, *after = perplexity(model, [None, *adapters], SOME_PROSE)
    return {
        "items": len(items()),
        "known": len(mine),
        "kept": [sum(row) for row in kept],
        "lost": sorted({i.question for row in kept for i, r in zip(mine, row, strict=True) if not r}),
        "perplexity": {"before": round(before, 3), "after": [round(x, 3) for x in after]},
    }


def _row(model: Model, question: str, choice: str) -> Row:
    """As plain text, for chat models too: what is known, and not how it is asked."""
    example = Example(choice, prompt=question, answer=True, ends=False)
    return model.clip_row(encode_example(example, model.conventions))


def _prose_rows(model: Model, text: str) -> list[Row]:
    """Paragraphs, as many to a row as fit."""
    rows: list[Row] = []
    held = ""
    for paragraph in text.split("\n\n"):
        longer = f"{held}\n\n{paragraph}" if held else paragraph
        row = encode_example(Example(longer, ends=False), model.conventions)
        if held and len(row.ids) > min(ROW, model.context):
            rows.append(model.clip_row(encode_example(Example(held, ends=False), model.conventions)))
            longer = paragraph
        held = longer
    rows.append(model.clip_row(encode_example(Example(held, ends=False), model.conventions)))
    return rows
