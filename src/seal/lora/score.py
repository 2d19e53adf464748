"""How likely a text is to a model and its adapters, and how far an adapter has moved it: one forward pass, no
generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice

import torch

from seal.lora.adapter import Adapter
from seal.lora.capacity import in_parts
from seal.lora.decoder import rectangle_of
from seal.lora.model import Model
from seal.lora.records import Example, LoraError, Query
from seal.lora.sample import ROWS
from seal.lora.slots import slots_of
from seal.lora.tokens import Row, encode_example


@torch.no_grad()
def log_likelihood(
    model: Model,
    adapters: Sequence[Adapter | None],
    queries_K_Q: Sequence[Sequence[Query]],
    slots: int = 32,
) -> list[list[float]]:
    """Mean log-probability per token of each query's gold answer (end token included): one forward, no
    generation."""
    return row_likelihood(
        model, adapters, [[_gold_row(model, q) for q in queries] for queries in queries_K_Q], slots
    )


@torch.no_grad()
def row_likelihood(
    model: Model, adapters: Sequence[Adapter | None], rows_K_B: Sequence[Sequence[Row]], slots: int = 32
) -> list[list[float]]:
    """Mean log-probability per loss token of each row, under the adapter of its list."""
    found: list[list[float]] = [[] for _ in adapters]

    def some(start: int, stop: int) -> None:
        rows = rows_K_B[start:stop]
        found[start:stop] = [[] for _ in rows]  # also where a part of them did not fit before
        for part in _at_most(ROWS, rows):
            asked = sorted(part, key=lambda k: sum(len(r.ids) for r in part[k]))
            room = slots_of(model.runner, [adapters[start + k] for k in asked], model.device)
            lines = model.pack([part[k] for k in asked])
            with (
                room.attached(model.runner.dtype, rectangle=lines.rectangle) if room else nullcontext(),
                model.losses(lines) as (_, each),
            ):
                losses = iter(each.tolist())
            for k in asked:
                counts = [sum(row.loss) for row in part[k]]
                found[start + k] += [-sum(islice(losses, n)) / max(1, n) for n in counts]

    in_parts(len(adapters), slots, some)
    return found


def _at_most(most: int, rows_K: Sequence[Sequence[Row]]) -> Iterator[dict[int, list[Row]]]:
    """All rows, each under the number of its owner, so many at once; in order."""
    flat = [(k, row) for k, rows in enumerate(rows_K) for row in rows]
    for first in range(0, len(flat), most):
        part: dict[int, list[Row]] = {}
        for k, row in flat[first : first + most]:
            part.setdefault(k, []).append(row)
        yield part


@torch.no_grad()
def divergence(
    model: Model,
    adapters: Sequence[Adapter | None],
    examples_K_B: Sequence[Sequence[Example]],
    slots: int = 16,
) -> list[float]:
    """KL(model ‖ model with adapter) in nats per loss token, for each adapter on its own examples: how far it
    has moved there."""
    found = [0.0] * len(adapters)

    def some(start: int, stop: int) -> None:
        rows = [
            [model.clip_row(encode_example(e, model.conventions)) for e in mine]
            for mine in examples_K_B[start:stop]
        ]
        flat, width = rectangle_of(rows)
        room = slots_of(model.runner, adapters[start:stop], model.device)
        if not width or room is None:
            return
        longest = max(len(r.ids) for r in flat)
        ids = torch.tensor([[*r.ids, *[0] * (longest - len(r.ids))] for r in flat], device=model.device)
        real = torch.tensor(
            [[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in flat], device=model.device
        )
        loss = torch.tensor(
            [[*r.loss, *[False] * (longest - len(r.ids))] for r in flat], device=model.device
        )[:, 1:]
        for k, mine in enumerate(rows):  # what fills the rectangle up is not counted
            loss[k * width + len(mine) : (k + 1) * width] = False
        plain = model.forward(input_ids=ids, attention_mask=real).logits[:, :-1][loss].float().log_softmax(-1)
        with room.attached(model.runner.dtype):
            moved = (
                model.forward(input_ids=ids, attention_mask=real).logits[:, :-1][loss].float().log_softmax(-1)
            )
        each = (plain.exp() * (plain - moved)).sum(-1)
        owner = (
            torch.arange(len(flat), device=model.device)
            .div(width, rounding_mode="floor")[:, None]
            .expand_as(loss)[loss]
        )
        for k in range(stop - start):
            mine_ = each[owner == k]
            found[start + k] = float(mine_.mean()) if len(mine_) else 0.0

    in_parts(len(adapters), slots, some)
    return found


def _gold_row(model: Model, query: Query) -> Row:
    prompt = query.prompt
    example = Example(query.gold, prompt=prompt.text, system=prompt.system, chat=True, answer=True)
    row = encode_example(example, model.conventions)
    if len(row.ids) > model.context:
        raise LoraError(
            f"a question with its answer is {len(row.ids)} tokens, and the model's context holds "
            f"{model.context}: {query.prompt.text[:60]!r}…"
        )
    return row
