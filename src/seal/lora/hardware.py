"""The devices of this machine, how fast they multiply, and what a model weighs before it is loaded."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from seal.lora.adapter import adapted_modules
from seal.lora.capacity import BYTES_PER_WEIGHT, ENOUGH, MOST_SLOTS, free_memory, spread, weights_bytes
from seal.lora.load import native_bf16, shape_of, threads_of, usable_cores
from seal.lora.model import context_of
from seal.lora.records import ModelSpec, Recipe


def devices() -> dict[str, str]:
    """The devices that torch has here, by their names in ``model.device``, and what there is to say of each."""
    found = {"cpu": f"{usable_cores()} cores, {free_memory(torch.device('cpu')) / 1e9:.1f} GB of memory free"}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found[f"cuda:{i}"] = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple's GPU"
    return found


def rates(device: str) -> tuple[dict[str, float], str]:
    """FLOP/s of products on a device by precision, and the precision that ``bf16 = "auto"`` computes in."""
    threads = usable_cores() if device == "cpu" else None
    found = {name: product_rate(device, getattr(torch, name), threads) for name in ("float32", "bfloat16")}
    return found, "bfloat16" if native_bf16(device) else "float32"


def product_rate(
    device: str, dtype: torch.dtype, threads: int | None = None, shape: tuple[int, int] | None = None
) -> float:
    """FLOP/s of a plain matrix product on a device: the best of a tenth of a second or more.

    Args:
        threads: of the CPU; those in force, unless given.
        shape: tokens and width of the product (tokens, width) by (width, width); 1024 both on the CPU, and
            8192 elsewhere.
    """
    tokens, width = shape or ((1024, 1024) if device == "cpu" else (8192, 8192))
    x, w = (torch.randn(n, width, device=device).to(dtype) for n in (tokens, width))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        best, end = math.inf, time.perf_counter() + 0.1
        while best == math.inf or time.perf_counter() < end:
            begin = time.perf_counter()
            for _ in range(3):
                torch.nn.functional.linear(x, w)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - begin) / 3)
    finally:
        torch.set_num_threads(before)
    return 2 * tokens * width * width / best


def peak_memory(device: str) -> int:
    """The most that this process has held so far, on the device."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Shape:
    """A model by its config alone: what it weighs, without loading it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.config, self.conventions = shape_of(spec)
        with torch.device("meta"):
            self.empty: Any = AutoModelForCausalLM.from_config(self.config)
        linear = [m for m in self.empty.modules() if isinstance(m, torch.nn.Linear)]
        self.weights = sum(m.in_features * m.out_features for m in linear)
        """That take part in a product for every token."""
        kind = spread(spec.device)[0]
        self.native = native_bf16(kind) if spec.bf16 == "auto" else spec.bf16
        self.bytes_each = 4 if spec.dtype == "float32" and not self.native and not spec.quantize else 2

    @property
    def context(self) -> int:
        """As :attr:`seal.lora.model.Model.context`."""
        return context_of(self.config)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.conventions.tokenizer(text)["input_ids"])

    def adapter_weights(self, recipe: Recipe) -> int:
        """Of one adapter."""
        found = adapted_modules(self.empty, recipe).values()
        return sum(recipe.rank * (m.in_features + m.out_features) for m in found)

    def rate(self) -> float:
        """FLOP/s of a product, as this machine has it now, on the model's device and in its precision."""
        dtype = torch.bfloat16 if self.bytes_each == 2 else torch.float32
        return product_rate(spread(self.spec.device)[0], dtype, threads_of(self.spec))

    def memory(self, recipe: Recipe, slots: int | str, pass_tokens: int | str, stack: bool) -> int:
        """At its highest, while adapters are trained: the weights (a stack over fp32 weights has its own of
        the layers that it changes), adapters with their optimiser, and the activations of a pass."""
        spec, text = self.spec, self.config.get_text_config()
        copied = bool(self.native) and spec.dtype == "float32"
        frozen = weights_bytes(self.config, spec.dtype, spec.quantize, copied)
        over = (
            self.weights * self.bytes_each if stack and spec.dtype == "float32" and not spec.quantize else 0
        )
        kind = spread(spec.device)[0]
        free = max(0, free_memory(torch.device(kind)) - frozen - over)
        each = self.adapter_weights(recipe) * BYTES_PER_WEIGHT
        n = min(MOST_SLOTS, max(1, free // 2 // each)) if slots == "auto" else int(slots)
        wide = int(getattr(text, "intermediate_size", 4 * text.hidden_size))
        # a token's activations: counted by bytes_per_token on Llamas of four shapes
        token = self.bytes_each * text.num_hidden_layers * (11 * text.hidden_size + 4 * wide)
        fits = max(1, free // 2 // (2 * token))
        if pass_tokens == "auto":
            pass_tokens = min(ENOUGH.get(kind.partition(":")[0], ENOUGH["cuda"]), fits)
        return int(frozen + over + n * each + int(pass_tokens) * 2 * token)
