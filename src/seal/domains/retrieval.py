"""Retrieval, the alternative people would use: BM25 over passages (through the library bm25s)."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s


class Retriever:
    """An index of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.n = len(texts)
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(list(texts), stopwords=None, show_progress=False), show_progress=False)

    def best(self, query: str, k: int) -> list[int]:
        """The places of the ``k`` texts that fit best, best first (fewer if there are fewer)."""
        words = bm25s.tokenize([query], stopwords=None, show_progress=False)
        found, _ = self.index.retrieve(words, k=min(k, self.n), show_progress=False)
        return [int(i) for i in found[0]]
