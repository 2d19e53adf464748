"""The decoding loop: tokens one after another, with a KV cache, through an adapter for each row or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from seal.lora.adapter import Adapter
from seal.lora.chat import render
from seal.lora.grammar import Constraint
from seal.lora.model import Model
from seal.lora.records import LoraError, Prompt, Sampling, Written
from seal.lora.slots import Slots
from seal.lora.tokens import encode_prompt, end_token, pad_left

T = TypeVar("T")


def encode(model: Model, prompt: Prompt, sampling: Sampling) -> list[int]:
    tokens = encode_prompt(render(prompt, model.tokenizer, model.chat), model.tokenizer, model.chat)
    if len(tokens) + sampling.max_tokens > model.context:
        raise LoraError(
            f"a prompt of {len(tokens)} tokens with room for {sampling.max_tokens} more does not fit the "
            "model's "
            f"{model.context} positions: {prompt.text[:60]!r}…"
        )
    return tokens


def fits(model: Model, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
    """Whether every prompt, and what may be written after it, fits the model's context."""
    try:
        return all(encode(model, p, sampling) for p in prompts)
    except LoraError:
        return False


def rectangle_of(rows_K_Q: Sequence[Sequence[T]]) -> tuple[list[T], int]:
    """Ragged lists as one rectangle: each short list is filled up with the first row there is."""
    width = max(len(rows) for rows in rows_K_Q)
    filler = next((rows[0] for rows in rows_K_Q if rows), None)
    flat = [row for rows in rows_K_Q for row in [*rows, *[filler] * (width - len(rows))]]
    return [r for r in flat if r is not None], width


def slots_of(model: Model, adapters: Sequence[Adapter | None]) -> Slots | None:
    """Slots holding these adapters (an empty slot changes nothing), or ``None`` when there is none to
    hold."""
    real = [a for a in adapters if a is not None]
    if not real:
        return None
    modules = {n: model.runner.get_submodule(n) for a in real for n in a.weights}
    room = Slots(modules, len(adapters), max(a.rank for a in real), model.device)
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            room.put(slot, adapter)
    return room


@torch.no_grad()
def decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    room: Slots | None = None,
) -> list[Written]:
    """The decoding loop, with a KV cache. With ``room`` the prompts are a rectangle, as many for each of its
    slots.

    Rows that have stopped leave the batch, and so do slots all of whose rows have.
    """
    batch = _Batch(model, prompts, room)
    draws = _draws(sampling, seeds)  # (N, max_tokens) uniform numbers, one row's own, or None
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    end = end_token(model.tokenizer)
    constraint = Constraint(model.tokenizer, sampling.schema, len(prompts)) if sampling.schema else None
    with batch:
        for step in range(sampling.max_tokens):
            logits = batch.forward()
            if constraint:
                logits = constraint.mask(logits, batch.rows)
            tokens = _choose(logits, sampling, None if draws is None else draws[batch.rows, step])
            for row, token in zip(batch.rows, tokens.tolist(), strict=True):
                if row not in open_rows:
                    continue
                if token == end:
                    open_rows.remove(row)
                    continue
                written[row].append(token)
                if constraint:
                    constraint.take(row, token)
                if sampling.stop and sampling.stop in model.tokenizer.decode(written[row]).lstrip():
                    open_rows.remove(row)
            if not open_rows:
                break
            batch.take(tokens, open_rows)
    texts = model.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Written(text, row in open_rows) for row, text in enumerate(answers_in(texts, sampling))]


def answers_in(texts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each up to what ends an answer, once something is written."""
    return [t.lstrip().split(sampling.stop)[0] if sampling.stop else t for t in texts]


class _Batch:
    """Rows being decoded: what goes in next, the KV cache, and which prompt and slot each row belongs to."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: Slots | None) -> None:
        self.model, self.room = model, room
        self.rows = list(range(len(prompts)))
        self.width = len(prompts) // len(room) if room else 1  # rows per slot, now
        self.wide = self.width  # and at the start: row // wide is a row's slot
        self.adapters = ExitStack()
        self.cache = DynamicCache(config=model.runner.config)
        # Samples of one prompt share its prefill. Under adapters the same prompt is not the same computation.
        first: dict[tuple[int, ...], int] = {}
        self.repeats = (
            [first.setdefault(tuple(p), len(first)) for p in prompts] if room is None else self.rows
        )
        alone = list(map(list, first)) if room is None else prompts
        self.ids, self.mask = pad_left(alone, model.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def __enter__(self) -> None:
        self._attach(None)

    def __exit__(self, *error: object) -> None:
        self.adapters.close()

    def _attach(self, slots: list[int] | None) -> None:
        self.adapters.close()
        if self.room:
            self.adapters.enter_context(self.room.attached(self.model.runner.dtype, slots))

    def forward(self) -> Tensor:
        """Logits of the next token of every row, (N, V)."""
        out = self.model.forward(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        if len(logits) < len(self.rows):  # the prompts have been read: one row for each of their samples
            index = torch.tensor(self.repeats, device=logits.device)
            self._select(index)
            self.mask, self.positions, logits = self.mask[index], self.positions[index], logits[index]
        return logits

    def take(self, tokens: Tensor, open_rows: set[int]) -> None:
        """Go on with these tokens, without rows that have stopped where that is worth the copy."""
        keep = self._worth_keeping(open_rows)
        if len(keep) <= 0.7 * len(self.rows):
            index = torch.tensor(keep, device=tokens.device)
            self.rows = [self.rows[i] for i in keep]
            self._select(index)
            tokens, self.mask, self.positions = tokens[index], self.mask[index], self.positions[index]
            if self.room:
                slots = list(dict.fromkeys(row // self.wide for row in self.rows))
                self.width = len(self.rows) // len(slots)
                self._attach(slots)
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def _select(self, index: Tensor) -> None:
        """These rows of the cache, whose layers may lie on several devices."""
        for layer in self.cache.layers:
            keys = getattr(layer, "keys", None)
            layer.batch_select_indices(index if keys is None else index.to(keys.device))

    def _worth_keeping(self, open_rows: set[int]) -> list[int]:
        """Places of the rows still open; with adapters, as many for every slot that has any (filled up with
        stopped ones)."""
        going = [i for i, row in enumerate(self.rows) if row in open_rows]
        if self.room is None:
            return going
        slots = [range(k, k + self.width) for k in range(0, len(self.rows), self.width)]
        width = max(sum(self.rows[i] in open_rows for i in places) for places in slots)
        keep = []
        for places in slots:
            still = sorted(places, key=lambda i: self.rows[i] not in open_rows)[:width]
            if self.rows[still[0]] in open_rows:
                keep += sorted(still)
        return keep


def _draws(sampling: Sampling, seeds: Sequence[int]) -> Tensor | None:
    if sampling.temperature == 0:
        return None
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(sampling.max_tokens, generator=g) for g in generators])


def _choose(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
    """The next token of each row: (N, V) → (N,). Nucleus sampling by inverting the cumulative distribution at
    ``draw``."""
    if draw is None:
        return logits.argmax(-1)
    probs, order = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True)
    total = probs.cumsum(-1)
    probs = probs.masked_fill(total - probs >= sampling.top_p, 0)  # the smallest set that reaches top_p
    total = probs.cumsum(-1)
    at = (
        (total < draw.to(total.device)[:, None] * total[:, -1:])
        .sum(-1, keepdim=True)
        .clamp(max=probs.shape[-1] - 1)
    )
    return order.gather(-1, at)[:, 0]
