"""A LoRA adapter: where it goes, how it begins, and adapters on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seal.lora.records import LoraError, Recipe


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained LoRA adapter (one is equal to itself alone): for each adapted module's path, A (R, in) and B
    (out, R), in fp32 on the CPU."""

    rank: int
    alpha: float
    weights: dict[str, tuple[Tensor, Tensor]]
    base: dict[str, str] | None = field(default=None, repr=False)
    """The hash of the weights that it is of, where it was read from a file that says it."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_modules(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Path → linear layer, in the model's order. ``all-linear`` is every ``nn.Linear`` of the language model
    but the output head: none of a vision tower beside it, and none that computes in its own way (a router);
    and beside experts in one tensor none that PEFT would take for an expert's (:data:`EXPERTS`).

    Raises:
        LoraError: a name matches no ``nn.Linear`` of this model.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    language: Any = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    inside = set((language if isinstance(language, PreTrainedModel) else model).modules())
    linears = {n: m for n, m in model.named_modules() if _is_linear(m) and m is not head and m in inside}
    taken = {n for n in linears if n.rsplit(".", 1)[-1] in RENAMED or _is_fused(model, n)}
    linears = {n: m for n, m in linears.items() if n not in taken}
    if any(p.ndim == 3 and "experts" in n for n, p in model.named_parameters()):
        linears = {n: m for n, m in linears.items() if n.rsplit(".", 1)[-1] not in EXPERTS}
    if targets == "all-linear":
        if not linears:
            raise LoraError(
                f"{type(model).__name__} has no nn.Linear layer to adapt (GPT-2's Conv1D is not supported)"
            )
        return linears
    wanted = {targets} if isinstance(targets, str) else set(targets)
    found = {n: m for n, m in linears.items() if n in wanted or n.rsplit(".", 1)[-1] in wanted}
    missing = wanted - {n.rsplit(".", 1)[-1] for n in found} - set(found)
    if missing:
        known = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
        raise LoraError(
            f"no linear layer is named {', '.join(sorted(missing))} in this model; it has: {known}"
        )
    return found


EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate")
"""Names under which PEFT looks for experts. In a model that keeps them in one tensor, it puts what an adapter
has for a dense layer of such a name on the experts instead (PEFT 0.21, ``transformers_weight_conversion``)."""


RENAMED = ("weight_proj",)
"""Of short convolutions (Inkling): transformers takes an adapter's key there for an old name of a weight."""


@torch.no_grad()
def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear layer, also one that a library of quantisation has put in its place, or of a class of a model's
    own that computes the same; not one that gives something else (a router, groups)."""
    own = type(module).__module__.startswith(("transformers.models.", "transformers_modules."))
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward or not own:
        return isinstance(module, nn.Linear)
    x = torch.ones(1, 2, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        found: Any = module(x)
    except Exception:  # of a model that somebody else wrote
        return False
    plain = nn.functional.linear(x, module.weight, module.bias)
    if not isinstance(found, Tensor) or found.shape != plain.shape:
        return False
    return found.is_meta or bool(torch.allclose(found, plain, atol=1e-3, rtol=1e-3))


def _is_fused(model: nn.Module, name: str) -> bool:
    """Whether it is the last layer of a Mamba block: its fused kernels take the weight past the layer, and
    PEFT refuses an adapter there."""
    parent, _, last = name.rpartition(".")
    block = model.get_submodule(parent)
    return last == "out_proj" and hasattr(block, "conv1d") and hasattr(block, "D")


def adapted_modules(model: nn.Module, recipe: Recipe) -> dict[str, nn.Linear]:
    """The layers that a recipe adapts: its targets, of its last layers where it says so (those whose path
    holds the highest numbers).

    Raises:
        LoraError: a name matches no ``nn.Linear`` of this model.
    """
    found = target_modules(model, recipe.targets)
    if recipe.last_layers is None:
        return found
    numbers = {name: next((int(x) for x in name.split(".") if x.isdigit()), -1) for name in found}
    last = sorted({n for n in numbers.values() if n >= 0})[-recipe.last_layers :]
    return {name: module for name, module in found.items() if numbers[name] in last}


def init_adapter(modules: dict[str, nn.Linear], recipe: Recipe, seed: int) -> Adapter:
    """A fresh adapter, PEFT's way: A uniform in ±1/sqrt(in) (Kaiming with a = √5), B zero, so that nothing
    changes yet.

    Drawn on the CPU from the seed alone: the same on every device and whatever is trained beside it.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in modules.items():
        bound = 1 / math.sqrt(module.in_features)
        a = torch.empty(recipe.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        weights[name] = (a, torch.zeros(module.out_features, recipe.rank))
    return Adapter(recipe.rank, recipe.alpha, weights)


def no_change(model: nn.Module, recipe: Recipe) -> Adapter:
    """The adapter that changes nothing, in one rank of one layer: a stack that is none yet, on disk."""
    name, module = next(iter(adapted_modules(model, recipe).items()))
    a, b = torch.zeros(1, module.in_features), torch.zeros(module.out_features, 1)
    return Adapter(1, 1.0, {name: (a, b)})


def join(beneath: Adapter | None, adapter: Adapter, weight: float = 1.0) -> Adapter:
    """One adapter that does what both do together, ``weight`` times the second: ranks add up, and the scale
    is the second's."""
    if beneath is None and weight == 1.0:
        return adapter
    scale, weights = adapter.scale, {}
    first = beneath.weights if beneath else {}
    for name in dict.fromkeys([*first, *adapter.weights]):
        parts = []
        if beneath:
            if name in first:
                parts.append((first[name][0], first[name][1] * (beneath.scale / scale)))
            else:
                a, b = adapter.weights[name]
                parts.append((a.new_zeros(beneath.rank, a.shape[1]), b.new_zeros(len(b), beneath.rank)))
        if name in adapter.weights:
            parts.append((adapter.weights[name][0], adapter.weights[name][1] * weight))
        else:
            a, b = first[name]
            parts.append((a.new_zeros(adapter.rank, a.shape[1]), b.new_zeros(len(b), adapter.rank)))
        weights[name] = (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1))
    rank = adapter.rank + (beneath.rank if beneath else 0)
    return Adapter(rank, scale * rank, weights)


