"""SEAL: self-adapting language models."""

from seal.config import RunConfig, load_config
from seal.domains.base import Domain
from seal.types import Attempt, BadEdit, Edit, Example, Grade, Prompt, Query, Recipe, SealError, Task

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
