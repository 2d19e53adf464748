"""Rows that are being decoded: what goes in next, and the cache of what went in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seal.lora.kv import cache_of
from seal.lora.slots import Slots
from seal.lora.thin import thin_products
from seal.lora.tokens import pad_left

if TYPE_CHECKING:
    from seal.lora.model import Model


class Batch:
    """Rows being decoded: what goes in next, the KV cache, and which prompt and slot each row belongs to."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: Slots | None) -> None:
        self.model, self.room = model, room
        self.rows = list(range(len(prompts)))
        self.width = len(prompts) // len(room) if room else 1  # rows per slot, now
        self.wide = self.width  # and at the start: row // wide is a row's slot
        self.slots: list[int] | None = None  # those that are left; all
        self.adapters = ExitStack()
        self.cache = cache_of(model.runner.config)
        # Samples of one prompt share its prefill. Under adapters the same prompt is not the same computation.
        first: dict[tuple[int, ...], int] = {}
        self.repeats = (
            [first.setdefault(tuple(p), len(first)) for p in prompts] if room is None else self.rows
        )
        alone = list(map(list, first)) if room is None else prompts
        self.ids, self.mask = pad_left(alone, model.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def attach(self) -> None:
        """Put the adapters of the slots that are left in force, and products for few rows, until ``adapters`` is
        closed."""
        self.adapters.close()
        if self.room:
            self.adapters.enter_context(self.room.attached(self.model.runner.dtype, self.slots))
        self.adapters.enter_context(thin_products(self.model.runner))

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
                self.slots = list(dict.fromkeys(row // self.wide for row in self.rows))
                self.width = len(self.rows) // len(self.slots)
                self.attach()
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def _select(self, index: Tensor) -> None:
        """These rows of the cache, whose layers may lie on several devices."""
        for layer in self.cache.layers:  # of every kind: keys and values, states of recurrent layers
            keys = getattr(layer, "keys", None)
            layer.reorder_cache(index if keys is None else index.to(keys.device))

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
