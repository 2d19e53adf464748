"""The seams that capabilities hang on: a test that talks, rows that the model writes itself, a model that is
scripted."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from seal.cli import main
from seal.config import InnerConfig, RunConfig
from seal.domains.base import Domain
from seal.loop.evaluate import Evaluation
from seal.loop.exam import MAX_TURNS
from seal.loop.inner import MAX_SAMPLES, InnerLoop
from seal.loop.outer import run
from seal.loop.pooled import try_pooled
from seal.lora.fake import fake
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import LoraError, ModelSpec, Recipe, Sampling
from seal.records import BadEdit, Edit, Example, Grade, Prompt, Query, SealError, Task, Wanted
from seal.store import Stage, Store

INNER = InnerConfig(
    recipe=Recipe(rank=2, steps=1, targets=("q_proj",)), answer_tokens=24, slots=2, wave=3, reward="accuracy"
)


class Plain(Domain):
    """What is a thing called? Its number."""

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", {"name": f"{split} {i}"}) for i in range(3)]

    def prompt(self, task: Task) -> Prompt:
        return Prompt(f"Write of {task.id}:")

    def parse(self, task: Task, text: str) -> Edit | BadEdit | Wanted:
        return Edit(text, (Example(text),)) if text.strip() else BadEdit(text, "empty")

    def queries(self, task: Task) -> Sequence[Query]:
        return [Query(Prompt(f"Which one is {task.id}? "), task.data["name"])]

    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        score = float(answers[0] == task.data["name"])
        return Grade(score, (score,), ("all",))


class Talking(Plain):
    """The second question is made of the first answer."""

    def test(self, task: Task) -> Generator[Sequence[Query], Sequence[str], Grade | None]:
        (name,) = yield self.queries(task)
        (sure,) = yield [Query(Prompt(f"Are you sure that it is {name}? "), "yes")]
        scores = (float(name == task.data["name"]), float(sure == "yes"))
        return Grade(sum(scores) / 2, scores, ("name", "sure"))


class Endless(Plain):
    def test(self, task: Task) -> Generator[Sequence[Query], Sequence[str], Grade | None]:
        while True:
            yield self.queries(task)


class Asking(Plain):
    """An edit names what the model is to write of, and its rows are what it then writes."""

    def parse(self, task: Task, text: str) -> Edit | BadEdit | Wanted:
        return Wanted(
            text, (Prompt(f"Of {task.id}: "), Prompt("More: ")), n=len(text), sampling=Sampling(8, 1.0)
        )

    def compose(self, task: Task, edit: Wanted, samples: Sequence[Sequence[str]]) -> Edit | BadEdit:
        rows = [x for row in samples for x in row if x]
        return (
            Edit(edit.text, tuple(map(Example, rows))) if rows else BadEdit(edit.text, "nothing was written")
        )


def script(prompt: str, adapted: bool) -> str:
    if "sure" in prompt:
        return "yes" if adapted else "no"
    if prompt.startswith("Which"):
        name = prompt.split("is ")[1].split("?", maxsplit=1)[0].replace("-", " ")
        return name if adapted else "nobody"
    return f"written after {prompt[-6:]}"


@pytest.fixture
def scripted() -> Model:
    return fake(script)


def tried(
    domain: Domain, model: Model, texts: Sequence[str], folder: Path, inner: InnerConfig = INNER
) -> list[object]:
    tasks = domain.tasks("train")[:2]
    return list(InnerLoop(domain, inner).try_edits(model, tasks, [texts] * 2, Stage(folder), 0))


def test_the_second_question_hears_the_first_answer(scripted: Model, tmp_path: Path) -> None:
    found = tried(Talking(), scripted, ["a", "", "b"], tmp_path)
    for a in found:
        before = (0.0, 0.0)
        if a.status == "bad edit":  # type: ignore[attr-defined]
            assert a.scores == before  # type: ignore[attr-defined]
            continue
        name = a.task.replace("-", " ")  # type: ignore[attr-defined]
        assert a.answers == (name, "yes") and a.scores == (1.0, 1.0) and a.kinds == ("name", "sure")  # type: ignore[attr-defined]
        assert a.before == 0.0 and a.reward == 1.0 and len(a.likelihoods) == 2  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "before.json").read_text()) == [["nobody", "no"]] * 2
    again = tried(Talking(), fake(lambda *_: "asked again"), ["a", "", "b"], tmp_path)
    assert again == found, "what was answered before is on disk, and is graded as it was"


def test_tests_of_different_lengths_go_side_by_side(scripted: Model) -> None:
    class Some(Talking):
        def test(self, task: Task) -> Generator[Sequence[Query], Sequence[str], Grade | None]:
            return super().test(task) if task.id.endswith("1") else Plain.test(self, task)

    inner = InnerLoop(Some(), INNER)
    tests = inner.tested(scripted, [None] * 3, Some().tasks("train"))
    assert [len(t.answers) for t in tests] == [1, 2, 1] and [t.grade is None for t in tests] == [
        True,
        False,
        True,
    ]


def test_pooled_edits_are_asked_turn_by_turn_too(scripted: Model, tmp_path: Path) -> None:
    tasks = Talking().tasks("eval")
    found = try_pooled(InnerLoop(Talking(), INNER), scripted, tasks, [["a"]] * 3, Stage(tmp_path), 0)
    assert [a.answers for a in found] == [(t.data["name"], "yes") for t in tasks]


def test_a_test_without_end_is_one_sentence(scripted: Model, tmp_path: Path) -> None:
    with pytest.raises(SealError, match=rf"'train-0' goes on after {MAX_TURNS} turns"):
        tried(Endless(), scripted, ["a"], tmp_path)


def test_rows_that_the_model_writes_are_the_ones_trained_on(
    scripted: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    from seal.loop import inner as module

    plain = module.train_adapters

    def train(model: Model, jobs: Sequence[object], *more: object) -> object:
        seen.extend(tuple(e.completion for e in j.examples) for j in jobs)  # type: ignore[attr-defined]
        return plain(model, jobs, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_adapters", train)
    two = INNER.model_copy(update={"seeds": 2})
    found = tried(Asking(), scripted, ["xx", "y", ""], tmp_path, two)
    assert [len(rows) for rows in seen if rows] == [4, 4, 2, 2] * 2, "prompts × n, under both training seeds"
    assert all(x.startswith("written") for rows in seen for x in rows)
    assert [a.status for a in found] == ["ok"] * 4 + ["bad edit"] * 2 + ["ok"] * 4 + ["bad edit"] * 2  # type: ignore[attr-defined]
    assert "0 samples" in found[4].reason  # type: ignore[attr-defined]


def test_what_is_written_depends_on_the_edit_alone(tmp_path: Path) -> None:
    model = load_model("atlas")
    wave = [INNER.model_copy(update={"wave": n}) for n in (1, 6)]
    first, second = (tried(Asking(), model, ["xx", "y"], tmp_path / str(i), w) for i, w in enumerate(wave))
    assert [(a.rows, a.tokens) for a in first] == [(a.rows, a.tokens) for a in second]  # type: ignore[attr-defined]


def test_no_edit_may_want_too_much(scripted: Model, tmp_path: Path) -> None:
    (one, _) = tried(Asking(), scripted, ["x" * MAX_SAMPLES], tmp_path)
    assert one.status == "bad edit" and f"1 to {MAX_SAMPLES}" in one.reason  # type: ignore[attr-defined]


def test_a_domain_without_compose_is_told_so(scripted: Model, tmp_path: Path) -> None:
    class Half(Asking):
        compose = Domain.compose

    with pytest.raises(SealError, match="no method compose"):
        tried(Half(), scripted, ["x"], tmp_path)


FILE = """
from tests.loop.test_seams import Plain, script

