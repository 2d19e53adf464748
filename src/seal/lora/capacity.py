"""How many adapters fit, and how much a model wants: known before memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from seal.lora.adapter import adapted_modules, init_adapter
from seal.lora.model import Model
from seal.lora.records import LoraError, Recipe
from seal.lora.slots import Slots
from seal.lora.tokens import Row


def weights_bytes(
    config: PretrainedConfig, dtype: str, quantize: str | None = None, copy: bool = False
) -> int:
    """Bytes that the weights of a model take: counted on a model without storage. ``copy``: a second one in
    bf16 computes."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    n = int(sum(p.numel() for p in model.parameters()))
    if quantize:  # the embedding and the head stay in bf16; the rest is half a byte, and its scales
        outside = {
            id(e.weight): e.weight.numel()
            for e in (model.get_input_embeddings(), model.get_output_embeddings())
            if e is not None
        }
        kept = int(sum(outside.values()))
        return 2 * kept + int((n - kept) * 0.57)
    return n * ((4 if dtype == "float32" else 2) + (2 if copy else 0))


def spread(device: str) -> tuple[str, int]:
    """The kind of device, and over how many of them a model is spread: ``cuda*4`` → cuda, 4; ``cuda:1`` →
    cuda:1, 1."""
    kind, _, number = device.partition("*")
    return (kind, int(number)) if number.isdigit() and int(number) > 1 else (device, 1)


def must_fit(name: str, needed: int, device: str) -> None:
    """
    Raises:
        LoraError: the weights alone will not fit in the memory that is free.
    """
    kind, n = spread(device)
    free = (
        sum(free_memory(torch.device(kind, i)) for i in range(n))
        if n > 1
        else free_memory(torch.device(device))
    )
    if needed > free:
        raise LoraError(
            f"the weights of {name!r} take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
            f"{device}: "
            "take --model.dtype bfloat16, --model.quantize 4bit, or a smaller model"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU within the limit of the container, if there is
    one."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [8 << 30]  # where nothing can be learnt
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text("utf-8").splitlines() if ":" in line)
        found = [int(lines["MemAvailable"].split()[0]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text("utf-8").strip() != "max":
        stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text("utf-8").splitlines())
        cache = int(stat.get("inactive_file", 0))  # counted as used, and given up when it is wanted
        found.append(int(limit.read_text("utf-8")) - int(used.read_text("utf-8")) + cache)
    return max(0, min(found))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: CUDA says so by class, the CPU allocator only in words."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error).lower()
        for words in ("can't allocate memory", "out of memory", "not enough memory")
    )


MOST_SLOTS = 64
ENOUGH = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass beyond which a bigger one is hardly faster: on two CPU cores measured (docs/LOG.md), on
CUDA assumed."""
BYTES_PER_WEIGHT = 24
"""Per adapter weight: itself, two moments and its gradient in fp32, and working copies of weight and
gradient."""


@dataclass(frozen=True)
class Room:
    """How much goes side by side."""

    slots: int
    """Adapters held at once."""
    tokens: int
    """Tokens of one forward and backward, padding included (a single row may be more)."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass instead of kept: for about a third more
    work, a fraction of the memory."""


class OutOfRoom(Exception):
    """Memory ran out in a room that was given; a smaller one is worth a try."""

    def __init__(self, smaller: Room) -> None:
        super().__init__(smaller)
        self.smaller = smaller


def room_for(model: Model, recipes: Sequence[Recipe]) -> Room:
    """What fits into the memory that is free now, for adapters of these recipes.

    Half of it for the adapters and their optimiser state, half for activations: what a token keeps for the
    backward pass is counted in a trial of one small row, and doubled for what comes and goes.
    """
    free = min(map(free_memory, model.devices))
    widest = max(
        recipes,
        key=lambda r: r.rank * (10**6 if r.targets == "all-linear" else len(r.targets)),
        default=Recipe(),
    )
    adapter = init_adapter(adapted_modules(model.runner, widest), widest, 0)
    weights = sum(a.numel() + b.numel() for a, b in adapter.weights.values())
    slots = free // 2 // (weights * BYTES_PER_WEIGHT)
    try:
        tokens = free // 2 // (2 * bytes_per_token(model, widest))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        tokens = 1  # training will find out whether anything fits
    enough = ENOUGH.get(model.device.type, ENOUGH["cuda"])
    return Room(max(1, min(MOST_SLOTS, slots)), max(1, min(enough, tokens)))


def bytes_per_token(model: Model, recipe: Recipe) -> int:
    """Memory that one training token keeps between forward and backward, in bytes: counted, on any device."""
    modules = adapted_modules(model.runner, recipe)
    slots = Slots(modules, 1, recipe.rank, model.device)
    n = min(32, model.context)
    vocabulary = model.runner.config.get_text_config().vocab_size
    row = Row(tuple(int(i) for i in np.arange(n) % vocabulary), (False, *[True] * (n - 1)))
    kept: dict[int, int] = {}
    frozen = {p.untyped_storage().data_ptr() for p in model.runner.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with (
        slots.attached(model.runner.dtype, grad=True) as weights,
        saved,
        model.losses(model.pack([[row]])),
    ):
        pass
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return max(1, sum(kept.values()) // n)


def in_parts(total: int, size: int, run: Callable[[int, int], None]) -> None:
    """``run(start, stop)`` over parts of ``size``; where memory runs out, over halves of them."""
    start = 0
    while start < total:
        stop = min(total, start + size)
        try:
            run(start, stop)
            start = stop
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            size = max(1, (stop - start) // 2)
