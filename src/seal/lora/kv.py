"""Keys and values of what has been read, kept where they are: a step writes one token and copies nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE = 64
"""Tokens of room that a layer takes beyond what it needs, or a quarter of that: it is copied when the room is full."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' growing layer without its copy of everything at every token: keys (N, G, T, D) and values
    (N, G, T, E) are the beginning of something longer."""

    keys: Tensor
    values: Tensor
    _whole: tuple[Tensor, ...]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write behind what is there; all keys and values, as views."""
        before = self.get_seq_length()
        until = before + key_states.shape[-2]
        if not before:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        if not before or until > self._whole[0].shape[-2]:
            old = (self.keys, self.values) if before else (None, None)
            room = until + max(SPARE, until // 4)
            self._whole = tuple(
                _longer(new, kept, room) for new, kept in zip((key_states, value_states), old, strict=True)
            )
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., before:until, :] = new
        self._show(until)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """These rows alone, in this order, with the room that they have."""
        if used := self.get_seq_length():
            self._whole = tuple(
                _longer(w, w[..., :used, :].index_select(0, beam_idx), w.shape[-2]) for w in self._whole
            )
            self._show(used)

    def _show(self, until: int) -> None:
        self.keys, self.values = (whole[..., :until, :] for whole in self._whole)


def _longer(like: Tensor, kept: Tensor | None, room: int) -> Tensor:
    """Room for so many tokens, of which those that are kept are the first."""
    rows = like.shape[0] if kept is None else kept.shape[0]
    whole = like.new_empty(rows, *like.shape[1:-2], room, like.shape[-1])
    if kept is not None:
        whole[..., : kept.shape[-2], :] = kept
    return whole


def cache_of(config: PretrainedConfig) -> DynamicCache:
    """What a model of this config keeps of its rows. Layers with a window, or with a state that runs on, are
    transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
