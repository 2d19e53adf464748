"""How many adapters fit: slots from the memory that is free, tokens of one pass from what a token costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seal.models.lora import Slots, adapted_modules, init_adapter
from seal.models.memory import free_memory, is_out_of_memory
from seal.models.packing import pack
from seal.models.policy import Policy
from seal.models.tokens import Row
from seal.types import Recipe

MOST_SLOTS = 64
ENOUGH = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass beyond which a bigger one is hardly faster: on two CPU cores measured (docs/LOG.md), on CUDA assumed."""
BYTES_PER_WEIGHT = 24
"""Per adapter weight: itself, two moments and its gradient in fp32, and working copies of weight and gradient."""


@dataclass(frozen=True)
class Room:
    """How much goes side by side."""

    slots: int
    """Adapters held at once."""
    tokens: int
    """Tokens of one forward and backward, padding included (a single adapter's batch may be more)."""


def room_for(policy: Policy, recipes: Sequence[Recipe]) -> Room:
    """What fits into the memory that is free now, for adapters of these recipes.

    Half of it for the adapters and their optimiser state, half for activations: what a token keeps for the backward pass is
    counted in a trial of one small row, and doubled for what comes and goes.
    """
    free = min(map(free_memory, policy.devices))
    widest = max(recipes, key=lambda r: r.rank * (10**6 if r.targets == "all-linear" else len(r.targets)), default=Recipe())
    adapter = init_adapter(adapted_modules(policy.runner, widest), widest, 0)
    weights = sum(a.numel() + b.numel() for a, b in adapter.weights.values())
    slots = free // 2 // (weights * BYTES_PER_WEIGHT)
    try:
        tokens = free // 2 // (2 * bytes_per_token(policy, widest))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        tokens = 1  # training will find out whether anything fits
    enough = ENOUGH.get(policy.device.type, ENOUGH["cuda"])
    if not policy.plain:
        enough = min(enough, 2048)  # their mask is as wide as the pass, both ways
    return Room(max(1, min(MOST_SLOTS, slots)), max(1, min(enough, tokens)))


def bytes_per_token(policy: Policy, recipe: Recipe) -> int:
    """Memory that one training token keeps between forward and backward, in bytes: counted, on any device."""
    modules = adapted_modules(policy.runner, recipe)
    slots = Slots(modules, 1, recipe.rank, policy.device)
    n = min(32, policy.context)
    vocabulary = policy.runner.config.get_text_config().vocab_size
    row = Row(tuple(int(i) for i in np.arange(n) % vocabulary), (False, *[True] * (n - 1)))
    kept: dict[int, int] = {}
    frozen = {p.untyped_storage().data_ptr() for p in policy.runner.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with slots.attached(policy.runner.dtype, grad=True) as weights, saved, policy.losses(pack([[row]], policy.device)):
        pass
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return max(1, sum(kept.values()) // n)
