"""Products of few rows are the same products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from seal.lora.thin import FEW, WIDE, thin_linear, thin_products


@pytest.mark.parametrize("rows", [1, 15, *FEW, 49, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_a_thin_product_is_the_product(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 1, 256), torch.randn(WIDE // 256 + 3, 256)
    added = torch.randn(len(weight)) if bias else None
    found = thin_linear(x, weight, added)
    assert found.is_contiguous()
    torch.testing.assert_close(found, linear(x, weight, added), rtol=1e-4, atol=1e-4)


def test_layers_are_as_they_were_afterwards_and_changed_ones_are_never_touched() -> None:
    model = nn.Sequential(
        nn.Linear(256, 1024), nn.Linear(1024, 8), nn.Linear(256, 1024).bfloat16(), nn.Linear(256, 1024)
    )
    mine = model[3].forward
    model[3].__dict__["forward"] = mine
    x = torch.randn(16, 256)
    before = model[0](x)
    with thin_products(model):
        assert ["forward" in m.__dict__ for m in model] == [True, False, False, True]
        assert model[3].__dict__["forward"] is mine
        torch.testing.assert_close(model[0](x), before, rtol=1e-4, atol=1e-4)
    assert ["forward" in m.__dict__ for m in model] == [False, False, False, True]
