"""Passages dealt out to splits, so that no article, and no text or nearly the same text, stands on two
sides."""

from __future__ import annotations

import random
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seal.records import SealError, Task


def grouped(passages: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Of every passage the group that it stands or falls with: its title's, joined with those of titles that
    share a text, nearly word for word. And the titles whose passages repeat another's."""
    group: dict[str, str] = {}
    repeats: dict[int, str] = {}
    for one, other in near_duplicates([row["context"] for row in passages]):
        first, second = (_root(group, passages[i]["title"]) for i in (one, other))
        if passages[one]["title"] != passages[other]["title"]:
            repeats[other] = str(passages[other]["title"])
        group[second] = first
    return [_root(group, row["title"]) for row in passages], list(repeats.values())


def divide(
    passages: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    seed: int,
    groups: Sequence[str] | None = None,
) -> dict[str, list[Task]]:
    """Split by title, so that no article stands on two sides, nor one text (or nearly that) under two titles;
    each split is filled up to its size. ``groups`` are those of :func:`grouped`, where they are known
    already.

    Raises:
        SealError: the file has too few passages.
    """
    by_group: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row, name in zip(passages, groups or grouped(passages)[0], strict=True):
        by_group.setdefault(name, {})[row["id"]] = row
    titles = sorted(by_group)
    random.Random(f"divide {seed}").shuffle(titles)
    splits: dict[str, list[Task]] = {}
    queue = iter(titles)
    for split, size in sizes.items():
        tasks: list[Task] = []
        while len(tasks) < size:
            title = next(queue, None)
            if title is None:
                raise SealError(
                    f"too few passages: {len(passages)} cannot fill {dict(sizes)} with every title in one "
                    "split"
                )
            tasks += [Task(i, row) for i, row in by_group[title].items()]
        splits[split] = tasks[:size]
    return splits


def _root(group: dict[str, str], title: str) -> str:
    while group.setdefault(title, title) != title:
        group[title] = group[group[title]]
        title = group[title]
    return title


SHINGLE = 5
"""Words of a shingle."""
SKETCH = 16
"""Shingles of a text that it is looked up by: those of smallest hash (Broder, *On the resemblance and
containment of documents*, 1997)."""
ALIKE = 0.5
"""Share of the shorter text's shingles that stand in the other too, from which on the two are one."""
ENOUGH = 8
"""Different shingles of the shorter text below which two are one only if all words are the same."""
LOOKED_AT = 8
"""Texts of one shingle that another is compared with: a phrase that stands everywhere makes nobody alike."""


def plain_words(text: str) -> list[str]:
    """A text's words, whatever its spaces, capitals, punctuation and compatibility characters."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of an earlier text and of a later one that says nearly the same, word for word."""
    met: dict[int, list[int]] = {}
    same: dict[str, int] = {}
    for place, text in enumerate(texts):
        if (first := same.setdefault(" ".join(plain_words(text)), place)) != place:
            yield first, place
            continue
        mine = _shingles(text)
        sketch = sorted(mine)[:SKETCH]
        for other in dict.fromkeys(i for s in sketch for i in met.get(s, ())):
            theirs = _shingles(texts[other])
            few = min(len(mine), len(theirs))
            if few >= ENOUGH and len(mine & theirs) >= ALIKE * few:
                yield other, place
        for s in sketch:
            if len(places := met.setdefault(s, [])) < LOOKED_AT:
                places.append(place)


def _shingles(text: str) -> frozenset[int]:
    """Hashes of every run of :data:`SHINGLE` words; of a shorter text, of all of it."""
    words = plain_words(text)
    return frozenset(
        zlib.crc32(" ".join(words[i : i + SHINGLE]).encode()) for i in range(max(1, len(words) - SHINGLE + 1))
    )


def shared_questions(splits: Mapping[str, Sequence[Task]]) -> list[tuple[str, str, str]]:
    """Questions that stand with the same answer in two splits: the question, and both splits."""
    met: dict[tuple[str, str], str] = {}
    found = []
    for split, tasks in splits.items():
        for q in (q for t in tasks for q in t.data["questions"]):
            key = " ".join(plain_words(q["question"])), " ".join(plain_words(q["answer"]))
            if met.setdefault(key, split) != split:
                found.append((q["question"], met[key], split))
    return found
