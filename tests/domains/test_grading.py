"""Graders: SQuAD's own rule to the letter where it speaks, and the string rule on what people write.

The first oracle is SQuAD's published definition, written down here from its description.
"""

from __future__ import annotations

import collections
import json
import re
import string
from pathlib import Path

import pytest

from seal.domains.arc.grids import forgiven, read_grid
from seal.domains.grading import (
    best_f1,
    best_over,
    content_words,
    exact,
    f1,
    golds_of,
    normalize,
    string_rule,
)
from seal.domains.knowledge import Knowledge
from seal.domains.knowledge.passages import noted_passages, read_passages
from seal.records import SealError

PAIRS = [
    ("The Eiffel Tower", "eiffel tower"), ("U.S.", "US"), ("1,200", "1200"), ("a cat", "the cat"), ("an hour", "hour"),
    ("well-known", "wellknown"), ("well-known", "well known"), ("\"Hamlet\"", "Hamlet"), ("don't", "dont"),
    ("rock 'n' roll", "rock n roll"), ("theatre", "theatre a"), ("The", "the"), ("A", "an"), ("  two   words ", "two words"),
    ("C++", "C"), ("50%", "50"), ("$5", "5"), ("a/b", "ab"), ("Beyoncé", "Beyonce"), ("naïve", "naïve"), ("10 000", "10000"),
    ("Panthera leo", "lion"), ("no", "No."), ("(1990)", "1990"), ("e.g.", "eg"), ("ant", "nt"), ("than", "n"), ("x_y", "xy"),
]  # fmt: skip


