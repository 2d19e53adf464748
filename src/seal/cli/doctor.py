"""``seal doctor``: what is here, how fast it is, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seal.machine import EXTRAS, machine, missing, product_rate

LIBRARIES = ("seal-lm", "torch", "transformers", "peft", "vllm")


def examine(folder: Path = Path()) -> list[str]:
    """Lines for people; each finding on one, in the order of a first look."""
    return [*_versions(), *_hardware(folder), *_rates(), *_extras()]


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [f"versions    Python {platform.python_version()}, {', '.join(found)}"]


def _hardware(folder: Path) -> list[str]:
    import torch

    from seal.lora.capacity import free_memory
    from seal.lora.load import usable_cores

    memory, disk = free_memory(torch.device("cpu")), shutil.disk_usage(folder)
    lines = [
        f"machine     {machine()}; this process may use {usable_cores()} of them ({os.uname().sysname})",
        f"memory      {memory / 1e9:.1f} GB free",
        f"disk        {disk.free / 1e9:.1f} GB free here, of {disk.total / 1e9:.0f}",
    ]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        lines.append(f"cuda:{i}      {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if not torch.cuda.is_available():
        lines.append("devices     cpu alone: no CUDA device is here, or torch was built without CUDA")
    if torch.backends.mps.is_available():
        lines.append("devices     mps, too")
    return lines


def _rates() -> list[str]:
    import torch

    from seal.lora.load import native_bf16, usable_cores

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    lines = []
    for device in devices:
        threads = usable_cores() if device == "cpu" else None
        rates = {d: product_rate(device, getattr(torch, d), threads) for d in ("float32", "bfloat16")}
        taken = "bfloat16" if native_bf16(device) else "float32"
        said = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
        lines.append(f"{device:<11} products of matrices: {said}; bf16 = auto computes in {taken}")
        if (faster := max(rates, key=lambda d: rates[d])) != taken:
            lines.append(
                f"{'':<11} {faster} is the faster one here: say --model.bf16 {str(taken == 'float32').lower()}"
            )
    return lines


def _extras() -> list[str]:
    lines = ["extras"]
    for extra, (_, purpose) in EXTRAS.items():
        gone = missing(extra)
        state = "is here" if not gone else f"missing ({', '.join(gone)}): pip install 'seal-lm[{extra}]'"
        lines.append(f"  {extra:<10}{purpose}: {state}")
    return lines
