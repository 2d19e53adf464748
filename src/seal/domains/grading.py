"""Grading an answer against the gold answers, by rules on strings: offline, free, the same for every model."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Grader = Callable[[str, str, str], bool]
"""(question, gold, answer) → whether it is right."""

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_CARDINALS = {w: i for i, w in enumerate(_ONES)} | {w: 10 * i for i, w in enumerate(_TENS, 2)}
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
    **{f"{w}th": i for i, w in enumerate(_ONES) if w not in ("one", "two", "three", "five", "eight", "nine", "twelve")},
    **{f"{w[:-1]}ieth": 10 * i for i, w in enumerate(_TENS, 2)},
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1_000}
"""Millions and more stay words of their own, as most texts write them: 1.4 million."""
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
_NEGATIONS = set(["not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "cannot"])
_UNITS = {
    form: forms.split()[0]
    for forms in (
        "km kms kilometre kilometres kilometer kilometers", "m metre metres meter meters", "mile miles mi",
        "cm centimetre centimetres centimeter centimeters", "mm millimetre millimetres millimeter millimeters",
        "foot feet ft", "inch inches", "yard yards", "kg kilogram kilograms kilogramme kilogrammes kilo kilos",
        "g gram grams gramme grammes", "mg milligram milligrams", "pound pounds lb lbs", "ounce ounces oz",
        "ton tons", "tonne tonnes", "litre litres liter liters l", "ml millilitre millilitres milliliter milliliters",
        "gallon gallons", "second seconds sec", "minute minutes min", "hour hours", "day days", "week weeks",
        "month months", "year years", "decade decades", "century centuries", "percent % percents",
        "dollar dollars", "euro euros", "sterling", "yen", "degree degrees", "celsius celsiu", "fahrenheit", "hectare hectares",
        "acre acres", "watt watts", "kw kilowatt kilowatts", "mw megawatt megawatts", "volt volts", "nm nanometre nanometres",
        "mph", "kmh kph", "hz hertz", "khz", "mhz", "ghz", "kb", "mb", "gb", "tb", "am", "pm", "bc bce", "ad ce",
    )
    for form in forms.split()
}  # fmt: skip

SHARE = 0.57
"""Weight of the gold answer's own content words that an answer must hold to be right. A re-analysis of SEAL's
released verdicts found about this share best; how far the rule agrees with that judge is in docs/LOG.md
(``seal check graders``)."""
SAME = 0.6
"""Two words are one if they agree from the start over this share of the longer (and over four letters):
stored, storing."""
WEIGHTY = 8
"""A word weighs as much as it has letters, up to this; a number weighs this."""
NEAR = 12
"""Words of an answer beyond those of the gold answer up to which a negation on one side counts: a longer one
speaks of other things too."""


def golds_of(question: Mapping[str, Any]) -> list[str]:
    """Every gold answer of a question, the first one first."""
    return list(dict.fromkeys([str(question["answer"]), *map(str, question.get("answers") or [])]))


def best_over(grader: Grader, question: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is right by any of the gold answers."""
    return any(grader(str(question["question"]), gold, answer) for gold in golds_of(question))


def normalize(text: str) -> str:
    """SQuAD's normalisation, from the evaluation that its authors publish: lower case, punctuation taken out
    (``1,200`` is ``1200``, ``U.S.`` is ``us``), the articles *a*, *an* and *the* dropped, white space folded.
    Beyond ASCII, punctuation is what Unicode says is (quotes, dashes), and letters are composed."""
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if not _is_punctuation(c))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact(question: str, gold: str, answer: str) -> bool:
    """SQuAD's exact match; of an answer of nothing but signs and articles, the match of the signs."""
    if not normalize(gold):
        return bool(gold.strip()) and answer.strip().casefold() == gold.strip().casefold()
    return normalize(answer) == normalize(gold)


def f1(gold: str, answer: str) -> float:
    """SQuAD's F1 of the normalised tokens; in scripts without spaces a token is a character."""
    mine, theirs = (_apart(normalize(x)) for x in (answer, gold))
    if not mine or not theirs:
        return float(mine == theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


def best_f1(question: Mapping[str, Any], answer: str) -> float:
    """The best :func:`f1` over the gold answers."""
    return max(f1(gold, answer) for gold in golds_of(question))


def _apart(text: str) -> list[str]:
    """Words; a word of a script without spaces is a run of characters, each with its marks."""
    found: list[str] = []
    for word in text.split():
        if not any(map(_runs_on, word)):
            found.append(word)
            continue
        for c in word:
            if found and unicodedata.category(c).startswith("M"):
                found[-1] += c
            elif _runs_on(c) or not found or _runs_on(found[-1][0]):
                found.append(c)
            else:
                found[-1] += c
    return found


_RUNS_ON = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF), (0xFF66, 0xFF9F)),
)
"""Thai, Lao, Burmese, Khmer, kana, and Chinese characters."""


