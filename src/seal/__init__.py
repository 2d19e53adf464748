"""SEAL: self-adapting language models.

::

    import seal

    config = seal.load_config("configs/atlas.toml", ["--name", "mine"])
    seal.train(config, controls=["random"])
    seal.evaluate(config)
    seal.report(config.folder)

    card = seal.teach(["handbook/"], "taught", model="my-model")
    seal.ask("taught", "When does the office open?")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal.config import RunConfig, load_config
    from seal.domains.base import Domain
    from seal.loop.verbs import evaluate, train
    from seal.records import (
        Attempt,
        BadEdit,
        Edit,
        Example,
        Grade,
        Prompt,
        Query,
        Recipe,
        Result,
        SealError,
        Task,
        Wanted,
    )  # fmt: skip
    from seal.teach.ask import ask_taught as ask

_HOME = {
    "seal.config": ("RunConfig", "load_config"),
    "seal.domains.base": ("Domain",),
    "seal.records": (
        "Attempt",
        "BadEdit",
        "Edit",
        "Example",
        "Grade",
        "Prompt",
        "Query",
        "Recipe",
        "Result",
        "SealError",
        "Task",
        "Wanted",
    ),
    "seal.loop.verbs": ("evaluate", "train"),
}
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
    "Result",
    "RunConfig",
    "SealError",
    "Task",
    "Wanted",
    "ask",
    "evaluate",
    "load_config",
    "report",
    "teach",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("report", "teach"):  # rooms that are their own verbs
        return import_module(f"seal.{name}")
    if name == "ask":
        return import_module("seal.teach.ask").ask_taught
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'seal' has no attribute {name!r}")
    return getattr(import_module(home), name)
