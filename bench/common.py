"""What the benchmarks share: machine and versions, models of a given shape, a tokenizer of one token per
word, records."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from seal.lora.hardware import product_rate
from seal.lora.model import Model
from seal.machine import machine

SHAPES: dict[str, dict[str, int]] = {
    "1M": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 64,
    },
    "10M": {
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "vocab_size": 4096,
    },
    "30M": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 8192,
    },
    "100M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 16384,
    },
}
"""Llamas of random weights."""
QWEN_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1e6,
}  # fmt: skip
"""Qwen2.5-7B's own config."""


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word ``w0``, ``w1``, …: a text has exactly the length one wants."""
    size = min(vocabulary, 20_000)
    words = {"<end>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, size)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def random_policy(shape: str, device: str = "cpu", bf16: bool = True) -> Model:
    """A model of random weights in a real shape, made on the device."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if shape == "7B":
                model: Any = Qwen2ForCausalLM(Qwen2Config(**QWEN_7B))  # type: ignore[arg-type]
            else:
                model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096))  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(before)
    return Model(model, word_tokenizer(model.config.vocab_size), shape)


def words(rng: random.Random, n: int, vocabulary: int) -> str:
    return " ".join(f"w{rng.randrange(2, min(vocabulary, 20_000))}" for _ in range(n))


def parameters(policy: Model) -> int:
    """Weights that take part in a product for every token: all but the input embeddings."""
    return sum(m.weight.numel() for m in policy.runner.modules() if isinstance(m, torch.nn.Linear))


def matmul_rate(device: str, dtype: torch.dtype, tokens: int = 4096, width: int = 1024) -> float:
    """FLOP/s of a plain matrix product on this device."""
    return product_rate(device, dtype, shape=(tokens, width))


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    wait(device)
    start = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - start, result


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval (Student's t) over repeats."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean, "n": 1}
    t = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}.get(len(values) - 1, 2.3)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def record(
    name: str, workload: dict[str, Any], rows: list[dict[str, Any]], ratios: dict[str, Any], **more: Any
) -> Path:
    """Write ``bench/results/NAME.json`` (under ``$OUT`` instead, if that is set) and say where."""
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    libraries = ("torch", "transformers", "peft", "accelerate")
    content = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": machine(), "threads": torch.get_num_threads(), "gpu": gpu()},
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in libraries}},
        "workload": workload,
        "rows": rows,
        "ratios": ratios,
        **more,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}", flush=True)
    return path


def gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except Exception:
        return None
