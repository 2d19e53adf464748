"""Teaching documents, end to end on tiny models and the embedded one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from seal.cli.main import main
from seal.domains.grading import normalize
from seal.domains.knowledge import Knowledge
from seal.domains.knowledge.prompts import ASK
from seal.lora.files import load_peft
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import ask
from seal.lora.train import Job, train_adapters
from seal.records import Prompt, SealError
from seal.store import claim
from seal.teach.quiz import ANSWER_TOKENS
from tests import tiny

EXAMPLES = Path(__file__).parents[2] / "examples/documents"


TRAINED: list[Job] = []
"""What the adapter of the fixture was trained on."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught") / "out"

    def train(policy: Model, jobs: Sequence[Job], *more: Any) -> Any:
        TRAINED.extend(jobs)
        return train_adapters(policy, jobs, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seal.memory.library.train_adapters", train)
        main(["learn", str(EXAMPLES), "--out", str(out), "--edits", "2", "--epochs", "4"])
    return out


def test_learning_documents_gives_an_adapter_and_a_card_that_proves_it(taught: Path) -> None:
    card = json.loads((taught / "card.json").read_text())
    assert card["read"] == {"documents": 5, "passages": 5}
    assert card["written"]["edits"] == 10
    assert card["accuracy"]["after"]["mean"] > card["accuracy"]["before"]["mean"]
    assert card["accuracy"]["open book"]["mean"] == 1.0  # only such questions are sound
    text = (taught / "README.md").read_text()
    assert "base_model: atlas" in text
    assert f"{card['accuracy']['after']['mean']:.3f}" in text


def test_no_training_row_holds_a_question_of_the_quiz_and_no_answer_stands_in_both_halves(
    taught: Path,
) -> None:
    (job,) = TRAINED
    rows = [normalize(e.prompt + e.completion) for e in job.examples]
    records = [
        r
        for chunk in sorted((taught / "chunks").iterdir())
        for r in json.loads((chunk / "quiz.json").read_text())
    ]
    asked = [normalize(q["question"]) for r in records for q in r["questions"]]
    assert len(rows) > 10 and len(asked) > 5
    assert not [(q, r) for q in asked for r in rows if q in r]
    for record in records:
        halves = {
            h: {q["answer"].lower() for q in record["questions"] if q["half"] == h}
            for h in ("proof", "practice")
        }
        assert not halves["proof"] & halves["practice"]


def test_no_edit_row_holds_a_question_of_any_passage_and_the_passage_itself_is_always_taught(
    tmp_path: Path,
) -> None:
    from seal.teach.learn import _asks, _rows

    asked = {normalize("When does the journey of Korabi come?")}
    assert _asks("Other\nQuestion: When does the journey of Korabi come? Answer: May.", asked)
    assert not _asks("Korabi travels in May. Does he?", asked)
    passage = {"id": "x", "title": "T", "context": "When does the journey of Korabi come? In May."}
    counts = {"edits": 0, "bad edits": 0, "rows": 0, "rows left out": 0}
    rows = list(
        _rows(
            Knowledge(),
            passage,
            asked,
            ["Question: When does the journey of Korabi come? Answer: May.\nA fact."],
            counts,
        )
    )
    assert [r.completion for r in rows] == [f"T\n{passage['context']}", "T\nA fact."]
    assert counts == {"edits": 1, "bad edits": 0, "rows": 2, "rows left out": 1}


def test_an_answer_stands_in_one_half_whatever_the_passage(taught: Path) -> None:
    records = [r for c in (taught / "chunks").iterdir() for r in json.loads((c / "quiz.json").read_text())]
    halves: dict[str, set[str]] = {}
    for question in (q for r in records for q in r["questions"]):
        halves.setdefault(question["answer"].lower(), set()).add(question["half"])
    assert all(len(h) == 1 for h in halves.values())


def test_of_fewer_than_five_passages_nothing_is_concluded() -> None:
    from seal.teach.card import card_of

    quiz = [
        {
            "id": "p",
            "drafted": 1,
            "sound": 1,
            "questions": [{"question": "q?", "answer": "a", "kind": "new", "half": "proof"}],
        }
    ]
    answers = [
        {
            "before": ["b"],
            "after": ["a"],
            "open book": ["a"],
            "right": {"before": [False], "after": [True], "open book": [True]},
        }
    ]
    for n, keep in ((1, None), (5, True)):
        passages = [{"source": "s", "title": "T"}] * n
        trained = {"": {"steps": 1, "tokens": 1}}
        assert card_of({}, passages, quiz * n, answers * n, {}, trained)["keep"] is keep


def test_running_it_again_changes_nothing_and_other_settings_are_refused(
    taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()}
    main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"])
    assert files == {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()}
    assert main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "3", "--epochs", "4"]) == 2
    assert "other edits" in capsys.readouterr().err
    assert (
        main(["learn", str(EXAMPLES / "tafobu.md"), "--out", str(taught), "--edits", "2", "--epochs", "4"])
        == 2
    )
    assert "other passages" in capsys.readouterr().err
    held = claim(taught)
    assert main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"]) == 2
    assert "in use by another process" in capsys.readouterr().err
    held.lock.release()


