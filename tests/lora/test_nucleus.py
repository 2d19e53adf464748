"""Nucleus sampling by the likeliest tokens is that of the full sort, to the token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seal.lora.nucleus import choose


def by_full_sort(logits: Tensor, temperature: float, top_p: float, draw: Tensor) -> Tensor:
    """Written down plainly: sorted, the smallest set that reaches top_p, inverted at the draw."""
    found = []
    for row, u in zip((logits / temperature).softmax(-1), draw, strict=True):
        probs, ids = row.sort(dim=0, descending=True, stable=True)
        total = probs.cumsum(0)
        n = int((total - probs < top_p).sum()) if top_p < 1 else len(probs)
        mass = total[n - 1] if top_p < 1 else torch.tensor(1.0)
        found.append(int(ids[min(int((total < u * mass).sum()), n - 1)]))
    return torch.tensor(found)


SHAPES = {
    "peaked": lambda g: torch.randn(40, 3000, generator=g) * 4,
    "flat": lambda g: torch.randn(40, 3000, generator=g) * 0.1,
    "ties everywhere": lambda g: torch.randint(0, 4, (40, 3000), generator=g).float(),
    "all the same": lambda g: torch.zeros(40, 3000),
    "16-bit": lambda g: (torch.randn(40, 3000, generator=g) * 2).bfloat16().float(),
    "one alone": lambda g: torch.eye(40, 3000) * 100,
    "small": lambda g: torch.randn(40, 30, generator=g),
    "mixed": lambda g: torch.randn(40, 3000, generator=g) * torch.rand(40, 1, generator=g) * 8,
}


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_token_is_that_of_the_full_sort(shape: str, top_p: float) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = SHAPES[shape](generator)
        draw = torch.rand(len(logits), generator=generator)
        draw[:3] = torch.tensor([0.0, 1 - 2**-24, 0.5])
        for few in (1, 4, 64):
            mine = choose(logits, 0.8, top_p, draw, few)
            assert torch.equal(mine, by_full_sort(logits, 0.8, top_p, draw))


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_numbers_that_are_none_give_some_token(top_p: float) -> None:
    """A diverged adapter is told by its loss; what it writes meanwhile is anything, and no error."""
    logits = torch.full((2, 3000), float("nan"))
    logits[1] = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    draw = torch.tensor([0.5, 0.5])
    found = choose(logits, 1.0, top_p, draw)
    assert 0 <= int(found[0]) < 3000
    assert int(found[1]) == int(by_full_sort(logits[1:], 1.0, top_p, draw[1:]))


def test_tokens_come_as_often_as_they_are_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2000, generator=generator) * 3
    probs = (logits / 0.7).softmax(-1)[0]
    drawn = choose(logits.expand(20_000, -1), 0.7, 1.0, torch.rand(20_000, generator=generator), 16)
    best = probs.topk(5).indices
    for token in best:
        share, expected = float((drawn == token).float().mean()), float(probs[token])
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5)
