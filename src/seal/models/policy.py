"""The weights in force: any Hugging Face causal LM, loaded, adapted, merged and saved."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from seal.models.lora import Adapter
from seal.models.tokens import Row
from seal.types import SealError

EMBEDDED = "atlas"
"""The name of the model that ships with the package."""


class Policy:
    """A frozen model with its tokenizer. Training never touches ``model``; only :meth:`merge` changes its weights."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, bf16: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.bf16 = bf16
        """Compute in bf16 (autocast) over weights kept in fp32."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def chat(self) -> bool:
        """Whether prompts go through a chat template."""
        return self.tokenizer.chat_template is not None

    @property
    def context(self) -> int:
        """The longest row the model takes, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 2048))

    def clip_row(self, row: Row) -> Row:
        """A row cut to the model's context."""
        return Row(row.ids[: self.context], row.loss[: self.context])

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward, in the policy's precision."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return self.model(**inputs)

    @torch.no_grad()
    def merge(self, adapter: Adapter, weight: float = 1.0) -> None:
        """Add an adapter to the weights for good: W ← W + weight · scale · B A."""
        for name, (a, b) in adapter.weights.items():
            w = self.model.get_submodule(name).weight
            update = weight * adapter.scale * (b @ a)
            w.copy_((w.float() + update.to(w.device)).to(w.dtype))

    def save(self, folder: Path) -> None:
        """Write a folder that :func:`load_policy`, and any ``from_pretrained``, reads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(
    name: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    bf16: bool | Literal["auto"] = False,
    threads: int | None = None,
) -> Policy:
    """Load a causal LM by hub name or local folder; ``"atlas"`` is the embedded model.

    ``bf16="auto"`` computes in bf16 where the hardware multiplies it natively.

    Raises:
        SealError: there is no such model, or it cannot be read.
    """
    if threads:
        torch.set_num_threads(threads)
    where: str | Path = resources.files("seal.models") / "atlas" if name == EMBEDDED else name  # type: ignore[assignment]
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SealError(f"the model {str(name)!r} cannot be loaded (neither a folder here nor reachable): {first}") from error
    return Policy(model.to(device), tokenizer, str(name), native_bf16(device) if bf16 == "auto" else bf16)


def native_bf16(device: str) -> bool:
    """Whether a device multiplies bf16 matrices in hardware: elsewhere they are slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text("utf-8") if device == "cpu" and cpu.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
