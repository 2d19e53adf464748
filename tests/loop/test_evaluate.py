"""The table of writers: whose edits, tried on whose weights, by which recipe, under which seed. One change at
a time, or a row says nothing.

Models are names here, and whoever would write, train or ask is a recorder: what each row of the table is made
of is read off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from seal.config import RunConfig
from seal.domains.knowledge import Knowledge
from seal.loop import evaluate
from seal.loop.evaluate import Evaluation
from seal.loop.results import from_attempts, run_record
from seal.lora.records import ModelSpec
from seal.records import Attempt, Grade, SealError, Setting, Task, seal_round, settings_of
from seal.report.tables import load_runs, summarise
from seal.store import Store, write_whole

ROUNDS = 3


class Named:
    """A model that is nothing but its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Named:
        return self

    def __exit__(self, *_: object) -> None: ...

    release = __exit__


class Recorder:
    """What was asked for, by stage: who wrote and under which seed; who was adapted, by which recipe and
    seed, on which tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrote: dict[str, tuple[str, object]] = {}
        self.tried: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, str] = {}
        self.shown: list[str] = []
        recorder = self

        class Loop:
            def __init__(self, domain: Any, config: Any, workers: Any = None) -> None:
                self.config = config

            def before(self, model: Any, tasks: Sequence[Task], stage: Any) -> dict[str, Grade]:
                recorder.asked[stage.folder.name] = model.name
                stage.once("before", lambda: [["x"] * 5 for _ in tasks])
                return {t.id: Grade(0.25, (0.25,), ("all",)) for t in tasks}

            def try_edits(
                self, model: Any, tasks: Any, texts: Any, stage: Any, seed: object
            ) -> list[Attempt]:
                return recorder.try_edits(model, self.config, tasks, texts, stage, seed)

        monkeypatch.setattr(evaluate, "InnerLoop", Loop)
        for name in ("write_edits", "ask", "load_model"):
            monkeypatch.setattr(evaluate, name, getattr(self, name))
        monkeypatch.setattr(evaluate, "fits", lambda *_: True)

    def load_model(self, spec: ModelSpec, rank: int, loaded: object = None) -> Named:
        path = Path(spec.name)
        return Named(f"{path.parent.parent.name}/{path.parent.name}" if path.name == "policy" else "base")

    def write_edits(
        self, policy: Any, domain: Any, tasks: Sequence[Task], n: int, config: Any, seed: object, stage: Any
    ) -> list[list[str]]:
        self.wrote[stage.folder.name] = (policy.name, seed)
        return [[f"{policy.name} writes of {t.id}, {i}" for i in range(n)] for t in tasks]

    def ask(self, policy: Any, adapters: Any, prompts: Sequence[Any], sampling: Any) -> list[list[str]]:
        self.shown.append(policy.name)
        return [["x" for _ in row] for row in prompts]

    def try_edits(
        self,
        policy: Any,
        inner: Any,
        tasks: Sequence[Task],
        texts: Sequence[Sequence[str]],
        stage: Any,
        seed: object,
    ) -> list[Attempt]:
        self.tried[stage.folder.name] = {
            "on": policy.name,
            "recipe": inner.recipe,
            "seed": seed,
            "tasks": [t.id for t in tasks],
            "texts": [list(t) for t in texts],
        }
        score = 0.5 if stage.folder.name == "3-epochs" else 0.1
        return [
            Attempt(t.id, e, 1, x, "ok", "", score, 0.0, score, ("a",), (score,), ("all",))
            for t, row in zip(tasks, texts, strict=True)
            for e, x in enumerate(row)
        ]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, RunConfig, list[Any]]:
    recorder = Recorder(monkeypatch)
    data = {
        "runs": str(tmp_path), "rounds": ROUNDS, "seed": 7,
        "domain": {"options": {"sizes": {"train": 5, "select": 4, "eval": 3}}},
        "inner": {"recipe": {"tokens": 700}},
        "eval": {"edits_per_task": 2, "siblings": 3, "saturation_epochs": [3, 9], "saturation_tasks": 2},
    }  # fmt: skip
    config = RunConfig.model_validate(data)
    store = Store(config)
    for branch in ("control", "control-worst"):
        (store.folder / f"{branch}/round-{ROUNDS}/policy").mkdir(parents=True)
    results = Evaluation(config, store, "eval").table()
    return recorder, config, results


def test_every_row_is_of_the_policy_that_it_names(table: Any) -> None:
    recorder, _, results = table
    writers = {f"SEAL-round-{r}": f"seal/round-{r}" for r in range(1, ROUNDS + 1)}
    writers |= {
        "no-RL": "base",
        "random-control": f"control/round-{ROUNDS}",
        "worst-control": f"control-worst/round-{ROUNDS}",
    }
    assert {name: who for name, (who, _) in recorder.wrote.items()} == writers
    for name, who in writers.items():
        assert recorder.tried[name]["on"] == who, "as in the paper, a policy is adapted by its own edits"
        assert all(t.startswith(f"{who} writes") for row in recorder.tried[name]["texts"] for t in row)
    assert {r.setting for r in results} >= {
        "base",
        "no RL",
        "SEAL round 3",
        "SEAL edits on base",
        "SEAL weights, no edit",
    }


def test_every_policy_writes_and_is_tried_under_the_same_draws(table: Any) -> None:
    recorder, _, _ = table
    assert len({seed for _, seed in recorder.wrote.values()}) == 1
    rows = [v for k, v in recorder.tried.items() if not k.endswith("-epochs") or k == "passage-10-epochs"]
    assert len({v["seed"] for v in rows}) == 1 and len(rows) >= 10
    assert all(v["tasks"] == ["eval-0", "eval-1", "eval-2"] for v in rows)


def test_two_edits_a_task_are_tried_and_the_third_only_describes(table: Any) -> None:
    recorder, _, _ = table
    assert all(
        len(row) == 2
        for name in ("no-RL", "SEAL-round-3", "SEAL-edits-on-base")
        for row in recorder.tried[name]["texts"]
    )


def test_the_last_policys_edits_are_tried_on_the_base_and_its_weights_without_any(table: Any) -> None:
    recorder, _, _ = table
    on_base = recorder.tried["SEAL-edits-on-base"]
    assert on_base["on"] == "base" and on_base["texts"] == recorder.tried[f"SEAL-round-{ROUNDS}"]["texts"]
    assert (
        recorder.asked["SEAL-weights-no-edit"] == f"seal/round-{ROUNDS}" and recorder.asked["no-RL"] == "base"
    )


def test_baselines_are_of_the_untouched_model_under_their_own_budgets(table: Any) -> None:
    recorder, config, _ = table
    recipes = {name: v["recipe"] for name, v in recorder.tried.items()}
    assert {name for name, v in recorder.tried.items() if v["on"] == "base"} >= {
        "passage-10-epochs",
        "oracle",
        "no-RL",
    }
    ten, matched, saturated = (recipes[f"passage-{x}"] for x in ("10-epochs", "matched-tokens", "saturation"))
    assert (ten.epochs, ten.tokens, ten.steps) == (10, None, None)
    assert matched.tokens == 700, "the budget that every edit has"
    assert (saturated.epochs, saturated.tokens, saturated.steps) == (3, None, None), (
        "the length that did best on selection tasks"
    )
    others = [recipes[n] for n in ("no-RL", "oracle", "SEAL-round-3", "random-control", "SEAL-edits-on-base")]
    assert all(r == config.inner.recipe for r in others)
    assert set(recorder.shown) == {"base"}


def test_how_long_to_train_on_the_passage_is_chosen_on_selection_tasks(table: Any) -> None:
    recorder, _, _ = table
    for epochs in (3, 9):
        found = recorder.tried[f"{epochs}-epochs"]
        assert (
            found["tasks"] == ["select-0", "select-1"]
            and found["recipe"].epochs == epochs
            and found["on"] == "base"
        )


def test_adapters_on_the_base_mean_the_base_for_every_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    sizes = {"options": {"sizes": {"train": 2, "select": 1, "eval": 1}}}
    config = RunConfig.model_validate(
        {"runs": str(tmp_path), "rounds": 2, "inner": {"start": "base"}, "domain": sizes}
    )
    store = Store(config)
    (store.folder / "control/round-2/policy").mkdir(parents=True)
    Evaluation(config, store, "eval").table()
    assert {v["on"] for v in recorder.tried.values()} == {"base"}
    assert recorder.wrote["SEAL-round-2"][0] == "seal/round-2" and "SEAL-edits-on-base" not in recorder.tried


# ---------------------------------------------------------------------------------------------------- figures


def attempts(*scores: float, task: str = "a", status: str = "ok", seed: int = 1) -> list[Attempt]:
    kinds = ("stated", "derived")
    return [
        Attempt(task, e, seed, "x", status, "", s, 0.0, s, ("", "b"), (s, s), kinds, silent=0.5, tokens=10)  # type: ignore[arg-type]
        for e, s in enumerate(scores)
    ]


X = Setting("x", "x", "baseline")
TASKS = [Task("a", {}), Task("b", {})]


def test_a_tasks_score_is_the_mean_over_its_edits_and_seeds() -> None:
    rows = [*attempts(0.2, 0.6), *attempts(0.4, 0.0, seed=2), *attempts(1.0, task="b")]
    found = from_attempts(X, TASKS, rows)
    assert found.scores == pytest.approx([0.3, 1.0]) and found.kinds["stated"] == pytest.approx([0.3, 1.0])
    assert found.n_questions == 4, "two of each task, however often they are asked"
    assert found.silent == 0.5 and found.tokens == 10


def test_ungraded_attempts_are_left_out_and_bad_edits_are_not() -> None:
    ungraded = [Attempt("a", 5, 1, "x", "ungraded", "", None, 0.0, 0.9)]
    bad = [
        Attempt("b", 0, 1, "x", "bad edit", "", 0.0, 0.5, 0.5, scores=(0.5, 0.5), kinds=("stated", "derived"))
    ]
    found = from_attempts(X, TASKS, [*attempts(0.2), *ungraded, *bad, *attempts(0.9, task="b")])
    assert found.scores == pytest.approx([0.2, 0.7]) and found.bad == pytest.approx(1 / 3)
    assert found.if_trained == pytest.approx((0.2 + 0.9) / 2)
    with pytest.raises(SealError, match="every edit of the task b is ungraded"):
        from_attempts(X, TASKS, [*attempts(0.2), *ungraded])


def test_a_kind_that_a_task_does_not_ask_is_no_score_of_it() -> None:
    other = [Attempt("b", 0, 1, "x", "ok", "", 1.0, 0.0, 1.0, ("c",), (1.0,), ("stated",))]
    found = from_attempts(X, TASKS, [*attempts(0.2), *other])
    assert found.kinds == {"derived": [0.2, None], "stated": [0.2, 1.0]}


def test_the_table_says_what_its_scores_say(tmp_path: Path) -> None:
    """Means, signs, the last round and the paired differences, read off made-up scores; and all of it can be
    computed from what is kept."""
    config = RunConfig(rounds=3, domain={"options": {"sizes": {"train": 1, "select": 1, "eval": 4}}})  # type: ignore[arg-type]
    level = {
        "base": 0.0,
        "passage, matched tokens": 0.2,
        "no RL": 0.3,
        "random control": 0.4,
        "SEAL round 1": 0.35,
        "SEAL round 3": 0.8,
    }
    noise = (0.0, 0.1, -0.1, 0.05)
    results = [
        evaluate.Result(n, [max(0.0, x + e) for e in noise], {"all": [x, None, x, x]}, 20, 0.1, 5.0, 1.0)
        for n, x in level.items()
    ]
    records = [run_record(config, results, list("abcd"), list("ggxy"), 1.0) | {"seed": s} for s in (0, 1)]
    summary = summarise(json.loads(json.dumps(records)), "command")
    rows = {r["setting"]: r for r in summary["rows"]}
    assert (
        rows["no RL"]["accuracy"] == pytest.approx(0.3125, abs=1e-4)
        and rows["no RL"]["low"] < 0.3 < rows["no RL"]["high"]
    )
    assert rows["no RL"]["kinds"]["all"]["mean"] == 0.3
    gaps = {(d["a"], d["b"]): d for d in summary["differences"]}
    assert gaps["SEAL", "no RL"]["mean"] == pytest.approx(0.5, abs=1e-4), (
        "the last round against no RL, not the other way round"
    )
    assert gaps["SEAL", "random control"]["mean"] == pytest.approx(0.4, abs=1e-4)
    assert gaps["no RL", "passage, matched tokens"]["mean"] == pytest.approx(0.1, abs=1e-4)
    assert gaps["SEAL", "no RL"]["per_seed"] == pytest.approx([0.5, 0.5])
    assert rows["no RL"]["kind scores"] == {"all": [[0.3, None, 0.3, 0.3]] * 2}
    assert summary["groups"] == list("ggxy") and rows["no RL"]["scores"] == [[0.3, 0.4, 0.2, 0.35]] * 2


def test_tasks_of_a_title_or_a_family_are_a_group() -> None:
    domain = Knowledge(sizes={"train": 2, "select": 1, "eval": 1})
    one, other = domain.tasks("train")
    assert domain.group(one) == one.data["title"] != domain.group(other)


def test_runs_on_other_tasks_are_not_seeds_of_one_experiment(tmp_path: Path) -> None:
    config = RunConfig(rounds=0, domain={"options": {"sizes": {"train": 1, "select": 1, "eval": 2}}})  # type: ignore[arg-type]
    results = [evaluate.Result("base", [0.1, 0.2], {}, 2, 0.0, 0.0, 0.0)]
    for name, tasks in (("a", ["x", "y"]), ("b", ["x", "y"]), ("c", ["x", "z"])):
        write_whole(
            tmp_path / name / "results.json", json.dumps(run_record(config, results, tasks, tasks, 1.0))
        )
    assert len(load_runs([tmp_path / "a", tmp_path / "b"])) == 2
    with pytest.raises(SealError, match="their settings or their tasks differ"):
        load_runs([tmp_path / "a", tmp_path / "c"])


def test_a_run_of_an_earlier_version_stands_beside_a_new_one(tmp_path: Path) -> None:
    """It named no groups, and its scores by kind leave out the tasks that have none of it."""
    config = RunConfig(rounds=0, domain={"options": {"sizes": {"train": 1, "select": 1, "eval": 3}}})  # type: ignore[arg-type]
    results = [evaluate.Result("base", [0.1, 0.2, 0.3], {"all": [0.1, None, 0.3]}, 2, 0.0, 0.0, 0.0)]
    new = json.loads(json.dumps(run_record(config, results, list("abc"), list("abc"), 1.0)))
    old = json.loads(json.dumps(new)) | {"seed": 1}
    del old["groups"], old["settings"][0]["cut"]
    old["settings"][0]["kinds"] = {"all": [0.2, 0.4]}
    for records in ([old], [old, old], [new, old], [old, new]):
        row = summarise(records, "c")["rows"][0]
        assert row["kinds"]["all"]["mean"] == pytest.approx(
            sum(0.2 if r is new else 0.3 for r in records) / len(records)
        )
    old["settings"][0]["kinds"] = {"all": [0.2]}
    with pytest.raises(SealError, match="same kinds of questions"):
        summarise([new, old], "c")


def test_every_row_has_one_folder_and_one_name_as_they_always_were() -> None:
    known = settings_of(12)
    assert len({s.key for s in known.values()}) == len(known) == 12 + 12 + 3
    assert all(s.key == s.label.replace(", ", "-").replace(" ", "-") for s in known.values())
    assert known["SEAL round 11"] == seal_round(11) and known["worst control"].kind == "control"
