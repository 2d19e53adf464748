"""Nucleus sampling without sorting the vocabulary: the likeliest tokens are enough, nearly always.

A row of 49,152 or 262,144 logits is otherwise sorted to find the smallest set of tokens that reaches ``top_p``, and that set
mostly has some dozens. Here the likeliest few are taken, and more where they do not reach it. The same logits and
draw give the same token as the full sort, ties included: of tokens that are equally likely the lower id comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 256
"""Tokens that are looked at first; sixteen times as many where they are not enough, and then all."""


def choose(logits: Tensor, temperature: float, top_p: float, draw: Tensor, few: int = FEW) -> Tensor:
    """The next token of each row, by inverting the cumulative distribution over the nucleus at ``draw``.

    Args:
        logits: (N, V)
        draw: (N,) in [0, 1)

    Returns:
        (N,) token ids.
    """
    probs = (logits / temperature).softmax(-1)
    draw = draw.to(probs.device)
    found = torch.zeros(len(probs), dtype=torch.long, device=probs.device)
    left = torch.arange(len(probs), device=probs.device)
    while len(left):
        rows, whole = probs[left], 4 * few >= probs.shape[-1]
        if whole:
            top, ids = rows.sort(dim=-1, descending=True, stable=True)
        else:
            ids = rows.topk(few).indices.sort(dim=-1).values
            top, order = rows.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
            ids = ids.gather(-1, order)
        at, sure = _places(top, top_p, draw[left], whole)
        found[left[sure]] = ids.gather(-1, at[:, None])[:, 0][sure]
        left, few = left[~sure], 16 * few
    return found


def _places(top: Tensor, top_p: float, draw: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Which of the likeliest tokens each row draws, and whether that is sure: those as likely as the last of them
    may stand for others that were not looked at."""
    total = top.cumsum(-1)
    before = total - top
    if top_p < 1:
        inside = before < top_p
        mass = total.gather(-1, (inside.sum(-1, keepdim=True) - 1).clamp(min=0))
    else:
        inside, mass = torch.ones_like(top, dtype=torch.bool), torch.ones_like(top[:, :1])
    at = (total < draw[:, None] * mass).sum(-1)
    at = torch.minimum(at, inside.sum(-1) - 1).clamp(min=0)  # of numbers that are none, the first
    if whole:
        return at, torch.ones_like(at, dtype=torch.bool)
    known = (top > top[:, -1:]).sum(-1)  # of these nothing is left out
    if top_p < 1:
        return at, before.gather(-1, known[:, None])[:, 0] >= top_p
    return at, at < known
