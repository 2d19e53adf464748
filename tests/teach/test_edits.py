"""The store of edits: an adapter made again without one, and when a passage is not taught at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seal.cli.main import main
from seal.lora.files import load_peft
from seal.teach.ask import open_taught
from seal.teach.card import card_of
from seal.teach.edits import read_store, rebuild
from seal.teach.learn import is_known, unhelpful

DOCUMENTS = sorted((Path(__file__).parents[2] / "examples" / "documents").glob("*.md"))[:3]
COMMON = ["--edits", "2", "--epochs", "2", "--questions", "6"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three documents taught to one adapter, and to one each."""
    together, apart = (
        tmp_path_factory.mktemp("edits") / "together",
        tmp_path_factory.mktemp("edits") / "apart",
    )
    documents = [str(p) for p in DOCUMENTS]
    assert main(["learn", *documents, "--out", str(together), *COMMON]) in (0, 1)
    assert main(["learn", *documents, "--out", str(apart), *COMMON, "--per-document"]) in (0, 1)
    return together, apart


def test_every_edit_can_be_listed_and_shown(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, stored = read_store(folders[0])
    assert main(["edits", "list", str(folders[0])]) == 0
    listed = capsys.readouterr().out
    assert main(["edits", "show", str(folders[0]), stored[0].id[:6]]) == 0
    shown = capsys.readouterr().out
    for s in stored:
        assert s.id[:8] in listed
    assert stored[0].passage["context"] in shown and shown.count("edit ") >= 2
    for q in stored[0].quiz["questions"]:
        assert q["question"] in shown


def test_an_edit_removed_is_as_if_it_had_never_been(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """One adapter for all: the same as teaching the other passages from the start, by the same edits."""
    _, stored = read_store(folders[0])
    main(["edits", "remove", str(folders[0]), stored[1].id, "--out", str(tmp_path / "without")])
    others = [str(p) for p in DOCUMENTS if p.name != Path(stored[1].document).name]
    assert len(others) == 2 and main(["learn", *others, "--out", str(tmp_path / "never"), *COMMON]) in (0, 1)
    found, fresh = (load_peft(tmp_path / n / "adapter") for n in ("without", "never"))
    for name, (a, b) in fresh.weights.items():
        assert torch.allclose(found.weights[name][0], a, atol=1e-5) and torch.allclose(
            found.weights[name][1], b, atol=1e-5
        )
    assert [s.id for s in read_store(tmp_path / "without")[1]] == [s.id for s in stored if s is not stored[1]]
    rebuild(folders[0], tmp_path / "twice", [stored[1].id])
    one, two = (
        (tmp_path / n / "adapter/adapter_model.safetensors").read_bytes() for n in ("without", "twice")
    )
    assert one == two != (folders[0] / "adapter/adapter_model.safetensors").read_bytes()
    assert stored[1].texts[0] not in "".join(p.read_text() for p in (tmp_path / "without").rglob("*.json"))


def test_removing_a_document_leaves_the_others_adapters_and_answers_as_they_were(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    _, stored = read_store(folders[1])
    card = rebuild(folders[1], tmp_path / "out", [Path(stored[0].document).name])
    assert card["training"]["adapters"] == len({s.document for s in stored}) - 1
    for path in (tmp_path / "out/adapters").iterdir():
        assert (path / "adapter_model.safetensors").read_bytes() == (
            folders[1] / "adapters" / path.name / "adapter_model.safetensors"
        ).read_bytes()
    after = {s.id: s.answers for s in read_store(tmp_path / "out")[1]}
    assert after == {s.id: s.answers for s in stored if s.document != stored[0].document}


def test_replayed_by_the_same_recipe_it_is_the_same_adapter(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    main(["edits", "replay", str(folders[0]), "--out", str(tmp_path / "again")])
    adapters = [p / "adapter/adapter_model.safetensors" for p in (folders[0], tmp_path / "again")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    main(["edits", "replay", str(folders[0]), "--out", str(tmp_path / "small"), "--rank", "4"])
    assert json.loads((tmp_path / "small/adapter/adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["remove", "F", "zzz", "--out", "O"], "no passage's id begins with 'zzz'"),
        (["remove", "F", "--out", "O"], "remove takes the passages"),
        (["remove", "F", "3"], "where to"),
        (["show", "F"], "show which passage"),
        (["list", "O"], "not a finished folder"),
        (["remove", "F", "a", "--out", "O", "--rank", "4"], "remove changes nothing else"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    places = {"F": str(folders[0]), "O": str(tmp_path / "new")}
    assert main(["edits", *(places.get(w, w) for w in words)]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def question(kind: str, half: str) -> dict[str, str]:
    return {"question": "q?", "answer": "a", "kind": kind, "half": half}


def test_a_passage_is_known_by_its_practice_questions_alone() -> None:
    known, new = question("known", "practice"), question("new", "practice")
    assert is_known({"questions": [known] * 3 + [question("new", "proof")] * 5}, 1.0)
    assert not is_known({"questions": [known] * 3 + [new]}, 1.0) and is_known(
        {"questions": [known] * 3 + [new]}, 0.7
    )
    assert not is_known({"questions": [known] * 2}, 1.0), "too few to be sure"
    assert not is_known({"questions": [known] * 9}, 2)


def test_an_adapter_that_does_not_help_is_dropped_by_practice_and_counts_as_no_adapter() -> None:
    passages = [{"source": s, "title": s, "id": s} for s in ("good", "bad")]
    quiz = [
        {"drafted": 2, "sound": 2, "questions": [question("new", "practice"), question("new", "proof")]}
    ] * 2

    def answered(*after: bool) -> dict[str, Any]:
        right = {"before": [False, False], "after": list(after), "open book": [True, True]}
        return {"before": ["", ""], "after": ["x", "y"], "open book": ["a", "a"], "right": right}

    answers = [answered(True, True), answered(False, True)]
    dropped = unhelpful(passages, quiz, answers)
    assert dropped == ["bad"]
    card = card_of({}, passages, quiz, answers, {}, {"": {"steps": 1, "tokens": 1}}, (), dropped)
    assert card["accuracy"]["after"]["mean"] == 0.5 and card["silent"]["after"] == 0.5


def test_a_passage_that_is_known_is_not_taught(tmp_path: Path) -> None:
    """With a share so low that every passage with a known practice question counts: fewer edits, fewer rows,
    and the card says so."""
    documents = [str(p) for p in DOCUMENTS[:2]]
    out = tmp_path / "known"
    main(
        [
            "learn",
            *documents,
            "--out",
            str(out),
            "--edits",
            "1",
            "--epochs",
            "1",
            "--skip-known",
            "1e-9",
            "--per-document",
        ]
    )
    card = json.loads((out / "card.json").read_text())
    _, stored = read_store(out)
    assert card["known already"] == sum(s.known for s in stored)
    assert all(bool(s.texts) is not s.known for s in stored)
    assert card["written"]["edits"] == sum(len(s.texts) for s in stored)
    taught = {s.document for s in stored if not s.known}
    assert set(open_taught(out).adapters) == taught - set(card["dropped"])
