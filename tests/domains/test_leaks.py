"""What must never meet: the test in the training rows or in a prompt, one passage or rule on two sides of a
split."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from seal.domains.arc import Arc, families, grids
from seal.domains.arc.domain import ArcEdit, DataGeneration, Training
from seal.domains.arc.puzzles import embedded_task
from seal.domains.base import SPLITS
from seal.domains.knowledge import Knowledge, atlas
from seal.domains.knowledge.division import divide, near_duplicates, shared_questions
from seal.domains.knowledge.passages import read_passages
from seal.records import Edit, SealError

# ---------------------------------------------------------------------------------------------------- puzzles

MARK = 7
"""The colour of the test's grids alone."""


def puzzle(tests: int = 1) -> dict[str, object]:
    """Demonstrations without the colours 7 and 8, tests of nothing else: whatever is made of the
    demonstrations, turned, doubled or repeated but not recoloured, is told from the test."""
    rng = random.Random(0)

    def pair(colours: Sequence[int]) -> dict[str, object]:
        grid = [[rng.choice(colours) for _ in range(3)] for _ in range(3)]
        return {"input": grid, "output": [row[::-1] for row in grid]}

    return {"train": [pair((1, 2, 3)) for _ in range(4)], "test": [pair((MARK, 8)) for _ in range(tests)]}


@pytest.fixture
def arc(tmp_path: Path) -> Arc:
    (tmp_path / "all.json").write_text(json.dumps({f"t{i}": puzzle(1 + i % 2) for i in range(3)}))
    return Arc(str(tmp_path / "all.json"), sizes={"train": 1, "select": 1, "eval": 1})


def every_edit() -> list[str]:
    tools = [f"use_{t}_augmentations" for t in ("basic", "size", "chain", "repeat")]
    return [
        ArcEdit(
            data_generation=DataGeneration(**dict(zip(tools, chosen, strict=True))),
            training=Training(strategy=strategy, learning_rate=1e-3, num_train_epochs=1),  # type: ignore[arg-type]
        ).model_dump_json()
        for chosen in itertools.product((False, True), repeat=4)
        for strategy in ("train_using_all_tokens", "train_using_output_tokens")
    ]


