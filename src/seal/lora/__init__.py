"""K LoRA adapters side by side on one frozen model: trained, sampled, asked and scored. Knows nothing of
SEAL, and is usable alone.

Its ``README.md`` shows it in eight lines. A module is imported when one of its names is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal.lora.adapter import Adapter
    from seal.lora.decoder import Decoder
    from seal.lora.fake import fake
    from seal.lora.files import load_peft, save_peft
    from seal.lora.load import load_model
    from seal.lora.model import Model
    from seal.lora.records import Example, LoraError, ModelSpec, Prompt, Query, Recipe, Sampling
    from seal.lora.sample import ask, complete, generate
    from seal.lora.score import divergence, log_likelihood
    from seal.lora.train import Job, Trained, train_adapters

_HOME = {
    "adapter": ("Adapter",),
    "sample": ("ask", "complete", "generate"),
    "decoder": ("Decoder",),
    "fake": ("fake",),
    "files": ("load_peft", "save_peft"),
    "load": ("load_model",),
    "model": ("Model",),
    "records": ("Example", "LoraError", "ModelSpec", "Prompt", "Query", "Recipe", "Sampling"),
    "score": ("divergence", "log_likelihood"),
    "teacher": ("Teacher",),
    "train": ("Job", "Trained", "train_adapters"),
}

__all__ = [
    "Adapter",
    "Decoder",
    "Example",
    "Job",
    "LoraError",
    "Model",
    "ModelSpec",
    "Prompt",
    "Query",
    "Recipe",
    "Sampling",
    "Teacher",
    "Trained",
    "ask",
    "complete",
    "divergence",
    "fake",
    "generate",
    "load_model",
    "load_peft",
    "log_likelihood",
    "save_peft",
    "train_adapters",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'seal.lora' has no attribute {name!r}")
    return getattr(import_module(f"seal.lora.{home}"), name)
