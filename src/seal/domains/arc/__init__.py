"""Few-shot puzzles of the ARC kind: choose how to train on the demonstrations, then answer the test grid."""

from seal.domains.arc.domain import Arc

__all__ = ["Arc"]
