"""Grading an answer against the gold answer, by rules on strings: offline, free, the same for every model."""

from __future__ import annotations

import gzip
import json
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal.types import SealError

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {w: str(i) for i, w in enumerate(_ONES.split())} | {w: str(10 * i) for i, w in enumerate(_TENS.split(), 2)}
_NUMBERS |= {w: str(i) for i, w in enumerate(["first", "second", "third", "fourth", "fifth"], 1)}
_STOP = {"a", "an", "the", "of", "in", "on", "at", "to", "for", "and", "or", "by", "with", "from", "as", "is", "was", "were", "are", "be", "been", "it", "its", "that", "this", "which", "who"}  # fmt: skip
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

SHARE = 0.57
"""Weight of the gold answer's own content words that an answer must hold to be right. A re-analysis of SEAL's released verdicts
found about this share best; how far the rule agrees with that judge is in docs/LOG.md (``seal judge``)."""
SAME = 0.6
"""Two words are one if they agree from the start over this share of the longer (and over four letters): stored, storing."""
WEIGHTY = 8
"""A word weighs as much as it has letters, up to this; a number weighs this."""


def normalize(text: str) -> str:
    """Lower case, accents, punctuation and articles dropped, white space folded: SQuAD's normalisation, and accents."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = "".join(" " if c in string.punctuation else c for c in text)
    return " ".join(w for w in text.split() if w not in ("a", "an", "the"))


def content_words(text: str) -> list[str]:
    """The words that carry an answer: lower case without accents, small words dropped, numbers, plurals and months brought to one
    form."""
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
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
)


def exact(question: str, gold: str, answer: str) -> bool:
    """Normalised exact match; of an answer of nothing but signs and articles, the match of the signs."""
    if not normalize(gold):
        return bool(gold.strip()) and answer.strip().casefold() == gold.strip().casefold()
    return normalize(answer) == normalize(gold)


def string_rule(question: str, gold: str, answer: str) -> bool:
    """Whether the answer holds at least :data:`SHARE`, by weight, of those content words of the gold answer that the question does
    not already give away (all of them, where the question gives all away)."""
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
    alike = next((i for i, (x, y) in enumerate(zip(word, other, strict=False)) if x != y), min(len(word), len(other)))
    return alike >= max(4, SAME * max(len(word), len(other)))


GRADERS = {"exact": exact, "string": string_rule}


@dataclass(frozen=True)
class Item:
    """An answer to be judged."""

    question: str
    gold: str
    answer: str


Judge = Callable[[Sequence[Item]], list[bool | None]]
"""A judge that is a model: verdicts on many answers at once; ``None`` is *ungraded*, never to be read as wrong."""


def judge_prompt(item: Item) -> str:
    """How a model is asked for a verdict. The answer is whatever a model wrote, so it stands apart, and cut to a sensible length."""
    return (
        "Is the answer right? It is right if it says what the correct answer says, in whatever words; more than that does no harm, "
        "unless it contradicts it.\n\n"
        f"Question: {item.question}\nCorrect answer: {item.gold}\nAnswer: {' '.join(item.answer.split())[:1000]}\n\n"
        "Reply with one word, yes or no."
    )


def verdict_of(text: str) -> bool | None:
    """The verdict in a judge's reply; ``None`` if it is neither yes nor no."""
    found = re.match(r"\W*(yes|no)\b", text.strip(), flags=re.IGNORECASE)
    return None if found is None else found[1].lower() == "yes"


@dataclass(frozen=True)
class Verdict:
    """An answer with what a trusted judge said of it."""

    question: str
    gold: str
    answer: str
    right: bool


def read_verdicts(path: Path) -> list[Verdict]:
    """Known verdicts: JSON lines (also gzipped) of ``{question, gold, answer}`` with ``right``, or ``n_yes`` and ``n_graded``.

    Raises:
        SealError: the file is missing, or a line is not such a record.
    """
    verdicts = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if isinstance(row.get("right"), str):
                    raise TypeError(f"right is true or false, not {row['right']!r}")
                right = row["right"] if "right" in row else 2 * row["n_yes"] > row["n_graded"]
                verdicts.append(Verdict(str(row["question"]), str(row["gold"]), str(row["answer"]), bool(right)))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SealError(
            f"{path}, line {len(verdicts) + 1}: not a verdict ({{question, gold, answer, right}}): {error}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise SealError(f"{path} cannot be read: {error}") from error
    if not verdicts:
        raise SealError(f"{path} holds no verdicts")
    return verdicts


def agreement(found: Sequence[bool], verdicts: Sequence[bool]) -> dict[str, float]:
    """``accuracy``, Cohen's ``kappa``, and ``bias``: how many points of a hundred more are found right than are."""
    n = len(verdicts)
    accuracy = sum(a == b for a, b in zip(found, verdicts, strict=True)) / n
    yes, true = sum(found) / n, sum(verdicts) / n
    chance = yes * true + (1 - yes) * (1 - true)
    kappa = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    return {"n": n, "accuracy": round(accuracy, 4), "kappa": round(kappa, 4), "bias": round(100 * (yes - true), 2)}


LENGTHS = ((1, 3), (4, 8), (9, 16), (17, 32), (33, 10**9))
"""Answers by their number of words."""


def judge_graders(
    verdicts: Sequence[Verdict], judges: Mapping[str, Judge] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """For each grader its :func:`agreement` over all answers, and for those of each length. Of what a judge left ungraded only the
    number is told."""
    found: dict[str, list[bool | None]] = {
        name: [grader(v.question, v.gold, v.answer) for v in verdicts] for name, grader in GRADERS.items()
    }
    items = [Item(v.question, v.gold, v.answer) for v in verdicts]
    found |= {name: judge(items) for name, judge in (judges or {}).items()}
    report = {}
    for name, given in found.items():
        graded = [i for i, x in enumerate(given) if x is not None]
        if not graded:
            raise SealError(f"the judge {name} gave no verdict that is yes or no")
        report[name] = {"all": _agreement(given, verdicts, graded) | {"ungraded": len(given) - len(graded)}}
        for low, high in LENGTHS:
            mine = [i for i in graded if low <= len(verdicts[i].answer.split()) <= high]
            if mine:
                label = f"{low} to {high} words" if high < 10**9 else f"{low} words and more"
                report[name][label] = _agreement(given, verdicts, mine)
    return report


def _agreement(given: Sequence[bool | None], verdicts: Sequence[Verdict], places: Sequence[int]) -> dict[str, float]:
    return agreement([bool(given[i]) for i in places], [verdicts[i].right for i in places])
