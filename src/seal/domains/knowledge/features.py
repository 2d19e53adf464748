"""What can be said of self-edits without training on them: length, coverage, invention, likeness, kinds of
lines."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from seal.domains.grading import content_words
from seal.records import Task

_PRONOUNS = {"it", "its", "he", "she", "his", "her", "they", "their", "this", "that", "these", "those"}


def line_kind(line: str, title: str, context: str) -> str:
    """One of: *question and answer*, *general* (speaks of something else), *pronoun* (does not name its
    subject), *restated* (names it, and every content word stands in the passage) or *new* (names it, and says
    more)."""
    if "?" in line:
        return "question and answer"
    names = title.lower() in line.lower()
    if not names:
        first = line.split(maxsplit=1)[0].lower().strip(".,:") if line.split() else ""
        return "pronoun" if first in _PRONOUNS or first == "the" else "general"
    known = set(content_words(context)) | set(content_words(title))
    return "restated" if all(w in known for w in content_words(line)) else "new"


LINE_KINDS = ("question and answer", "new", "restated", "pronoun", "general")


def features(task: Task, texts: Sequence[str]) -> dict[str, float]:
    """Features of sibling edits of one passage (a task with ``title`` and ``context``), averaged over them.

    *coverage*: share of the passage's content words in the edit. *invented*: share of the edit's content
    words that are not in the passage. *likeness*: mean bigram Jaccard overlap of siblings. *gold …*: share of
    the gold answers of a kind that the edit contains. *kind: …*: share of lines.
    """
    title, context = str(task.data.get("title", "")), str(task.data.get("context", ""))
    passage = set(content_words(f"{title} {context}"))
    per_edit: list[dict[str, float]] = []
    for text in texts:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        words = content_words(text)
        held = set(words)
        row = {
            "lines": float(len(lines)),
            "words": float(len(text.split())),
            "coverage": len(passage & held) / max(1, len(passage)),
            "invented": sum(w not in passage for w in words) / max(1, len(words)),
            "repeated lines": 1 - len(set(lines)) / max(1, len(lines)),
        }
        for kind in LINE_KINDS:
            row[f"kind: {kind}"] = sum(line_kind(x, title, context) == kind for x in lines) / max(
                1, len(lines)
            )
        for kind, golds in _golds(task).items():
            row[f"gold {kind}"] = sum(set(content_words(g)) <= held for g in golds) / len(golds)
        per_edit.append(row)
    out = {k: sum(r[k] for r in per_edit) / len(per_edit) for k in per_edit[0]} if per_edit else {}
    grams = [_bigrams(t) for t in texts]
    some = (
        list(combinations(grams, 2)) if len(grams) <= ALIKE else [_pair(grams, n) for n in range(ALIKE * 10)]
    )
    pairs = [len(a & b) / max(1, len(a | b)) for a, b in some]
    if pairs:
        out["likeness"] = sum(pairs) / len(pairs)
    return out


ALIKE = 20
"""Siblings of which every pair is compared; of more, ten times as many pairs as this, drawn."""


def _pair(grams: Sequence[set[tuple[str, str]]], number: int) -> list[set[tuple[str, str]]]:
    return random.Random(number).sample(grams, 2)


def _bigrams(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return set(pairwise(words))


def _golds(task: Task) -> dict[str, list[str]]:
    golds: dict[str, list[str]] = {}
    for q in task.data.get("questions", ()):
        golds.setdefault(q.get("kind", "all"), []).append(q["answer"])
    return golds


def mean_features(
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    own: Callable[[Task, Sequence[str]], dict[str, float]],
) -> dict[str, float]:
    """The domain's own features, or :func:`features`, averaged over tasks."""
    rows = [own(t, texts) or features(t, texts) for t, texts in zip(tasks, texts_P_E, strict=True) if texts]
    keys = dict.fromkeys(k for r in rows for k in r)
    return {k: sum(r.get(k, 0.0) for r in rows) / len(rows) for k in keys}
