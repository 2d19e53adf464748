"""The architectures that people use, and one of every kind that was once wrong: loss, training, text and export
against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lora.architectures import USED, examine


@pytest.mark.slow
@pytest.mark.parametrize("name", USED)
def test_it_computes_what_transformers_and_peft_do(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    row = examine(name, tmp_path)
    assert row["verdict"] == "right", row
