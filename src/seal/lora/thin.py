"""Products of few rows: what decoding is made of, where the weights are wide and the rows are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

FEW = range(16, 49)
"""Rows for which the turned product is taken."""
WIDE = 1 << 18
"""Weights that a layer has at least for it: a smaller one was not measured."""


def thin_linear(
    x: Float[Tensor, "*any i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "*any o"]:
    """``linear`` without gradients, which for few rows in fp32 on a CPU is computed turned (:func:`turned`).

    Faster from 16 to 48 rows, now and then slower for 4 (bench/results/thin.json). The rule is fixed, not timed: what is
    computed must not depend on how busy a machine is.
    """
    rows = x.numel() // x.shape[-1]
    return turned(x, weight, bias) if rows in FEW and _is_wide(weight) else linear(x, weight, bias)


def _is_wide(weight: Tensor) -> bool:
    return weight.numel() >= WIDE and weight.dtype == torch.float32 and weight.device.type == "cpu"


def turned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(W xᵀ)ᵀ + bias, contiguous."""
    out = torch.mm(weight, x.reshape(-1, x.shape[-1]).T).T.contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)


@contextmanager
def thin_products(model: nn.Module) -> Iterator[None]:
    """While inside, the plain linear layers of a model compute by :func:`thin_linear`; those that something else
    has changed are left as they are. For decoding alone."""
    changed: list[Any] = [
        m
        for m in model.modules()
        if type(m) is nn.Linear and "forward" not in m.__dict__ and _is_wide(m.weight)
    ]
    for module in changed:
        module.__dict__["forward"] = partial(thin_linear, weight=module.weight, bias=module.bias)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]
