"""How an adapter is trained where nobody says otherwise, by the size of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from seal.config import LearnConfig
from seal.lora.hardware import Shape
from seal.lora.records import EMBEDDED, ModelSpec, Recipe


@dataclass(frozen=True)
class Default:
    """A recipe, and why it is this one."""

    recipe: Recipe
    why: str


EMBEDDED_RECIPE = Recipe(rank=32, alpha=64, targets="all-linear", learning_rate=2e-3, epochs=8, batch_size=8)
SMALL_RECIPE = Recipe(rank=16, alpha=32, targets="all-linear", learning_rate=2e-3, epochs=4, batch_size=4)
TINY, SMALL = 20_000_000, 300_000_000
"""Weights in products, up to which a model is as the embedded one, and as the one of 135M."""
TOKENS = 1500
"""Training tokens of one passage, where it is taught by itself."""


def default_for(shape: Shape) -> Default:
    """The recipe for a model.

    Measured here: the embedded model on selection passages of its world, 135M on real passages, each taught by
    itself (``docs/results/recipes.json``; the epochs over many were not measured). Above that a published rule,
    not measured here: LoRA Without Regret (Schulman and Thinking Machines Lab, 2025): all layers, α = 32 whatever
    the rank, a learning rate of 5e-4 · (2000 / hidden size) ** .78.
    """
    if shape.weights <= TINY:
        return Default(EMBEDDED_RECIPE, "chosen on selection passages of the embedded model's world")
    if shape.weights <= SMALL:
        return Default(SMALL_RECIPE, "chosen at 135M weights on real passages: docs/results/recipes.json")
    hidden = int(shape.config.get_text_config().hidden_size)
    rate = 5e-4 * (2000 / hidden) ** 0.78
    digits = 1 - math.floor(math.log10(rate))
    rank = 16 if shape.weights <= 2e9 else 32
    recipe = Recipe(
        rank=rank, alpha=32, targets="all-linear", learning_rate=round(rate, digits), epochs=4, batch_size=4
    )
    return Default(recipe, "by a published rule (LoRA Without Regret), not measured here")


def default_config(model: str, **given: Any) -> LearnConfig:
    """The settings of ``seal learn`` for a model: its size says the recipe, and the embedded one knows one prompt.

    Raises:
        LoraError: there is no such model.
        ValueError: a setting is out of bounds.
    """
    if model in EMBEDDED:
        given = {"prompt": "implications", **given}
    config = LearnConfig(model=model, **given)
    if "recipe" in given or model.startswith("fake:"):  # of a scripted model nothing is trained by its size
        return config
    shape = Shape(ModelSpec(name=config.model, device="cpu"))
    return config.model_copy(update={"recipe": default_for(shape).recipe})
