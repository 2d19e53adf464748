"""Cross-entropy of a frozen linear head, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# --------------------------------------------------------------------------------------- loss, chunk by chunk


class ChunkedLoss(torch.autograd.Function):
    """Weighted cross-entropy of a linear head without ever holding all logits: (M, H) hidden → scalar, and
    (M,) losses.

    The gradient of the hidden states is made chunk by chunk on the way forward, while a chunk's logits are
    there; the head is frozen, so nothing else is needed on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "M H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        targets: Int[Tensor, " M"],
        share: Float[Tensor, " M"],
        chunk: int,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " M"]]:
        needs = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if needs else None
        losses = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = linear(hidden[part], weight, bias).float()  # (m, V)
            norm = logits.logsumexp(1)
            losses.append(norm - logits.gather(1, targets[part, None])[:, 0])
            if grad is not None:
                slope = logits.sub_(norm[:, None]).exp_()
                slope.scatter_add_(1, targets[part, None], slope.new_full((1, 1), -1.0).expand(len(slope), 1))
                slope *= share[part, None]
                torch.mm(slope.to(hidden.dtype), weight, out=grad[part])
        each = torch.cat(losses)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(each)
        return (each * share).sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _each: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * total.to(grad.dtype), None, None, None, None, None


chunked_loss: Any = ChunkedLoss.apply
"""``chunked_loss(hidden, weight, bias, targets, share, chunk)``"""
