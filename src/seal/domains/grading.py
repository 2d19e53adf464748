"""Grading an answer against the gold answer, by rules on strings: offline, free, the same for every model."""

from __future__ import annotations

import re
import string
import unicodedata

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {w: str(i) for i, w in enumerate(_ONES.split())} | {
    w: str(10 * i) for i, w in enumerate(_TENS.split(), 2)
}
_NUMBERS |= {w: str(i) for i, w in enumerate(["first", "second", "third", "fourth", "fifth"], 1)}
_STOP = {
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "at",
    "to",
    "for",
    "and",
    "or",
    "by",
    "with",
    "from",
    "as",
    "is",
    "was",
    "were",
    "are",
    "be",
    "been",
    "it",
    "its",
    "that",
    "this",
    "which",
    "who",
}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

SHARE = 0.57
"""Weight of the gold answer's own content words that an answer must hold to be right. A re-analysis of SEAL's
released verdicts found about this share best; how far the rule agrees with that judge is in docs/LOG.md
(``seal check graders``)."""
SAME = 0.6
"""Two words are one if they agree from the start over this share of the longer (and over four letters):
stored, storing."""
WEIGHTY = 8
"""A word weighs as much as it has letters, up to this; a number weighs this."""


def normalize(text: str) -> str:
    """Lower case, accents, punctuation and articles dropped, white space folded: SQuAD's normalisation, and
    accents."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = "".join(" " if c in string.punctuation else c for c in text)
    return " ".join(w for w in text.split() if w not in ("a", "an", "the"))


def content_words(text: str) -> list[str]:
    """The words that carry an answer: lower case without accents, small words dropped, numbers, plurals and
    months brought to one form."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(\d+)(st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", "d", text)  # a decimal is one word
    text = re.sub(r"['’]s\b|_", " ", text)
    return [_stem(w) for w in re.findall(r"\w+", text) if w not in _STOP]


def _stem(word: str) -> str:
    if word in _NUMBERS:
        return _NUMBERS[word]
    if len(word) >= 3 and word[:3] in _MONTHS and (len(word) == 3 or word in _FULL_MONTHS):
        return word[:3]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


_FULL_MONTHS = set(
    [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ]
)


def exact(question: str, gold: str, answer: str) -> bool:
    """Normalised exact match; of an answer of nothing but signs and articles, the match of the signs."""
    if not normalize(gold):
        return bool(gold.strip()) and answer.strip().casefold() == gold.strip().casefold()
    return normalize(answer) == normalize(gold)


def string_rule(question: str, gold: str, answer: str) -> bool:
    """Whether the answer holds at least :data:`SHARE`, by weight, of those content words of the gold answer
    that the question does not already give away (all of them, where the question gives all away)."""
    wanted = list(dict.fromkeys(content_words(gold)))
    given = set(content_words(question))
    fresh = [w for w in wanted if w not in given] or wanted
    if not fresh:
        return exact(question, gold, answer)
    held = set(content_words(answer))
    weights = [WEIGHTY if w[0].isdigit() else min(len(w), WEIGHTY) for w in fresh]
    found = sum(n for w, n in zip(fresh, weights, strict=True) if w in held or any(_same(w, h) for h in held))
    return found >= SHARE * sum(weights)


def _same(word: str, other: str) -> bool:
    if word[0].isdigit() or other[0].isdigit():
        return False
    alike = next(
        (i for i, (x, y) in enumerate(zip(word, other, strict=False)) if x != y), min(len(word), len(other))
    )
    return alike >= max(4, SAME * max(len(word), len(other)))


GRADERS = {"exact": exact, "string": string_rule}