def compress(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """The nearest adapter of a smaller rank (Eckart and Young: a truncated SVD, layer by layer), and the
    share of the change that is lost, |Δ - Δ'|² / |Δ|² over all layers."""
    if adapter.rank <= rank:
        return adapter, 0.0
    weights, lost, total = {}, 0.0, 0.0
    for name, (a, b) in adapter.weights.items():
        qb, rb = torch.linalg.qr(b.double())  # B A = Qb (Rb Ra^T) Qa^T: the SVD of a small matrix
        qa, ra = torch.linalg.qr(a.double().T)
        u, s, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        lost += float((s[rank:] ** 2).sum())
        total += float((s**2).sum())
        half = s[:rank].sqrt()
        low_a, low_b = (half[:, None] * v[:rank]) @ qa.T, qb @ (u[:, :rank] * half)
        short = rank - len(half)
        weights[name] = (
            torch.cat([low_a, low_a.new_zeros(short, a.shape[1])]).float(),
            torch.cat([low_b, low_b.new_zeros(len(b), short)], 1).float(),
        )
    return Adapter(rank, adapter.scale * rank, weights), lost / total if total else 0.0


def compact(adapter: Adapter) -> Adapter:
    """The same change of the weights in as few ranks as the largest of its modules needs: for adapters joined
    again and again."""
    full = max(min(a.shape[1], len(b)) for a, b in adapter.weights.values())
    if adapter.rank <= full:
        return adapter
    weights = {}
    for name, (a, b) in adapter.weights.items():
        narrow = a.shape[1] <= len(b)
        eye = torch.eye(a.shape[1] if narrow else len(b))
        first, second = (eye, b @ a) if narrow else (b @ a, eye)
        rest = full - len(eye)
        weights[name] = (
            torch.cat([first, first.new_zeros(rest, a.shape[1])]),
            torch.cat([second, second.new_zeros(len(b), rest)], 1),
        )
    return Adapter(full, adapter.scale * full, weights)


def upper(joined: Adapter, rank: int, names: Sequence[str]) -> Adapter:
    """The second part of what :func:`join` put together: the last ``rank`` ranks, on these modules."""
    weights = {
        n: (joined.weights[n][0][-rank:].clone(), joined.weights[n][1][:, -rank:].clone()) for n in names
    }
    return Adapter(rank, joined.scale * rank, weights)


def away_from(adapter: Adapter, beneath: Adapter | None) -> Adapter:
    """A fresh adapter whose A is orthogonal to the rows of A of those beneath: it reads what they do not."""
    if beneath is None:
        return adapter
    weights = {}
    for name, (a, b) in adapter.weights.items():
        if name in beneath.weights:
            q, r = torch.linalg.qr(beneath.weights[name][0].T.double())  # (in, R)
            q = q[:, r.diagonal().abs() > 1e-9]
            free = a.double() - a.double() @ q @ q.T
            size = a.double().norm(dim=1, keepdim=True) / free.norm(dim=1, keepdim=True).clamp_min(1e-12)
            weights[name] = ((free * size).float(), b)
            continue
        weights[name] = (a, b)
    return Adapter(adapter.rank, adapter.alpha, weights)
