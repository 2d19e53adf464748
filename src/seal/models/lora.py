"""K LoRA adapters on one frozen model, side by side in one forward and backward.

The model is not changed: while slots are attached, a forward hook on every target ``nn.Linear`` adds each row's own
low-rank update. Rows come in a rectangle, B per adapter: (K·B, T) with adapter k owning rows k·B … (k+1)·B - 1.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seal.types import Recipe, SealError

# Our parameters are strided views (one row of ``flat`` per adapter); autograd says once that it would lay them out otherwise.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter: for each adapted module's path, A (R, in) and B (out, R), in fp32 on the CPU."""

    rank: int
    alpha: float
    weights: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_modules(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Path → linear layer, in the model's order. ``all-linear`` is every ``nn.Linear`` but the output head.

    Raises:
        SealError: a name matches no ``nn.Linear`` of this model.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == "all-linear":
        return linears
    wanted = {targets} if isinstance(targets, str) else set(targets)
    found = {n: m for n, m in linears.items() if n.rsplit(".", 1)[-1] in wanted}
    missing = wanted - {n.rsplit(".", 1)[-1] for n in found}
    if missing:
        known = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
        raise SealError(f"no linear layer is named {', '.join(sorted(missing))} in this model; it has: {known}")
    return found


def init_adapter(modules: dict[str, nn.Linear], recipe: Recipe, seed: int) -> Adapter:
    """A fresh adapter, PEFT's way: A uniform in ±1/sqrt(in) (Kaiming with a = √5), B zero, so that nothing changes yet.

    Drawn on the CPU from the seed alone: the same on every device and whatever is trained beside it.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in modules.items():
        bound = 1 / math.sqrt(module.in_features)
        a = torch.empty(recipe.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        weights[name] = (a, torch.zeros(module.out_features, recipe.rank))
    return Adapter(recipe.rank, recipe.alpha, weights)


class Slots:
    """Room for K adapters of rank up to R on the same modules, stored flat: one row of ``flat`` (K, P) per adapter.

    Every A (K, R, in) and B (K, out, R) is a view into ``flat``, and its gradient a view into ``grad``, so the optimiser
    and gradient clipping work on all adapters and modules at once. A smaller rank is padded with zeros, which stay zero:
    the gradient of a padded row of A is proportional to the zero column of B, and the other way round.
    """

    def __init__(self, modules: dict[str, nn.Linear], n_slots: int, rank: int, device: torch.device | str) -> None:
        self.modules = modules
        self.rank = rank
        self.scale = torch.zeros(n_slots, 1, 1, device=device)
        sizes = [(rank * m.in_features, m.out_features * rank) for m in modules.values()]
        self.flat = torch.zeros(n_slots, sum(a + b for a, b in sizes), device=device)
        self.grad = torch.zeros_like(self.flat)
        self._make_views()

    def _make_views(self) -> None:
        self.views: dict[str, tuple[Tensor, Tensor]] = {}
        start = 0
        for name, module in self.modules.items():
            pair = []
            for shape in ((self.rank, module.in_features), (module.out_features, self.rank)):
                stop = start + shape[0] * shape[1]
                view = self.flat[:, start:stop].view(-1, *shape).detach().requires_grad_()
                view.grad = self.grad[:, start:stop].view(-1, *shape)
                pair.append(view)
                start = stop
            self.views[name] = (pair[0], pair[1])

    def __len__(self) -> int:
        return len(self.flat)

    @torch.no_grad()
    def put(self, slot: int, adapter: Adapter) -> None:
        """Place an adapter in a slot, over whatever was there. Modules that it does not adapt are left unchanged by it."""
        self.flat[slot] = 0
        self.scale[slot] = adapter.scale
        for name, (a, b) in adapter.weights.items():
            view_a, view_b = self.views[name]
            view_a.data[slot, : adapter.rank] = a.to(view_a.device)
            view_b.data[slot, :, : adapter.rank] = b.to(view_b.device)

    @torch.no_grad()
    def take(self, slot: int, like: Adapter) -> Adapter:
        """A copy of a slot's adapter, of the rank and on the modules of ``like``."""
        weights = {}
        for name in like.weights:
            a, b = self.views[name]
            cut = (a[slot, : like.rank].cpu().clone(), b[slot, :, : like.rank].cpu().contiguous().clone())
            weights[name] = cut
        return Adapter(like.rank, like.alpha, weights)

    def keep(self, slots: Sequence[int]) -> None:
        """Shrink to these slots, in this order."""
        index = torch.tensor(list(slots), device=self.flat.device, dtype=torch.long)
        self.flat = self.flat[index].clone()
        self.grad = torch.zeros_like(self.flat)
        self.scale = self.scale[index].clone()
        self._make_views()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While inside, every forward of the model must have K·B rows, and each row meets its own adapter."""
        handles = [m.register_forward_hook(self._hook(*self.views[n])) for n, m in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, a: Tensor, b: Tensor) -> Any:
        n_slots = len(self)

        def add_update(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = args[0]  # (K·B, T, in), or (K·B·T, in) where a model flattens
            grouped = x.reshape(n_slots, -1, x.shape[-1])  # (K, B·T, in)
            low = torch.bmm(grouped, a.to(x.dtype).mT) * self.scale.to(x.dtype)  # (K, B·T, R)
            return out + torch.bmm(low, b.to(x.dtype).mT).view_as(out)

        return add_update


# ------------------------------------------------------------------------------------------------------- PEFT's folder


def save_peft(adapter: Adapter, folder: Path, base_model: str) -> None:
    """Write PEFT's folder (``adapter_config.json``, ``adapter_model.safetensors``)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({n.rsplit(".", 1)[-1] for n in adapter.weights}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_peft(folder: Path) -> Adapter:
    """Read a LoRA adapter from PEFT's folder.

    Raises:
        SealError: a file is missing, or the adapter is of a kind other than plain LoRA.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise SealError(f"{folder} is not an adapter folder in PEFT's format: {error}") from error
    unsupported = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(k)]
    if config.get("peft_type") != "LORA" or unsupported:
        raise SealError(f"{folder} is not a plain LoRA adapter ({', '.join(unsupported) or config.get('peft_type')})")
    weights = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[name] = (a.float(), tensors[key.replace(".lora_A.", ".lora_B.")].float())
    return Adapter(int(config["r"]), float(config["lora_alpha"]), weights)
