"""How much memory there is, and how much a model's weights will want: known before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from seal.types import SealError


def weights_bytes(config: PretrainedConfig, dtype: str, quantize: str | None = None, copy: bool = False) -> int:
    """Bytes that the weights of a model take: counted on a model without storage. ``copy``: a second one in bf16 computes."""
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
    """The kind of device, and over how many of them a model is spread: ``cuda*4`` → cuda, 4; ``cuda:1`` → cuda:1, 1."""
    kind, _, number = device.partition("*")
    return (kind, int(number)) if number.isdigit() and int(number) > 1 else (device, 1)


def must_fit(name: str, needed: int, device: str) -> None:
    """
    Raises:
        SealError: the weights alone will not fit in the memory that is free.
    """
    kind, n = spread(device)
    free = sum(free_memory(torch.device(kind, i)) for i in range(n)) if n > 1 else free_memory(torch.device(device))
    if needed > free:
        raise SealError(
            f"the weights of {name!r} take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}: "
            "take --model.dtype bfloat16, --model.quantize 4bit, or a smaller model"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU within the limit of the container, if there is one."""
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
        words in str(error).lower() for words in ("can't allocate memory", "out of memory", "not enough memory")
    )
