"""Which of several things learnt a question needs, by the question alone; or none."""

from __future__ import annotations

from collections.abc import Sequence

from seal.domains.retrieval import Retriever


class Router:
    """An index (BM25) over titles and what stands under each: a passage, or the rows that taught it. A
    question that fits none half as well as the worst of their own titles does is nobody's."""

    def __init__(self, titles: Sequence[str], texts: Sequence[str]) -> None:
        self.index = Retriever([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
        own = []
        for place, title in enumerate(titles):
            places, scores = self.index.scored(title, len(titles))
            own.append(scores[places.index(place)])
        self.least = min(own) / 2 if own else 0.0

    def best(self, text: str) -> int:
        """The place of what fits best, however badly."""
        return self.index.best(text, 1)[0]

    def pick(self, text: str) -> int | None:
        """The place of what the question needs; ``None`` where that is nothing here."""
        places, scores = self.index.scored(text, 1)
        return places[0] if scores and scores[0] > self.least else None