def squads_normal(text: str) -> str:
    """Lower case, ASCII punctuation removed, articles removed, white space folded: in this order."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squads_f1(gold: str, answer: str) -> float:
    mine, theirs = squads_normal(answer).split(), squads_normal(gold).split()
    if not mine or not theirs:
        return float(mine == theirs)
    same = sum((collections.Counter(mine) & collections.Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(mine), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(("gold", "answer"), PAIRS)
def test_exact_match_and_f1_are_squads(gold: str, answer: str) -> None:
    for x, y in ((gold, answer), (answer, gold), (gold, gold)):
        assert normalize(x) == squads_normal(x)
        assert f1(x, y) == pytest.approx(squads_f1(x, y))
        if squads_normal(x):
            assert exact("?", x, y) is (squads_normal(x) == squads_normal(y))


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("“Hamlet”", "Hamlet", True),
        ("1914–1918", "19141918", True),
        ("l’heure", "lheure", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("東京。", "東京", True),
        ("5 °C", "5 C", False),
    ],
)
def test_punctuation_beyond_ascii_is_what_unicode_says(gold: str, answer: str, same: bool) -> None:
    assert exact("?", gold, answer) is same


def test_in_scripts_without_spaces_a_token_is_a_character_with_its_marks() -> None:
    assert f1("東京都", "東京") == pytest.approx(0.8)
    assert content_words("กรุงเทพ")[1] == "รุ", "a vowel sign stays with its letter"
    assert content_words("दिल्ली") == ["दिल्ली"] and not string_rule("?", "दिल्ली", "दल्ली")
    assert string_rule("?", "東京", "答えは東京です") and not string_rule("?", "東京", "大阪です")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        # numbers: sign, spelled out, ordinal
        ("-5", "5", False), ("-5 degrees", "minus five degrees", True), ("-5", "−5", True), ("1990-91", "1990–91", True),
        ("twenty-one", "21", True), ("two hundred and five", "205", True), ("the twenty-first", "21st", True),
        ("two thousand", "2,000", True), ("seven", "It was the seventh.", True), ("2.5", "25", False), ("0.5", "0.50", True),
        ("12 March 1702", "14 March 1702", False), ("12 March 1702", "on the 12th of March, 1702", True),
        ("1.4 million residents", "2.4 million residents", False),
        # units
        ("5 km", "5 miles", False), ("5 km", "five kilometres", True), ("5km", "5 km", True), ("5 km", "5", True),
        ("48 %", "48 percent", True), ("3 hours", "3 days", False),
        # negation on one side
        ("was convicted", "was not convicted", False), ("was not convicted", "he was convicted", False),
        ("not convicted", "he wasn't convicted", True), ("Poland", "He never came back to Poland.", True), ("no", "No.", True),
        # one letter decides
        ("Vitamin C", "vitamin D", False), ("Vitamin C", "vitamin C", True), ("Vitamin A", "vitamin", False),
        ("grade B", "grade A", False), ("George W. Bush", "George Bush", True), ("Malcolm X", "It was Malcolm X.", True),
        # of times, temperatures, money, names and fractions
        ("500 BC", "500 AD", False), ("7 am", "7 pm", False), ("5 degrees Celsius", "5 degrees Fahrenheit", False),
        ("60 Hz", "60 kHz", False), ("$5", "€5", False), ("$5", "5 dollars", True), ("World War II", "World War I", False),
        ("World War II", "World War 2", True), ("Louis XIV", "It was Louis XVI.", False), ("Alexander II", "by Alexander II.", True),
        ("1990", "the 1990s", False), ("2½", "2.5", True), ("Mars", "March", False), ("can't fly", "cannot fly", True),
        ("A", "A.", True), ("A", "The answer is A", True), ("A", "B", False), ("Łódź", "Lodz", True), ("Straße", "Strasse", True),
        # and what stood before
        ("U.S. Army", "US Army", True), ("the 3rd of March", "3 march", True), ("Beyoncé", "beyonce", True),
        ("stored food", "It is used to store its food.", True), ("Marie Curie", "Pierre", False),
    ],
)  # fmt: skip
def test_the_string_rule(gold: str, answer: str, right: bool) -> None:
    assert string_rule("Which is it?", gold, answer) is right


# ------------------------------------------------------------------------------------------------ gold answers


QUESTION = {"question": "Who built it?", "answer": "a miller", "answers": ["a miller", "Anna Brook", "Brook"]}


def test_any_gold_answer_is_right_and_the_first_is_for_likelihood(tmp_path: Path) -> None:
    assert golds_of(QUESTION) == ["a miller", "Anna Brook", "Brook"]
    assert best_over(exact, QUESTION, "Anna Brook") and not best_over(exact, QUESTION, "Anna")
    assert best_f1(QUESTION, "Anna Brook") == 1.0 and best_f1(QUESTION, "the miller Brook") == pytest.approx(
        2 / 3
    )
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps(
            [{"title": "T", "context": "c", "questions": [QUESTION, {"question": "q", "answer": "x"}]}]
        )
    )
    domain = Knowledge(str(path), sizes={"train": 1, "select": 0, "eval": 0})
    (task,) = domain.tasks("train")
    assert [q.gold for q in domain.queries(task)] == ["a miller", "x"]
    grade = domain.grade(task, ["Anna Brook", "y"])
    assert grade.scores == (1.0, 0.0) and grade.f1 == 0.5
    seen: list[str] = []

    def judge(items: object) -> list[bool]:
        seen.extend(i.gold for i in items)  # type: ignore[attr-defined]
        return [True] * 2

    domain.judge = judge  # type: ignore[assignment]
    (judged,) = domain.grade_all([task], [["Brook", "x"]])
    assert judged is not None and judged.score == 1 and seen == ["a miller (or: Anna Brook; Brook)", "x"]


FLAT = [
    {"id": "1", "title": "Mill_Hill", "context": "c", "question": "q1", "answers": {"text": ["x", "y", "x"], "answer_start": [0, 1, 0]}},
    {"id": "2", "title": "Mill_Hill", "context": "c", "question": "q2", "answers": {"text": [], "answer_start": []}},
    {"id": "3", "title": "Mill_Hill", "context": "c", "question": "q3", "answers": [{"text": "z", "answer_start": 0}]},
]  # fmt: skip


def asked(path: Path) -> list[dict[str, object]]:
    (row,) = read_passages(path)
    assert row["title"] == "Mill Hill"
    return list(row["questions"])


WANTED = [{"question": "q1", "answer": "x", "answers": ["x", "y"]}, {"question": "q3", "answer": "z"}]


@pytest.mark.parametrize("form", ["list", "data", "viewer", "lines", "lines with a blank one"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_flat_rows_in_every_form_and_encoding(form: str, encoding: str, tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, FLAT))
    text = {
        "list": json.dumps(FLAT),
        "data": json.dumps({"version": "2", "data": FLAT}),
        "viewer": json.dumps({"rows": [{"row_idx": i, "row": r} for i, r in enumerate(FLAT)]}),
        "lines": lines,
        "lines with a blank one": lines.replace("\n", "\n\n", 1) + "\n",
    }[form]
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding)
    assert asked(path) == WANTED
    assert any("1 questions that have no answer" in n for n in noted_passages(path).notes)


def test_the_hubs_rows_are_read_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: FLAT)
    assert asked(Path("hub:some/set")) == WANTED


def test_squads_impossible_questions_are_counted_and_not_taught(tmp_path: Path) -> None:
    qas = [
        {"question": "q", "answers": [{"text": "a"}, {"text": "b"}]},
        {"question": "r", "answers": [], "plausible_answers": [{"text": "c"}], "is_impossible": True},
        {"question": "s", "answers": [{"text": "d"}], "is_impossible": True},
    ]
    data = {
        "data": [
            {"title": "T", "paragraphs": [{"context": "c", "qas": qas}, {"context": "e", "qas": qas[1:]}]}
        ]
    }
    (tmp_path / "p.json").write_text(json.dumps(data))
    rows, notes = noted_passages(tmp_path / "p.json")
    assert [r["questions"] for r in rows] == [[{"question": "q", "answer": "a", "answers": ["a", "b"]}]]
    assert notes == [f"{tmp_path / 'p.json'}: left out 4 questions that have no answer"]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ("Paris", ["Paris"]), (["Paris", "paris"], ["Paris", "paris"]), ({"text": ["a"], "answer_start": [1]}, ["a"]),
        ([{"text": "a"}, {"text": " a "}], ["a"]), (1912, ["1912"]), (["", "b"], ["b"]), (None, None), ([], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["own", "flat", "nested"])
def test_answers_in_every_form_they_come_in(
    answers: object, wanted: list[str] | None, form: str, tmp_path: Path
) -> None:
    sound = {"question": "r", "answers": ["x"]}
    given = {"question": "q", "answers": answers}
    records: dict[str, object] = {
        "own": [{"title": "T", "context": "c", "questions": [given, sound]}],
        "flat": [{"title": "T", "context": "c", **q} for q in (given, sound)],
        "nested": {"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [given, sound]}]}]},
    }
    (tmp_path / "p.json").write_text(json.dumps(records[form]))
    rows, notes = noted_passages(tmp_path / "p.json")
    found = {q["question"]: golds_of(q) for q in rows[0]["questions"]}
    assert found == ({"q": wanted, "r": ["x"]} if wanted else {"r": ["x"]})
    assert bool(notes) is (wanted is None)


def test_a_bad_question_or_paragraph_loses_no_more_than_itself(tmp_path: Path) -> None:
    good, bad = {"question": "q", "answers": [{"text": "a"}]}, {"question": "r", "answers": [{"start": 3}]}
    data = [
        {"title": "T", "paragraphs": [{"context": "c", "qas": [good, bad]}, {"context": "d", "qas": None}, {"context": "e", "qas": [good]}]},
        {"title": "U", "context": "f", "question": "q", "answer": "plain", "is_impossible": "false"},
    ]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(data))
    rows, (note,) = noted_passages(tmp_path / "p.json")
    assert [r["context"] for r in rows] == ["c", "e", "f"] and rows[2]["questions"][0]["answer"] == "plain"
    assert "1 of 2 records, or part of them" in note and "question 1" in note and "and 1 more" in note


def test_where_a_title_is_missing_the_first_words_stand_for_it(tmp_path: Path) -> None:
    context = "The mill on the hill was built in 1702 by Anna Brook, who was a miller."
    rows: list[dict[str, object]] = [
        {"context": context, "questions": [{"question": "q", "answer": "a"}]},
        {"context": "Short.", "title": None, "question": "q", "answers": {"text": ["a"]}},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    found, notes = noted_passages(tmp_path / "p.json")
    assert [r["title"] for r in found] == [
        "The mill on the hill was built in 1702 by Anna Brook, who",
        "Short.",
    ]
    assert notes == [f"{tmp_path / 'p.json'}: 2 passages have no title; their first words stand for it"]


def test_bad_lines_are_left_out_by_number_and_a_strict_reader_refuses(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join([json.dumps(FLAT[0]), "{broken", json.dumps({"title": "T"}), "7"]))
    rows, notes = noted_passages(path)
    assert (
        len(rows) == 1
        and "left out 3 of 4 records, passage 1: not JSON" in notes[0]
        and "and 2 more" in notes[0]
    )
    with pytest.raises(SealError, match="passage 1: not JSON"):
        noted_passages(path, strict=True)
    with pytest.raises(SealError, match="passage 1"):
        Knowledge(str(path), strict=True).tasks("train")
    path.write_text("\n".join(json.dumps(r) for r in (FLAT[1], FLAT[1])))
    with pytest.raises(SealError, match="none of which has an answer"):
        noted_passages(path)


# ------------------------------------------------------------------------------------------------ grids

GRID = ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("12\n34", []), ("[[1, 2], [3, 4]]", []), ("12\n34\n\nand words", []), ("1 2\n3 4", ["spaces"]), ("1,2\n3,4", ["spaces"]),
        ("| 1 | 2 |\n| 3 | 4 |", ["spaces"]), ("```\n12\n34\n```", ["fence"]), ("```json\n[[1,2],[3,4]]\n```", ["fence"]),
        ("Output:\n12\n34", ["label"]), ("**Output:**\n12\n34", ["label"]), ("Answer: 12\n34", ["label"]),
        ("```12\n34\n```", ["fence"]), ("| 1 | 2 |\n|---|---|\n| 3 | 4 |", ["spaces"]), ("1\t2\n3\t4", ["spaces"]),
        ("[1, 2]\n[3, 4]", ["spaces"]), ("12,\n34.", ["spaces"]), ("Output grid (2x2):\n12\n34", ["label"]), ("Output 1:\n12\n34", ["label"]),
        ("The output grid is:\n```\n1 2\n3 4\n```", ["label", "fence", "spaces"]), ("```\nOutput:\n12\n34\n```", ["fence", "label"]),
    ],
)  # fmt: skip
def test_a_right_grid_counts_in_a_fence_after_a_label_and_with_spaces(text: str, what: list[str]) -> None:
    assert read_grid(text) == GRID and forgiven(text) == what


@pytest.mark.parametrize(
    "text", ["", "Output:", "I think 12\n34", "12 34\n56 78", "1 2\n3", "```\n```", "a1\n34"]
)
def test_what_is_no_grid_is_none(text: str) -> None:
    assert read_grid(text) is None and forgiven(text) == []
