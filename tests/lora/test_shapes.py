"""The shapes that the annotations of packing, attention, loss and slots promise are the shapes there are."""

from __future__ import annotations

import subprocess
import sys

CHECKED = ("packing", "attention", "loss", "slots")
CODE = f"""
from jaxtyping import install_import_hook

with install_import_hook([f"seal.lora.{{m}}" for m in {CHECKED}], "beartype.beartype"):
    from seal.lora import attention, loss, packing, slots

import pytest
import torch
from jaxtyping import TypeCheckError
from seal.lora.sample import ask
from seal.lora.loss import chunked_loss
from seal.lora.records import Example, Prompt, Query, Recipe, Sampling
from seal.lora.score import divergence, log_likelihood
from seal.lora.train import Job, train_adapters
from tests import tiny

model = tiny.policy()
jobs = [
    Job((Example("a b c " * (n + 1)), Example("d", prompt="e ")), Recipe(rank=n + 1, steps=2, batch_size=2, targets="all-linear"), n)
    for n in range(3)
]
adapters = [t.adapter for t in train_adapters(model, jobs)]
train_adapters(model, [Job(jobs[0].examples, jobs[0].recipe, 5, beneath=adapters[0], only_b=True)])
ask(model, [*adapters, None], [[Prompt("x"), Prompt("yz")]] * 4, Sampling(3))
log_likelihood(model, adapters, [[Query(Prompt("x"), "y")]] * 3)
divergence(model, adapters, [[Example("x y")]] * 3)
with pytest.raises(TypeCheckError):
    chunked_loss(torch.zeros(3, 8), torch.zeros(5, 9), None, torch.zeros(3, dtype=torch.long), torch.zeros(3), 64)
"""


def test_annotated_shapes_hold_from_training_to_asking() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
