"""A stack of adapters over frozen weights: laid over them, or merged into a copy of them."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seal.lora.adapter import Adapter
from seal.lora.records import LoraError


@torch.no_grad()
def laid_over(bare: Any, exact: Any, stack: Adapter) -> Any:
    """A model that computes the weights and the stack, and shares with ``bare`` all that the stack does not
    change.

    Where the weights are kept in fp32 (``exact``), a changed layer gets weights of its own, W + scale · B A,
    in the precision of ``bare``: what a merged model has, at its speed. 16-bit weights would round most of a
    small update away, and 4-bit ones have none to add to: there the layer adds the update to its output.
    """
    shared = chain(bare.parameters(), bare.buffers(), map(_quant_state, bare.modules()))
    over = copy.deepcopy(bare, {id(x): x for x in shared if x is not None})
    for name, (a, b) in stack.weights.items():
        module: Any = over.get_submodule(name)
        weight = exact.get_submodule(name).weight
        if weight.dtype == torch.float32:
            whole = weight + _update(stack, a, b).to(weight.device)
            module.weight = nn.Parameter(whole.to(module.weight.dtype), requires_grad=False)
        else:
            there = {"device": weight.device, "dtype": over.dtype}
            module.register_forward_hook(_Above(a.to(**there), (stack.scale * b).to(**there)))
    return over


def _quant_state(module: nn.Module) -> Any:
    return getattr(module, "quant_state", None)


def _update(stack: Adapter, a: Tensor, b: Tensor) -> Tensor:
    return stack.scale * (b @ a)


class _Above:
    """A hook of a layer: its output, and the update of its input. x (…, in), A (R, in), B (out, R)."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        low = linear(args[0].to(self.a.dtype), self.a)
        rows = torch.addmm(out.flatten(0, -2).to(low.dtype), low.flatten(0, -2), self.b.T)
        return rows.view(out.shape).to(out.dtype)


@torch.no_grad()
def merge_into(whole: Any, stack: Adapter) -> float:
    """Add a stack to weights for good: W ← W + scale · B A. The share of it that arrived, ⟨W' - W, update⟩ /
    ⟨update, update⟩.

    Raises:
        LoraError: the weights are quantised.
    """
    arrived = total = 0.0
    for name, (a, b) in stack.weights.items():
        w = whole.get_submodule(name).weight
        if not w.is_floating_point():
            raise LoraError("adapters cannot be merged into 4-bit weights: load the model without quantize")
        update = _update(stack, a, b).to(w.device)
        before = w.float()
        w.copy_((before + update).to(w.dtype))
        if w.dtype != torch.float32:
            arrived += float(((w.float() - before) * update).sum())
            total += float((update * update).sum())
    return arrived / total if total else 1.0
