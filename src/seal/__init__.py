"""SEAL: self-adapting language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal.config import RunConfig, load_config
    from seal.domains.base import Domain
    from seal.records import Attempt, BadEdit, Edit, Example, Grade, Prompt, Query, Recipe, SealError, Task

_HOME = {
    "seal.config": ("RunConfig", "load_config"),
    "seal.domains.base": ("Domain",),
    "seal.records": (
        "Attempt", "BadEdit", "Edit", "Example", "Grade", "Prompt", "Query", "Recipe", "SealError", "Task",
    ),
}  # fmt: skip
"""Where each public name lives. A room is imported when one of its names is first asked for (PEP 562)."""

__all__ = [
    "Attempt",
    "BadEdit",
    "Domain",
    "Edit",
    "Example",
    "Grade",
    "Prompt",
    "Query",
    "Recipe",
    "RunConfig",
    "SealError",
    "Task",
    "load_config",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'seal' has no attribute {name!r}")
    return getattr(import_module(home), name)
