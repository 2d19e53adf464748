"""The knowledge domain, its invented world and its graders."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal.cli.main import main
from seal.domains import load_domain
from seal.domains.check import HOSTILE, check_domain
from seal.domains.grading import exact, string_rule
from seal.domains.knowledge import Knowledge, atlas
from seal.domains.knowledge.division import divide
from seal.domains.knowledge.domain import MAX_EDIT_CHARS, MAX_LINE_CHARS, MAX_ROWS
from seal.domains.knowledge.passages import noted_passages, read_passages
from seal.records import BadEdit, Edit, SealError, Task
from seal.report.agreement import agreement, judge_graders, read_verdicts

SHARED = Path(__file__).parents[3] / "shared" / "data"


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("index", range(0, 300, 7))
def test_a_derived_answer_stands_nowhere_in_its_passage_and_a_stated_one_does(index: int) -> None:
    record = atlas.record("eval", index)
    for q in record["questions"]:
        assert (q["answer"] in words(record["context"])) == (q["kind"] == "stated")


@pytest.mark.parametrize("index", range(0, 300, 7))
def test_passages_have_four_to_seven_sentences_and_questions_of_both_kinds(index: int) -> None:
    record = atlas.record("train", index)
    assert 4 <= record["context"].count(".") <= 7
    assert [q["kind"] for q in record["questions"]].count("stated") == atlas.N_STATED
    assert [q["kind"] for q in record["questions"]].count("derived") == atlas.N_DERIVED


def test_the_world_is_the_same_every_time_and_another_under_another_seed() -> None:
    assert atlas.record("eval", 3) == atlas.record("eval", 3)
    assert atlas.record("eval", 3)["questions"] != atlas.record("eval", 3, seed=1)["questions"]


def test_no_name_stands_in_two_splits() -> None:
    names = {s: {atlas.entity(s, i).name for i in range(1500)} for s in atlas.SPLITS}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == 1500 * len(names)
    with pytest.raises(IndexError):
        atlas.entity("train", 2000)


def test_the_held_out_phrasing_is_in_no_edit() -> None:
    for i in range(60):
        record = atlas.record("eval", i)
        for q in record["questions"]:
            assert q["question"] not in record["oracle"]


@pytest.mark.parametrize(
    ("attribute", "base", "gap", "value"),
    [
        ("month", "November", "three", "February"),
        ("weekday", "Monday", "second", "Wednesday"),
        ("weekday", "Saturday", "fifth", "Thursday"),
        ("count", "four", "pair", "six"),
        ("count", "nine", "quintet", "fourteen"),
        ("facing", "northeast", "right", "southeast"),
        ("facing", "north", "left", "west"),
        ("facing", "east", "about", "west"),
        ("facing", "west", "aslant", "northwest"),
        ("custom", "May", "three", "August"),
    ],
)
def test_derivations_are_true(attribute: str, base: str, gap: str, value: str) -> None:
    assert atlas.derive(attribute, base, gap) == value


def test_pronouns_and_nouns_are_used() -> None:
    text = " ".join(atlas.record("train", i)["context"] for i in range(50))
    assert {"She", "he", "It", "Its", "her"} <= words(text) and "The town" in text and "the guild" in text


def test_the_domain_passes_its_own_check() -> None:
    assert len(check_domain(Knowledge())) == 5


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_edits_never_break_parsing(name: str) -> None:
    domain = Knowledge()
    parsed = domain.parse(domain.tasks("train")[0], HOSTILE[name])
    if name in ("empty", "blank", "control characters", "1 MB", "a million lines"):
        assert isinstance(parsed, BadEdit) and parsed.reason and len(parsed.text) <= MAX_EDIT_CHARS


@given(st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_text_parses_to_rows_or_a_reason(text: str) -> None:
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("train")[0]
    parsed = domain.parse(task, text)
    if isinstance(parsed, Edit):
        lines = [x.strip() for x in text.split("\n") if x.strip()]
        assert [e.completion for e in parsed.examples] == [
            f"{task.data['title']}\n{x}" for x in (task.data["context"], *lines)
        ]
        assert len(parsed.examples) <= MAX_ROWS + 1 and not parsed.directives
    else:
        assert parsed.reason


def test_the_passage_alone_is_one_row() -> None:
    domain = Knowledge()
    task = domain.tasks("train")[0]
    parsed = domain.parse(task, domain.plain(task) or "")
    assert isinstance(parsed, Edit) and len(parsed.examples) == 1


def test_self_qa_makes_one_row_per_question() -> None:
    domain = Knowledge(prompt="self-qa")
    parsed = domain.parse(
        domain.tasks("train")[0], "Question: Who?\nAnswer: She.\n\nQuestion: Where?\nAnswer: There."
    )
    assert isinstance(parsed, Edit)
    assert [e.completion.split("\n")[1] for e in parsed.examples[1:]] == [
        "Question: Who? Answer: She.",
        "Question: Where? Answer: There.",
    ]


def test_as_many_lines_as_are_allowed_and_not_one_more() -> None:
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("train")[0]
    whole = domain.parse(task, "\n".join(f"Line {i}." for i in range(MAX_ROWS)))
    assert isinstance(whole, Edit) and len(whole.examples) == MAX_ROWS + 1
    more = domain.parse(task, "\n".join(f"Line {i}." for i in range(MAX_ROWS + 1)))
    assert isinstance(more, BadEdit) and f"too many lines: {MAX_ROWS + 1}" in more.reason
    long = domain.parse(task, "x" * MAX_LINE_CHARS)
    assert isinstance(long, Edit) and isinstance(domain.parse(task, "x" * (MAX_LINE_CHARS + 1)), BadEdit)


def test_bad_options_are_one_clear_sentence() -> None:
    for options, match in (
        ({"prompt": "nonsense"}, "no prompt variant"),
        ({"grader": "vibes"}, "no grader"),
        ({"wat": 1}, "does not take these options"),
    ):
        with pytest.raises(SealError, match=match):
            load_domain("knowledge", options)
    with pytest.raises(SealError, match="there is no file"):
        Knowledge(source="nowhere.json").tasks("train")


def test_files_of_passages_are_read_and_divided_by_title(tmp_path: Path) -> None:
    rows = [
        {"title": f"T{i // 2}", "context": f"c{i}", "questions": [{"question": "q?", "answer": "a"}]}
        for i in range(20)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    splits = divide(read_passages(tmp_path / "p.json"), {"train": 6, "select": 4, "eval": 6}, seed=0)
    titles = {s: {t.data["title"] for t in tasks} for s, tasks in splits.items()}
    assert [len(v) for v in splits.values()] == [6, 4, 6]
    assert not titles["train"] & titles["eval"] and not titles["train"] & titles["select"]
    with pytest.raises(SealError, match="too few passages"):
        divide(read_passages(tmp_path / "p.json"), {"train": 30}, seed=0)
    (tmp_path / "bad.json").write_text(json.dumps([{"title": "T"}]))
    with pytest.raises(SealError, match="passage 0, context: Field required"):
        read_passages(tmp_path / "bad.json")


def test_passages_that_share_title_and_context_or_context_alone_stay_together(tmp_path: Path) -> None:
    q = [{"question": f"q{i}?", "answer": "a"} for i in range(3)]
    rows = [
        {"id": 7, "title": "T", "context": "c", "questions": [q[0]]},
        {"title": "T", "context": "c", "questions": q[1:]},
    ]
    rows += [{"title": f"U{i}", "context": "same", "questions": q} for i in range(3)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    passages = read_passages(tmp_path / "p.json")
    assert [len(p["questions"]) for p in passages] == [3, 3, 3, 3] and len({p["id"] for p in passages}) == 4
    splits = divide(passages, {"train": 1, "eval": 1}, seed=0)
    assert not {t.data["context"] for t in splits["train"]} & {t.data["context"] for t in splits["eval"]}


@pytest.mark.parametrize(
    "row",
    [
        {"questions": None}, {"title": 5}, {"context": None}, {"context": " "}, {"questions": []}, {"title": "\ud800"},
        {"questions": [{"question": "q", "answer": 5}]}, {"questions": [{"question": "q", "answer": ""}]},
    ],
)  # fmt: skip
def test_a_record_that_is_no_passage_is_one_clear_sentence(tmp_path: Path, row: dict[str, object]) -> None:
    sound = {"title": "T", "context": "c", "questions": [{"question": "q", "answer": "a"}]}
    (tmp_path / "p.json").write_text(json.dumps([sound, {**sound, **row}]))
    with pytest.raises(SealError, match=r"passage 1"):
        read_passages(tmp_path / "p.json", strict=True)
    left, (note,) = noted_passages(tmp_path / "p.json")
    assert [r["title"] for r in left] == ["T"] and "left out 1 of 2 records, passage 1" in note
    assert (
        note in Knowledge(source=str(tmp_path / "p.json"), sizes={"train": 1, "select": 0, "eval": 0}).notes()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": {"train": 1}}, {"sizes": {"train": 1, "select": -1, "eval": 1}}, {"sizes": {"train": "a", "select": 1, "eval": 1}},
        {"sizes": {"train": 1, "select": 1, "eval": 5000}}, {"source": 5}, {"source": "/"}, {"prompt": "{context} {foo}"},
        {"prompt": "{context} {"},
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_one_clear_sentence(options: dict[str, object]) -> None:
    with pytest.raises(SealError):
        load_domain("knowledge", options).tasks("train")


def test_the_order_of_sizes_does_not_matter(tmp_path: Path) -> None:
    rows = [
        {"title": f"T{i}", "context": f"c{i}", "questions": [{"question": "q?", "answer": "a"}]}
        for i in range(9)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    one = Knowledge(str(tmp_path / "p.json"), sizes={"train": 3, "select": 2, "eval": 4})
    other = Knowledge(str(tmp_path / "p.json"), sizes={"eval": 4, "select": 2, "train": 3})
    assert [one.tasks(s) for s in ("train", "eval")] == [other.tasks(s) for s in ("train", "eval")]


def test_the_passage_alone_is_one_row_whatever_it_looks_like(tmp_path: Path) -> None:
    context = "first\x0c line\n\n" + "long " * 900
    row = {"title": "T", "context": context, "questions": [{"question": "q", "answer": "a"}]}
    (tmp_path / "p.json").write_text(
        json.dumps([{**row, "title": f"T{i}", "context": f"{i} {context}"} for i in range(3)])
    )
    domain = Knowledge(str(tmp_path / "p.json"), sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("eval")[0]
    parsed = domain.parse(task, domain.plain(task) or "")
    assert isinstance(parsed, Edit) and len(parsed.examples) == 1


def test_squad_form_is_read(tmp_path: Path) -> None:
    data = {
        "data": [
            {
                "title": "A_B",
                "paragraphs": [
                    {
                        "context": "c",
                        "qas": [
                            {"question": "q", "answers": [{"text": "x"}]},
                            {"question": "no", "answers": []},
                        ],
                    }
                ],
            }
        ]
    }
    (tmp_path / "s.json").write_text(json.dumps(data))
    assert read_passages(tmp_path / "s.json")[0]["questions"] == [{"question": "q", "answer": "x"}]


@pytest.mark.skipif(not SHARED.exists(), reason="sample data is not beside the project")
def test_released_passages_and_edits_are_read() -> None:
    rows = read_passages(SHARED / "passages_with_edits.json")
    domain = Knowledge(
        source=str(SHARED / "passages_with_edits.json"),
        grader="string",
        sizes={"train": 20, "select": 5, "eval": 20},
    )
    assert len(rows) == 50 and len(domain.tasks("eval")) == 20
    for task in domain.tasks("train"):
        for text in task.data["completions"]:
            assert isinstance(domain.parse(task, text), Edit)


@pytest.mark.parametrize(
    ("question", "gold", "answer", "same", "rule"),
    [
        ("When?", "the 3rd of March", "3 march", False, True),
        ("Who?", "Marie Curie", "It was Marie Curie.", False, True),
        ("Who?", "Marie Curie", "Pierre", False, False),
        ("How many towers?", "twelve towers", "12", False, True),
        ("Where?", "The Hague", "hague", True, True),
        ("Who?", "Beyoncé", "beyonce", False, True),
        ("What?", "salt", "", False, False),
        ("Which?", "+", "", False, False),
        ("Which?", "+", "+", True, True),
        ("Which?", "The", "", False, False),
    ],
)
def test_graders(question: str, gold: str, answer: str, same: bool, rule: bool) -> None:
    assert exact(question, gold, answer) is same
    assert string_rule(question, gold, answer) is rule


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("1835–1836", "between 1835 and 1836", True),
        ("48.8 percent", "48 or 8 percent", False),
        ("stored food", "It is used to store its food.", True),
        ("48 percent", "52 percent", False),
    ],
)
def test_the_string_rule_knows_endings_decimals_and_what_weighs(gold: str, answer: str, right: bool) -> None:
    assert string_rule("What?", gold, answer) is right


def test_agreement_is_counted_as_by_hand() -> None:
    found = agreement([True, True, False, False, True], [True, False, False, False, True])
    assert found == {"n": 5, "accuracy": 0.8, "kappa": round((0.8 - 0.48) / 0.52, 4), "bias": 20.0}


def test_seal_judge_reads_verdicts_and_names_a_line_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "q?", "gold": "salt", "answer": a, "n_graded": 3, "n_yes": n}
        for a, n in (("salt", 3), ("no", 0))
    ]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["check", "graders", str(tmp_path / "v.jsonl"), "--json", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["graders"]["string"]["all"]["accuracy"] == 1
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n{}\n")
    capsys.readouterr()
    assert main(["check", "graders", str(tmp_path / "bad.jsonl")]) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason="sample data is not beside the project")
def test_the_string_rule_agrees_with_the_released_verdicts() -> None:
    found = judge_graders(read_verdicts(SHARED / "judge_verdicts.jsonl.gz"))["string"]["all"]
    assert found["accuracy"] >= 0.88 and found["kappa"] >= 0.75


def test_oracle_holds_every_gold_answer() -> None:
    who = atlas.entity("eval", 5)
    text = atlas.oracle(who, random.Random(0))
    assert all(f.value in words(text) for f in who.facts)


def test_the_likeness_of_many_siblings_is_that_of_pairs_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five hundred there are 125,000 pairs: two hundred drawn ones tell the same."""
    import random
    from itertools import combinations

    from seal.domains.knowledge import features as module

    words = ["oak", "ash", "elm", "fir", "yew"]
    texts = [" ".join(random.Random(i).choices(words, k=12)) for i in range(500)]
    grams = [module._bigrams(t) for t in texts]
    pairs = [len(a & b) / len(a | b) for a, b in combinations(grams[:150], 2)]
    drawn = 0
    plain = module._pair

    def pair(*given: Any) -> Any:
        nonlocal drawn
        drawn += 1
        return plain(*given)

    monkeypatch.setattr(module, "_pair", pair)
    task = Task("t", {"title": "T", "context": "c"})
    assert (
        module.features(task, texts)["likeness"] == pytest.approx(sum(pairs) / len(pairs), abs=0.03)
        and drawn == 200
    )
    few = module.features(task, texts[:20])["likeness"]
    assert (
        few == pytest.approx(sum(len(a & b) / len(a | b) for a, b in combinations(grams[:20], 2)) / 190)
        and drawn == 200
    )
