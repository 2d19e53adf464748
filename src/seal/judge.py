"""Grading an answer against the gold answer, by rules on strings: offline, free, the same for every model."""

from __future__ import annotations

import re
import string
import unicodedata

_NUMBERS = {w: str(i) for i, w in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
)}  # fmt: skip
_STOP = set(
    [
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
    ]
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

SHARE = 0.57
"""Share of the gold answer's own content words an answer must hold to be right. From a re-analysis of SEAL's released
verdicts, where a rule of this kind agreed with the judge model on 0.885; this implementation has not been measured yet."""


def normalize(text: str) -> str:
    """Lower case, accents, punctuation and articles dropped, white space folded: SQuAD's normalisation, and accents."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = "".join(" " if c in string.punctuation else c for c in text)
    return " ".join(w for w in text.split() if w not in ("a", "an", "the"))


def content_words(text: str) -> list[str]:
    """The words that carry an answer: normalised, small words dropped, numbers, plurals and months brought to one form."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(\d+)(st|nd|rd|th)\b", r"\1", text.lower())
    return [_stem(w) for w in normalize(text).split() if w not in _STOP]


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
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
)


def exact(question: str, gold: str, answer: str) -> bool:
    """Normalised exact match; of an answer of nothing but signs and articles, the match of the signs."""
    if not normalize(gold):
        return bool(gold.strip()) and answer.strip().casefold() == gold.strip().casefold()
    return normalize(answer) == normalize(gold)


def string_rule(question: str, gold: str, answer: str) -> bool:
    """Whether the answer holds at least :data:`SHARE` of those content words of the gold answer that the question does
    not already give away (all of them, where the question gives all away)."""
    wanted = content_words(gold)
    fresh = [w for w in wanted if w not in set(content_words(question))] or wanted
    if not fresh:
        return exact(question, gold, answer)
    held = set(content_words(answer))
    return sum(w in held for w in fresh) / len(fresh) >= SHARE


GRADERS = {"exact": exact, "string": string_rule}