def _runs_on(character: str) -> bool:
    """Whether a character is of a script that writes no spaces."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _RUNS_ON)


def content_words(text: str) -> list[str]:
    """The words that carry an answer: lower case without accents, small words dropped, numbers (spelled out,
    ordinal), plurals and months brought to one form."""
    return [w for w, _ in _words(text)]


def _words(text: str) -> list[tuple[str, bool]]:
    """The content words, and of each whether it is a single letter that says something (*vitamin C*), and not
    an initial (*George W. Bush*)."""
    text = re.sub(r"(\d*)([¼-¾⅐-⅞])", lambda m: f"{int(m[1] or 0) + unicodedata.numeric(m[2]):g}", text)
    text = _bare(text)
    text = re.sub(r"([$€£¥])\s?(\d[\d,.]*\d|\d)", lambda m: f"{m[2]} {_CURRENCIES[m[1]]}", text)
    text = re.sub(r"\b(\w+) ((?=[IVX])X{0,3}(?:IX|IV|V?I{0,3}))(?!['’\w]|\.\w)", _roman, text)
    text = re.sub(r"\b(can)(?:not|['’]t)\b", r"\1 not", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda m: m[0].replace(".", "") + " ", text)  # U.S.
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)\.(?=\d)", "d", text)  # a decimal is one word
    text = re.sub(r"(?<![\w)])[-−–](?=\d)", " minus", text)  # a sign, and no dash between two numbers
    text = re.sub(r"['’]s\b|_", " ", text).replace("%", " percent ")
    text = re.sub(r"n['’]t\b", " not", text)
    text = re.sub(r"(?<=\d)(?=[^\W\d_])(?!d\d)(?!s\b)(?<!d)", " ", text)  # 5km
    tokens: list[tuple[str, bool]] = []
    for match in re.finditer(_WORD, text):
        for token in _apart(match[0]):
            alone = len(token) == 1 and token.isalpha() and not _runs_on(token)
            letter = (
                alone
                and not re.match(r"\.\s*\w", text[match.end() :])
                and (token.isupper() or token not in "aI")
            )
            if letter and token == "A" and match.start() == 0 and len(text.split()) > 1:
                letter = False  # the article of a beginning
            word = token.lower()
            if word not in _STOP or (letter and token.isupper()):
                tokens.append((word, letter))
    return [(_stem(w), letter) for w, letter in _counted(tokens)]


_WORD = re.compile(
    r"[^\W_](?:\w|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece\u102b-\u103e\u17b4-\u17d3])*"
)


_CURRENCIES = {"$": "dollars", "€": "euros", "£": "sterling", "¥": "yen"}


def _roman(match: re.Match[str]) -> str:
    """A number of a name in figures: Louis XIV, layer III; a single letter only after a capital."""
    if len(match[2]) == 1 and not match[1][0].isupper():
        return match[0]
    digits = [{"I": 1, "V": 5, "X": 10}[c] for c in match[2]]
    total = sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True))
    return f"{match[1]} {total}"


def _bare(text: str) -> str:
    """Without the accents of Latin, Greek and Cyrillic letters; marks of other scripts stay with theirs."""
    found: list[str] = []
    plain = False
    for c in unicodedata.normalize("NFKD", text):
        if unicodedata.combining(c) and plain:
            continue
        if not unicodedata.category(c).startswith("M"):
            plain = ord(c) < 0x0530
        found.append(c)
    return unicodedata.normalize("NFC", "".join(found)).translate(_LETTERS)


_LETTERS = str.maketrans(
    {"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "ß": "ss", "đ": "d", "Đ": "D", "æ": "ae", "Æ": "AE"}
)
"""Letters that Unicode does not take apart."""


def _counted(tokens: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Numbers that are spelled out, as figures: twenty-one, two hundred five, the third."""
    found: list[tuple[str, bool]] = []
    i = 0
    while i < len(tokens):
        total, here, n, last = 0.0, 0.0, 0, ""
        sign = ""
        j = i
        if tokens[j][0] == "minus" and j + 1 < len(tokens) and _value(tokens[j + 1][0]) is not None:
            sign, j = "-", j + 1
        elif tokens[j][0].startswith("minus") and _value(tokens[j][0][5:]) is not None:
            sign = "-"
        while j < len(tokens):
            word = tokens[j][0].removeprefix("minus") if n == 0 else tokens[j][0]
            value = _value(word)
            if word in _SCALES and n:
                here = (here or 1) * _SCALES[word]
                if _SCALES[word] > 100:
                    total, here = total + here, 0.0
            elif value is not None and (n == 0 or _continues(last, word, here)):
                here += value
            else:
                break
            last, n, j = word, n + 1, j + 1
            if word in _ORDINALS:
                break
        if not n:
            found.append(tokens[i])
            i += 1
            continue
        number = total + here
        found.append((sign + (f"{number:.6f}".rstrip("0").rstrip(".").replace(".", "d")), False))
        i = j
    return found


