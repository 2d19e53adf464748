"""How far graders agree with known verdicts: accuracy, kappa, bias, by length of the answer."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal.domains.grading import GRADERS
from seal.domains.judges import Item, Judge
from seal.records import SealError


@dataclass(frozen=True)
class Verdict:
    """An answer with what a trusted judge said of it."""

    question: str
    gold: str
    answer: str
    right: bool


def read_verdicts(path: Path) -> list[Verdict]:
    """Known verdicts: JSON lines (also gzipped) of ``{question, gold, answer}`` with ``right``, or ``n_yes``
    and ``n_graded``.

    Raises:
        SealError: the file is missing, or a line is not such a record.
    """
    verdicts = []
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for line in lines:
                row = json.loads(line)
                if isinstance(row.get("right"), str):
                    raise TypeError(f"right is true or false, not {row['right']!r}")
                right = row["right"] if "right" in row else 2 * row["n_yes"] > row["n_graded"]
                verdicts.append(
                    Verdict(str(row["question"]), str(row["gold"]), str(row["answer"]), bool(right))
                )
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
    """``accuracy``, Cohen's ``kappa``, and ``bias``: how many points of a hundred more are found right than
    are."""
    n = len(verdicts)
    accuracy = sum(a == b for a, b in zip(found, verdicts, strict=True)) / n
    yes, true = sum(found) / n, sum(verdicts) / n
    chance = yes * true + (1 - yes) * (1 - true)
    kappa = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    return {
        "n": n,
        "accuracy": round(accuracy, 4),
        "kappa": round(kappa, 4),
        "bias": round(100 * (yes - true), 2),
    }


LENGTHS = ((1, 3), (4, 8), (9, 16), (17, 32), (33, 10**9))
"""Answers by their number of words."""


def judge_graders(
    verdicts: Sequence[Verdict], judges: Mapping[str, Judge] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """For each grader its :func:`agreement` over all answers, and for those of each length. Of what a judge
    left ungraded only the number is told."""
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


def _agreement(
    given: Sequence[bool | None], verdicts: Sequence[Verdict], places: Sequence[int]
) -> dict[str, float]:
    return agreement([bool(given[i]) for i in places], [verdicts[i].right for i in places])
