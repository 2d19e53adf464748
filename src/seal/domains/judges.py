"""Judges: models that grade, here or behind an endpoint."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal.endpoint import RETRIES, Endpoint
from seal.records import spoken


@dataclass(frozen=True)
class Item:
    """An answer to be judged."""

    question: str
    gold: str
    answer: str


Judge = Callable[[Sequence[Item]], list[bool | None]]
"""A judge that is a model: verdicts on many answers at once; ``None`` is *ungraded*, never to be read as
wrong."""


def any_of(golds: Sequence[str]) -> str:
    """Several gold answers as a judge is told of them: the first, or any of the others."""
    return golds[0] if len(golds) == 1 else " (or: ".join([golds[0], "; ".join(golds[1:])]) + ")"


def judge_prompt(item: Item) -> str:
    """How a model is asked for a verdict. The answer is whatever a model wrote, so it stands apart, and cut
    to a sensible length."""
    return (
        "Is the answer right? It is right if it says what the correct answer says, in whatever words; more "
        "than that does no harm, "
        "unless it contradicts it.\n\n"
        f"Question: {item.question}\nCorrect answer: {item.gold}\nAnswer: "
        f"{' '.join(item.answer.split())[:1000]}\n\n"
        "Reply with one word, yes or no."
    )


def verdict_of(text: str) -> bool | None:
    """The verdict in a judge's reply, after any thinking; ``None`` if it is neither yes nor no."""
    said = spoken(text) or ""
    found = re.match(r"\W*(yes|no)\b", said.strip(), flags=re.IGNORECASE)
    return None if found is None else found[1].lower() == "yes"


VERDICT = 1024
"""Tokens for one word: some models think before they speak."""


class EndpointJudge:
    """A judge behind an endpoint."""

    def __init__(self, name: str, cache: Path | None = None, retries: int = RETRIES) -> None:
        self.endpoint = Endpoint(name, cache, retries)
        self._told = False

    def __call__(self, items: Sequence[Item]) -> list[bool | None]:
        """A verdict per item; ``None`` where none came, or none that is yes or no."""
        asked = [i for i, item in enumerate(items) if item.answer.strip()]
        verdicts: list[bool | None] = [False] * len(items)  # silence is wrong, and needs no judge
        texts = (
            self.endpoint.write(
                [judge_prompt(items[i]) for i in asked],
                max_tokens=VERDICT,
                usable=lambda t: verdict_of(t) is not None,
            )
            if asked
            else []
        )
        if self.endpoint.refused and not self._told:
            self._told = True
            print(
                f"seal: the judge refused {sum(t is None for t in texts)} of {len(texts)} answers, which stay "
                f"ungraded; the first: {self.endpoint.refused[0]}",
                file=sys.stderr,
            )
        for i, text in zip(asked, texts, strict=True):
            verdicts[i] = None if text is None else verdict_of(text)
        return verdicts
