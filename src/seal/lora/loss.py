"""Cross-entropy of a frozen linear head, chunk by chunk; and the divergence from a teacher beside it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from seal.lora.packing import SoftTargets

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
        soft: SoftTargets | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " M"]]:
        needs = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if needs else None
        losses = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = linear(hidden[part], weight, bias).float()  # (m, V)
            logs = logits.sub_(logits.logsumexp(1, keepdim=True))
            each = -logs.gather(1, targets[part, None])[:, 0]
            if soft is None:
                if grad is not None:
                    slope = logs.exp_()
                    minus = slope.new_full((1, 1), -1.0).expand(len(slope), 1)
                    slope.scatter_add_(1, targets[part, None], minus)
            else:
                each, slope = _with_teacher(logs, targets[part], each, soft, part)
            losses.append(each)
            if grad is not None:
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
        return grad * total.to(grad.dtype), None, None, None, None, None, None


chunked_loss: Any = ChunkedLoss.apply
"""``chunked_loss(hidden, weight, bias, targets, share, chunk, soft)``"""


SURE = 1e-6
"""Less than this is no probability: what is left to one class at the precision of a sum in fp32."""


def _with_teacher(
    logs: Float[Tensor, "m V"],
    targets: Int[Tensor, " m"],
    ordinary: Float[Tensor, " m"],
    soft: SoftTargets,
    part: slice,
) -> tuple[Tensor, Tensor]:
    """Of a chunk: both losses by their weights (m,), and their slope by the logits (m, V).

    The divergence (see :mod:`seal.lora.teacher`) is a cross-entropy with the target t = p in the teacher's
    top, and p_rest · q / q_rest elsewhere; so its slope is q - t, and elsewhere q (1 - p_rest / q_rest).
    """
    ids, taught, a, w = soft.ids[part], soft.logs[part], soft.ordinary[part], soft.weight[part]
    kl, p, rest = divergence_from(taught, logs.gather(1, ids))
    q = logs.exp()
    mine = q.gather(1, ids)
    slope = q * (a + w * (1 - rest))[:, None]
    slope.scatter_add_(1, ids, (taught > -torch.inf) * w[:, None] * (mine * rest[:, None] - p))
    slope.scatter_add_(1, targets[:, None], -a[:, None])
    return a * ordinary + w * kl, slope


def divergence_from(
    taught: Float[Tensor, "m top"], mine: Float[Tensor, "m top"]
) -> tuple[Tensor, Tensor, Tensor]:
    """From log-probabilities of a teacher's top tokens, its and the learner's: the divergence (m,), the
    teacher's probabilities (m, top), and p_rest / q_rest (m,)."""
    there = taught > -torch.inf
    p = taught.exp()
    p_rest = 1 - p.sum(1)
    p_rest = torch.where(p_rest < SURE, 0.0, p_rest)
    q_rest = (1 - (mine.exp() * there).sum(1)).clamp_min(SURE)
    top = torch.where(there, p * (taught - mine), 0.0).sum(1)
    rest = torch.special.xlogy(p_rest, p_rest) - p_rest * q_rest.log()
    return top + rest, p, p_rest / q_rest
