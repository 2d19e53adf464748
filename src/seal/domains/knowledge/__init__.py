"""Knowledge incorporation: read a passage, write what is worth learning from it, be asked without it."""

from seal.domains.knowledge.domain import Knowledge

__all__ = ["Knowledge"]