def _value(word: str) -> float | None:
    """What a word counts for, where it is a number."""
    if word in _CARDINALS or word in _ORDINALS:
        return float(_CARDINALS.get(word, _ORDINALS.get(word, 0)))
    if re.fullmatch(r"\d{1,15}(d\d{1,6})?", word) and not (
        len(word) > 1 and word[0] == "0" and "d" not in word
    ):
        return float(word.replace("d", "."))
    return None


def _continues(last: str, word: str, here: float) -> bool:
    """Whether a number goes on: twenty *one*, two hundred *five*; never 12 *1702*."""
    if word[0].isdigit() or last[0].isdigit():
        return False
    value = _value(word) or 0
    return (last in _SCALES and value < _SCALES[last]) or (last in _TENS and 0 < value < 10)


def _stem(word: str) -> str:
    if len(word) >= 3 and word[:3] in _MONTHS and (len(word) == 3 or word in _FULL_MONTHS):
        return f"{word[:3]}."  # no word else: Mars is not March
    if re.fullmatch(r"\d+s", word):
        return word  # a decade is no year
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def string_rule(question: str, gold: str, answer: str) -> bool:
    """Whether the answer holds at least :data:`SHARE`, by weight, of those content words of the gold answer
    that the question does not already give away (all of them, where the question gives all away); and does
    not contradict it by another number or unit, a negation, or a single letter."""
    wanted, held = _words(gold), _words(answer)
    given = set(content_words(question))
    words = list(dict.fromkeys(w for w, _ in wanted))
    fresh = [w for w in words if w not in given] or words
    if not fresh:
        return exact(question, gold, answer)
    have = {w for w, _ in held}
    weights = [WEIGHTY if _is_number(w) else min(len(w), WEIGHTY) for w in fresh]
    found = sum(n for w, n in zip(fresh, weights, strict=True) if w in have or any(_same(w, h) for h in have))
    return found >= SHARE * sum(weights) and not _contradicts(wanted, held, given)


def _is_number(word: str) -> bool:
    return word.lstrip("-")[:1].isdigit()


def _contradicts(
    wanted: Sequence[tuple[str, bool]], held: Sequence[tuple[str, bool]], given: set[str]
) -> bool:
    """Whether an answer says something else in the place of what the gold answer says."""
    mine, theirs = [w for w, _ in wanted], [w for w, _ in held]
    letters = {w for w, letter in wanted if letter}
    if letters - set(theirs) and (len(mine) <= 3 or {w for w, letter in held if letter} - letters):
        return True
    numbers = [{w for w in x if _is_number(w)} for x in (mine, theirs)]
    if numbers[0] - numbers[1] - given and numbers[1] - numbers[0] - given:
        return True
    units = [_measured(x) for x in (mine, theirs)]
    if any(n in units[1] and units[1][n] != unit for n, unit in units[0].items()):
        return True
    denied = [bool(_NEGATIONS & set(x)) for x in (mine, theirs)]
    if denied[0] == denied[1] or mine == ["no"]:
        return False
    said, told = set(theirs) - _NEGATIONS, set(mine) - _NEGATIONS
    return said <= told or (denied[0] and told <= said and len(theirs) <= len(mine) + NEAR)


def _measured(words: Sequence[str]) -> dict[str, str]:
    """Each number's unit, where one follows."""
    words = [w for w in words if w != "degree"] if {"celsiu", "fahrenheit"} & set(words) else list(words)
    return {n: _UNITS[unit] for n, unit in pairwise(words) if _is_number(n) and unit in _UNITS}


def _same(word: str, other: str) -> bool:
    if _is_number(word) or _is_number(other):
        return False
    alike = next(
        (i for i, (x, y) in enumerate(zip(word, other, strict=False)) if x != y), min(len(word), len(other))
    )
    return alike >= max(4, SAME * max(len(word), len(other)))


GRADERS: dict[str, Grader] = {"exact": exact, "string": string_rule}
