"""Verdicts of a trusted judge are read as they stand: a tie is no yes, and what is no verdict is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seal.records import SealError
from seal.report.agreement import read_verdicts


def verdicts(path: Path, *rows: dict[str, object]) -> list[bool]:
    path.write_text(
        "".join(json.dumps({"question": "q?", "gold": "g", "answer": "a"} | r) + "\n" for r in rows)
    )
    return [v.right for v in read_verdicts(path)]


def test_right_is_what_most_verdicts_say(tmp_path: Path) -> None:
    counts = [{"n_yes": y, "n_graded": n} for y, n in ((0, 1), (1, 1), (1, 2), (2, 3), (2, 4), (3, 4))]
    assert verdicts(tmp_path / "v.jsonl", *counts) == [False, True, False, True, False, True]
    assert verdicts(tmp_path / "w.jsonl", {"right": True}, {"right": False, "n_yes": 5, "n_graded": 5}) == [
        True,
        False,
    ]


@pytest.mark.parametrize("row", [{"right": "yes"}, {"n_yes": 1}, {}])
def test_what_is_no_verdict_is_named_by_its_line(row: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(SealError, match=r"v\.jsonl, line 2: not a verdict"):
        verdicts(tmp_path / "v.jsonl", {"right": True}, row)