def test_no_cell_of_the_test_is_in_any_row_of_any_edit(arc: Arc, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every choice of tools and both strategies, without recolouring (which draws colours, the test's
    too)."""
    plain = grids.Tool("colours as they are", lambda grid: grid, lambda grid: grid)
    monkeypatch.setattr(grids, "colour_permutation", lambda rng: plain)
    for split in SPLITS:
        for task in arc.tasks(split):
            for text in every_edit():
                edit = arc.parse(task, text)
                assert isinstance(edit, Edit) and len(edit.examples) > 4
                assert not any(c in e.prompt + e.completion for e in edit.examples for c in "78")


def test_the_writer_sees_no_test_and_the_solver_no_answer(arc: Arc) -> None:
    for task in (t for s in SPLITS for t in arc.tasks(s)):
        shown = arc.prompt(task).text.split("\n\nInput:", 1)[1]
        assert not any(c in shown.split("Answer with")[0] for c in "78")
        queries = arc.queries(task)
        assert len(queries) == len(task.data["test"])
        for query, test in zip(queries, task.data["test"], strict=True):
            asked, gold = (grids.as_digits(tuple(map(tuple, test[k]))) for k in ("input", "output"))
            assert query.prompt.text.count("Output:") == 5 and query.prompt.text.endswith(
                f"{asked}\nOutput:\n"
            )
            assert query.gold == gold and gold not in query.prompt.text


def test_every_test_of_a_puzzle_must_be_right(arc: Arc) -> None:
    task = next(t for s in SPLITS for t in arc.tasks(s) if len(t.data["test"]) == 2)
    gold = [q.gold for q in arc.queries(task)]
    assert arc.grade(task, gold).score == 1
    assert arc.grade(task, [gold[0], "1"]).score == arc.grade(task, ["1", gold[1]]).score == 0


def test_splits_of_the_embedded_puzzles_share_no_family() -> None:
    names = {s: {embedded_task(s, i).data["family"] for i in range(120)} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not names[one] & names[other]
    assert set().union(*names.values()) <= {f.name for f in families.held_families()}


# --------------------------------------------------------------------------------------------------- passages

TEXT = "The town of Velora was founded in March by the guild of salters, and walled two months later against the river."
REPEATS = {
    "trailing space": TEXT + " ",
    "line break": TEXT.replace(" by ", "\nby "),
    "no-break space": TEXT.replace(" of ", "\u00a0of "),
    "double space": TEXT.replace(", ", ",  "),
    "capitals": TEXT.upper(),
    "full-width": TEXT.replace("March", "\uff2d\uff41\uff52\uff43\uff48"),
    "one word more": TEXT.replace("river", "wide river"),
    "one word other": TEXT.replace("salters", "weavers"),
    "a sentence more": TEXT + " It lies in Tarn.",
}


def passages(text: str) -> list[dict[str, object]]:
    question = [{"question": "When was it walled?", "answer": "May"}]
    rows = [
        {
            "title": f"T{i}",
            "context": f"{i} {hash_words(i)}",
            "questions": [{"question": f"q{i}?", "answer": "a"}],
        }
        for i in range(8)
    ]
    return [
        {"title": "One", "context": TEXT, "questions": question},
        *rows,
        {"title": "Other", "context": text, "questions": question},
    ]


def hash_words(i: int) -> str:
    return " ".join(random.Random(i).choices(["oak", "ash", "elm", "fir", "yew", "bay", "fig", "box"], k=20))


@pytest.mark.parametrize("kind", REPEATS)
def test_a_passage_that_repeats_another_stands_on_its_side(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(passages(REPEATS[kind])))
    for seed in range(12):
        splits = divide(read_passages(tmp_path / "p.json"), {"train": 4, "select": 1, "eval": 4}, seed)
        sides = {s for s, tasks in splits.items() for t in tasks if t.data["title"] in ("One", "Other")}
        assert len(sides) <= 1, f"seed {seed}"
        assert not shared_questions(splits)
    notes = Knowledge(str(tmp_path / "p.json"), sizes={"train": 4, "select": 1, "eval": 4}).notes()
    assert (
        len(notes) == 1
        and "1 passages under other titles repeat another" in notes[0]
        and "'Other'" in notes[0]
    )


def test_an_exact_copy_is_found_however_common_its_sentences(tmp_path: Path) -> None:
    """Texts put together of the same paragraphs fill the look-up; a copy is a copy all the same."""
    pool = [f"{hash_words(i)} {i}." for i in range(30)]
    texts = [" ".join(random.Random(i).sample(pool, 5)) for i in range(120)]
    copies = [(place, 120 + n) for n, place in enumerate(range(0, 120, 7))]
    found = set(near_duplicates([*texts, *(texts[place].upper() + " " for place, _ in copies)]))
    assert set(copies) <= found


def test_titles_that_share_a_text_are_one_group_and_a_copy_is_counted_once(tmp_path: Path) -> None:
    rows = passages(TEXT + " It lies in Tarn.")
    rows += [{**rows[0], "title": f"Copy {i}"} for i in range(3)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    most = 0
    for seed in range(6):
        domain = Knowledge(str(tmp_path / "p.json"), sizes={"train": 4, "select": 1, "eval": 4}, seed=seed)
        assert "4 passages under other titles" in domain.notes()[0]
        alike = [t for s in SPLITS for t in domain.tasks(s) if t.data["title"][:2] in ("On", "Ot", "Co")]
        most = max(most, len(alike))
        assert len({domain.group(t) for t in alike}) <= 1
    assert most > 2


def test_a_common_phrase_makes_nobody_alike(tmp_path: Path) -> None:
    start = "This article is a stub and needs the help of an expert on the subject."
    texts = [
        f"{start} {' '.join(random.Random(i).sample(range(9_999), 30).__str__().split())}" for i in range(40)
    ]
    assert list(near_duplicates(texts)) == []
    assert list(near_duplicates([*texts, texts[5] + " more"])) == [(5, 40)]


def test_a_question_that_stands_in_two_splits_is_named(tmp_path: Path) -> None:
    rows = passages("Another text altogether, which says nothing of what the first has said about anything.")
    (tmp_path / "p.json").write_text(json.dumps(rows))
    named = []
    for seed in range(8):
        domain = Knowledge(str(tmp_path / "p.json"), sizes={"train": 4, "select": 1, "eval": 5}, seed=seed)
        sides = {
            t.data["title"]: s for s in SPLITS for t in domain.tasks(s) if t.data["title"] in ("One", "Other")
        }
        apart = len(set(sides.values())) == 2
        assert bool(domain.notes()) == apart
        if apart:
            assert "'When was it walled?'" in domain.notes()[0] and all(
                s in domain.notes()[0] for s in sides.values()
            )
        named.append(apart)
    assert any(named)


def test_finding_repeats_costs_what_the_passages_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In comparisons, not seconds: twice as many passages, about twice as many, even where all begin with one
    phrase."""
    from seal.domains.knowledge import division

    counted = []
    plain = division._shingles
    for n in (400, 800):
        calls = 0

        def count(text: str) -> frozenset[int]:
            nonlocal calls
            calls += 1
            return plain(text)

        monkeypatch.setattr(division, "_shingles", count)
        assert not list(
            near_duplicates(
                [f"As everyone in the land knows very well {hash_words(i)} {i}" for i in range(n)]
            )
        )
        counted.append(calls)
    assert counted[1] <= 2.5 * counted[0]


def test_the_file_is_refused_where_repeats_leave_too_few(tmp_path: Path) -> None:
    rows = [
        {"title": f"T{i}", "context": TEXT + " " * i, "questions": [{"question": "q?", "answer": "a"}]}
        for i in range(6)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(SealError, match="too few passages"):
        divide(read_passages(tmp_path / "p.json"), {"train": 2, "select": 2, "eval": 2}, 0)


def test_the_worlds_splits_share_no_name_and_no_text() -> None:
    rows = {
        s: [atlas.record(s, i, seed) for i in range(60) for seed in (0, 1)]
        for s in ("train", "select", "eval", "known")
    }
    for one, other in itertools.combinations(rows, 2):
        for key in ("title", "context"):
            assert not {r[key] for r in rows[one]} & {r[key] for r in rows[other]}


def test_what_the_model_knows_by_heart_is_asked_as_it_was_learnt() -> None:
    for i in range(atlas.N_KNOWN):
        who, record = atlas.entity("known", i), atlas.record("known", i)
        assert [q["answer"] for q in record["questions"]] == [f.value for f in who.facts] and record[
            "title"
        ] == who.name
