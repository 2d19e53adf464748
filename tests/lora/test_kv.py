"""Keys and values in place: what a layer gives is what transformers' growing layer gives, at every step."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from seal.lora.kv import SPARE, RoomyLayer, cache_of


@pytest.mark.parametrize("seed", range(5))
def test_a_roomy_layer_gives_what_the_growing_one_gives(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ours, theirs, rows = RoomyLayer(), DynamicLayer(), 5
    for step in range(2 * SPARE):
        if step and rng.random() < 0.1:  # rows leave, and come again as siblings
            rows = rng.randint(1, 6)
            index = torch.tensor([rng.randrange(theirs.keys.shape[0]) for _ in range(rows)])
            ours.reorder_cache(index), theirs.reorder_cache(index)
        n = rng.randint(2, 30) if step == 0 or rng.random() < 0.05 else 1
        new = [torch.randn(rows, 2, n, width, generator=generator) for width in (4, 3)]
        for mine, other in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_a_step_copies_nothing_until_the_room_is_full() -> None:
    layer = RoomyLayer()
    keys, _ = layer.update(torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2))
    places = [
        layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))[0].data_ptr() for _ in range(SPARE)
    ]
    assert set(places) == {keys.data_ptr()}
    fuller, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert fuller.data_ptr() != keys.data_ptr()


def test_layers_with_a_window_stay_what_transformers_makes_them() -> None:
    config = LlamaConfig(
        num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=8
    )
    assert [type(x) for x in cache_of(config).layers] == [DynamicSlidingWindowLayer, RoomyLayer]
