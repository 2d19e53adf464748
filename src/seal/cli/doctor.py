"""``seal doctor``: what is here, how fast it is, and what is missing."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seal.machine import EXTRAS, machine, missing

LIBRARIES = ("seal-lm", "torch", "transformers", "peft", "vllm")


def examine(folder: Path = Path()) -> list[str]:
    """Lines for people; each finding on one, in the order of a first look."""
    return [*_versions(), *_hardware(folder), *_devices(), *_models(), *_extras()]


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [f"versions    Python {platform.python_version()}, {', '.join(found)}"]


def _hardware(folder: Path) -> list[str]:
    disk = shutil.disk_usage(folder)
    return [
        f"machine     {machine()} ({platform.system()})",
        f"disk        {disk.free / 1e9:.1f} GB free here, of {disk.total / 1e9:.0f}",
    ]


def _devices() -> list[str]:
    from seal.lora.hardware import devices, rates

    lines = []
    for device, what in (found := devices()).items():
        lines.append(f"{device:<11} {what}")
        if device == "mps":
            continue
        by_precision, taken = rates(device)
        said = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in by_precision.items())
        lines.append(f"{'':<11} products of matrices: {said}; bf16 = auto computes in {taken}")
        if (faster := max(by_precision, key=lambda name: by_precision[name])) != taken:
            asked = "true" if taken == "float32" else "false"
            lines.append(f"{'':<11} {faster} is the faster one here: say --model.bf16 {asked}")
    if not any(name.startswith("cuda") for name in found):
        lines.append("cuda        none here, or torch was built without it")
    return lines


def _models() -> list[str]:
    from seal.cli.models import OF_THE_PACKAGE, own_model
    from seal.lora.cache import cache_folder, kept

    there = ", ".join(f"{k.name} ({k.bytes / 1e6:,.0f} MB)" for k in kept()) or "none but this package's own"
    return [
        f"models      {there}; kept in {cache_folder()}",
        f"{'':<11} where none is named: {own_model() or OF_THE_PACKAGE}",
    ]


def _extras() -> list[str]:
    lines = ["extras"]
    for extra, (_, purpose) in EXTRAS.items():
        gone = missing(extra)
        state = "is here" if not gone else f"missing ({', '.join(gone)}): pip install 'seal-lm[{extra}]'"
        lines.append(f"  {extra:<10}{purpose}: {state}")
    return lines
