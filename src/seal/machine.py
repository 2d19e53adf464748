"""The machine and the versions that a number depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


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
