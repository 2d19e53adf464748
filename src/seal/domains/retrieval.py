"""Retrieval, the alternative people would use: BM25 over passages (through the library bm25s)."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s


class Retriever:
    """An index of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.n = len(texts)
        words = bm25s.tokenize(list(texts), stopwords=None, show_progress=False)
        self.index = bm25s.BM25() if words.vocab else None
        if self.index:
            self.index.index(words, show_progress=False)

    def best(self, query: str, k: int) -> list[int]:
        """The places of the ``k`` texts that fit best, best first (fewer if there are fewer)."""
        return self.scored(query, k)[0]

    def scored(self, query: str, k: int) -> tuple[list[int], list[float]]:
        """:meth:`best`, and how well each fits."""
        words = bm25s.tokenize([query], stopwords=None, show_progress=False)
        if self.index is None:  # texts without a word: none fits better than another
            return list(range(min(k, self.n))), [0.0] * min(k, self.n)
        found, scores = self.index.retrieve(words, k=min(k, self.n), show_progress=False)
        return [int(i) for i in found[0]], [float(x) for x in scores[0]]
