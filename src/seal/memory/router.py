"""Which of several things learnt a question needs, by the question alone."""

from __future__ import annotations

from collections.abc import Sequence

from seal.domains.retrieval import Retriever
from seal.memory.strategies import Rows
from seal.records import Prompt, Task


class Router:
    """Picks an adapter of a library by the question alone: BM25 over titles and training rows. A question
    that fits none half as well as the worst of their own titles does is nobody's."""

    def __init__(self, tasks: Sequence[Task], rows: Sequence[Rows]) -> None:
        titles = [str(t.data.get("title", t.id)) for t in tasks]
        self.index = Retriever(
            [
                " ".join([title, *(x.completion for x in mine)])
                for title, mine in zip(titles, rows, strict=True)
            ]
        )
        own = []
        for place, title in enumerate(titles):
            places, scores = self.index.scored(title, len(titles))
            own.append(scores[places.index(place)])
        self.least = min(own) / 2 if own else 0.0

    def pick(self, prompt: Prompt) -> int:
        """The place of an adapter; -1 for none."""
        places, scores = self.index.scored(prompt.text, 1)
        return places[0] if scores[0] > self.least else -1