def reply(prompt, adapted):
    return script(prompt, adapted)
"""


def test_a_domain_runs_without_weights(tmp_path: Path) -> None:
    """The whole: two rounds, a control's worth of writing, the table; and not a weight of a real model."""
    (tmp_path / "say.py").write_text(FILE)
    data = {
        "runs": str(tmp_path), "rounds": 2, "tasks_per_round": 2, "edits_per_task": 2, "model": {"name": f"fake:{tmp_path / 'say.py'}"},
        "domain": {"name": f"{tmp_path / 'say.py'}:Plain"}, "inner": INNER.model_dump(), "outer": {"recipe": {"steps": 1, "rank": 2}},
        "write": {"max_tokens": 40},
    }  # fmt: skip
    config = RunConfig.model_validate(data)
    store = Store(config)
    last = run(config, store)
    assert last == config.model and (store.folder / "seal/round-2/policy/adapter_config.json").exists()
    with Evaluation(config, store, "eval") as evaluation:
        scores = {r.setting: sum(r.scores) / len(r.scores) for r in evaluation.table()}
    assert scores["base"] == 0.0 and scores["no RL"] == scores["SEAL round 2"] == 1.0
    shown = [
        "try",
        "--model.name",
        data["model"]["name"],
        "--domain.name",
        data["domain"]["name"],
        "--inner.recipe.steps",
        "1",
    ]  # type: ignore[index]
    assert main(shown) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file"),
        ("x = 1", "no function reply"),
        ("1 / 0", "ZeroDivisionError"),
        ("def reply(p, a): return 1", "not text"),
    ],
)
def test_a_script_that_cannot_be_used_is_one_sentence(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "say.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LoraError, match=says):
        tried(Plain(), load_model(ModelSpec(name=f"fake:{path}")), ["a"], tmp_path / "x")


def test_the_verbs_do_what_the_commands_do(tmp_path: Path) -> None:
    import seal

    (tmp_path / "say.py").write_text(FILE)
    flags = {
        "--runs": str(tmp_path), "--rounds": "1", "--edits_per_task": "2", "--model.name": f"fake:{tmp_path / 'say.py'}",
        "--domain.name": f"{tmp_path / 'say.py'}:Plain", "--outer.recipe.steps": "1", "--inner.recipe.steps": "1",
    }  # fmt: skip
    config = seal.load_config(None, [f"{k}={v}" for k, v in flags.items()])
    folder = seal.train(config, controls=["random"])
    results = seal.evaluate(config)
    assert folder == config.folder and {r.setting for r in results} >= {
        "no RL",
        "SEAL round 1",
        "random control",
    }
    assert results == seal.evaluate(config), "read from the run folder"
    page = seal.report(folder)
    assert page == folder / "report.html" and "SEAL round 1" in page.read_text()
    with pytest.raises(SealError, match="there is no control 'luck'"):
        seal.train(config, controls=["luck"])
    with pytest.raises(SealError, match="--edits"):
        seal.teach("x.md", tmp_path / "out", edits=0)
    assert seal.teach.__name__ == "seal.teach" and "ask" in seal.__all__
