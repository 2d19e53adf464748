"""Adapters on top of each other: joined into one, made compact, kept apart in what they read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from seal.models.lora import Adapter


def join(beneath: Adapter | None, adapter: Adapter, weight: float = 1.0) -> Adapter:
    """One adapter that does what both do together, ``weight`` times the second: ranks add up, and the scale is the second's."""
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


def compact(adapter: Adapter) -> Adapter:
    """The same change of the weights in as few ranks as the largest of its modules needs: for adapters joined again and again."""
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
    weights = {n: (joined.weights[n][0][-rank:].clone(), joined.weights[n][1][:, -rank:].clone()) for n in names}
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
            a = (free * (a.double().norm(dim=1, keepdim=True) / free.norm(dim=1, keepdim=True).clamp_min(1e-12))).float()  # noqa: PLW2901
        weights[name] = (a, b)
    return Adapter(adapter.rank, adapter.alpha, weights)