def test_asking_with_and_without(
    taught: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    title, question, gold = learnt(taught)
    assert main(["ask", question, "--adapter", str(taught), "--compare", "--open-book"]) == 0
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    policy, adapter = load_model("atlas"), load_peft(taught / "adapter")
    prompt = Prompt(ASK.format(title=title, question=question))
    expected = [
        row[0].strip()
        for row in ask(policy, [None, adapter], [[prompt]] * 2, Sampling(ANSWER_TOKENS, stop="\n"))
    ]
    assert found == {
        "without adapter": expected[0],
        "with adapter": expected[1],
        f"open book ({title})": gold,
    }
    assert expected[1] == gold != expected[0], "it was taught"
    assert (
        main(
            [
                "ask",
                "Which instrument does one hear in Dezari?",
                "--open-book",
                str(EXAMPLES / "dezari.md"),
                "--model",
                "atlas",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "trumpet\n"
    monkeypatch.setattr("sys.stdin", iter_input(["Which flower grows all over Tafobu?", ""]))
    assert main(["ask", "--adapter", str(taught / "adapter")]) == 0
    assert capsys.readouterr().out.strip()


def learnt(taught: Path) -> tuple[str, str, str]:
    """Title, question and answer of something that the card says was learnt: which it is differs between
    machines."""
    passages = [json.loads(line) for line in (taught / "passages.jsonl").read_text().splitlines()]
    titles = {p["id"]: p["title"] for p in passages}
    for chunk in sorted((taught / "chunks").iterdir()):
        quiz, answers = (json.loads((chunk / f"{name}.json").read_text()) for name in ("quiz", "answers"))
        for record, answer in zip(quiz, answers, strict=True):
            for q, before, after in zip(
                record["questions"], answer["right"]["before"], answer["right"]["after"], strict=True
            ):
                if after and not before:
                    return titles[record["id"]], q["question"], q["answer"]
    raise AssertionError("nothing was learnt")


def iter_input(lines: list[str]) -> object:
    import io

    return io.StringIO("\n".join(lines) + "\n")


def test_peft_loads_what_was_taught(taught: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from seal.lora.names import DATA

    base = AutoModelForCausalLM.from_pretrained(str(DATA / "atlas"), dtype=torch.float32)
    policy = load_model("atlas")
    ids = torch.tensor(
        [
            policy.tokenizer(
                ASK.format(title="Dezari", question="Which instrument does one hear in Dezari?")
            )["input_ids"]
        ]
    )
    plain = base(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(base, str(taught / "adapter")).eval()(input_ids=ids).logits
    policy = policy.plus(load_peft(taught / "adapter"))
    assert torch.allclose(theirs, policy.forward(input_ids=ids).logits, atol=1e-3)
    assert not torch.allclose(theirs, plain, atol=1.0), "and it changes what the model says"


def test_merged_weights_answer_as_the_adapter_does(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(taught), "--merge", str(tmp_path / "whole")]) == 0
    assert main(["export", str(taught), "--merge", str(tmp_path / "whole")]) == 2
    capsys.readouterr()
    question = "Which flower grows all over Tafobu?"
    assert main(["ask", question, "--adapter", str(taught)]) == 0
    with_adapter = capsys.readouterr().out
    assert main(["ask", question, "--model", str(tmp_path / "whole"), "--topic", "Tafobu"]) == 0
    assert capsys.readouterr().out == with_adapter


def test_nothing_is_sent_to_the_hub_unless_asked_and_what_fails_is_one_sentence(
    taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seal.teach import hub

    sent: list[object] = []

    class Api:
        def create_repo(self, repo: str, exist_ok: bool, private: bool) -> None:
            if repo == "not/mine":
                raise OSError("403 Forbidden")
            assert private

        def upload_folder(self, **what: object) -> str:
            sent.append(what["folder_path"])
            return "address"

    monkeypatch.setattr(hub, "HfApi", Api)
    again = ["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"]
    main(again)
    assert not sent
    main([*again, "--push", "me/taught"])
    assert sent == [taught]
    assert main([*again, "--push", "not/mine"]) == 2
    assert "403 Forbidden" in capsys.readouterr().err


def test_one_adapter_per_document_and_the_best_edits_of_a_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\nThe {name} is here.\n")
    documents = [str(tmp_path / "one.md"), str(tmp_path / "two.md")]
    flags = [
        "--model",
        model,
        "--edits",
        "2",
        "--keep",
        "1",
        "--epochs",
        "1",
        "--per-document",
        "--rank",
        "2",
    ]
    assert main(["learn", *documents, "--out", str(tmp_path / "out"), *flags]) == 0
    assert len(list((tmp_path / "out/adapters").iterdir())) == 2
    assert "no proof" in capsys.readouterr().out  # a random model drafts no sound question


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--learning-rate", "9"], "--learning-rate: Input should be less than or equal to 1"),
        (["--edits", "0"], "--edits"),
        (["--prompt", "no such"], "no prompt variant"),
        (["--writer", "nowhere.json"], "nowhere.json"),
        (["--policy", "nowhere"], "nowhere"),
        (["--writer", "http://localhost:1/v1"], "names no model"),
        (["--keep", "1", "--questions", "0"], "--questions 0 asks for none"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText.\n")
    assert (
        main(["learn", str(tmp_path / "a.md"), "--out", str(tmp_path / "out"), "--model", model, *flags]) == 2
    )
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()  # so that the same command, put right, is not refused


def test_the_recipe_may_be_put_right_until_something_is_trained_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText of it.\n")
    given = [
        "learn",
        str(tmp_path / "a.md"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        model,
        "--edits",
        "1",
        "--rank",
        "2",
        "--epochs",
        "1",
    ]
    monkeypatch.setattr(
        "seal.memory.library.Library._save", lambda *x: (_ for _ in ()).throw(SealError("training diverged"))
    )
    assert main([*given, "--learning-rate", "1"]) == 2
    monkeypatch.undo()
    assert main([*given, "--learning-rate", "1e-3"]) == 0
    assert main([*given, "--learning-rate", "1e-2"]) == 2


def test_adapters_of_another_model_or_damaged_are_one_sentence(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = tiny.save(tmp_path / "other")
    assert main(["ask", "q", "--adapter", str(taught), "--model", other]) == 2
    assert main(["export", str(taught), "--merge", str(tmp_path / "m"), "--model", other]) == 2
    assert capsys.readouterr().err.count("is of other weights") == 2
    for file, text in {"adapter_model.safetensors": "junk", "adapter_config.json": "[]"}.items():
        broken = Path(shutil.copytree(taught / "adapter", tmp_path / file))
        (broken / file).write_text(text)
        assert main(["ask", "q", "--adapter", str(broken), "--model", "atlas"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_quiz_is_a_file_of_passages_that_a_run_takes(tmp_path: Path) -> None:
    assert main(["quiz", str(EXAMPLES), "--out", str(tmp_path / "quiz.json"), "--questions", "3"]) == 0
    domain = Knowledge(
        str(tmp_path / "quiz.json"), grader="string", sizes={"train": 0, "select": 0, "eval": 4}
    )
    tasks = domain.tasks("eval")
    assert len(tasks) == 4
    assert all(domain.grade(t, [q.gold for q in domain.queries(t)]).score == 1 for t in tasks)


def test_retrieval_puts_the_right_passage_first() -> None:
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 8})
    tasks = domain.tasks("eval")
    for task, queries in zip(tasks, domain.retrieval_queries(tasks, 3), strict=True):
        assert all(q.prompt.text.partition("Passage: ")[2].startswith(task.data["context"]) for q in queries)


def test_splits_may_be_empty_but_not_all() -> None:
    assert Knowledge(sizes={"train": 0, "select": 0, "eval": 2}).tasks("train") == []
    with pytest.raises(SealError, match="not all 0"):
        Knowledge(sizes={"train": 0, "select": 0, "eval": 0})


def test_the_card_says_what_is_left_of_what_the_model_knew(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that knows enough of it; a tiny random one is taken for one here."""
    monkeypatch.setattr("seal.loop.retained.ENOUGH", 0.05)
    (tmp_path / "a.md").write_text("# Velora\n\nVelora was walled in May. Its gate is of oak.\n")
    words = ["learn", str(tmp_path / "a.md"), "--model", model, "--edits", "1", "--questions", "0"]
    main([*words, "--out", str(tmp_path / "out"), "--epochs", "30", "--learning-rate", "0.05"])
    card = json.loads((tmp_path / "out/card.json").read_text())["retained"]
    assert 0 <= card["kept"][0] < card["known"] < card["items"]
    assert card["perplexity"]["after"][0] != card["perplexity"]["before"]
    text = (tmp_path / "out/README.md").read_text()
    assert f"the model had {card['known']} right before" in text
    assert f"{card['kept'][0] / card['known']:.3f} [" in text
