"""The continual experiment: the matrix is what was asked, strategies keep what they say, a kill loses
nothing, an edit can be deleted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seal.cli.main import main
from seal.config import load_config
from seal.lora.adapter import Adapter, compact, join
from seal.lora.files import load_many, save_many
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import ask
from seal.lora.train import Job, train_adapters
from seal.memory.router import Router
from seal.memory.strategies import Memory, strategy
from seal.memory.stream import Continual
from seal.records import Example, Prompt, Recipe, SealError, Task
from seal.report.memory import _kept, matrix, read_released, summarise
from seal.store import Store

CONFIGS = Path(__file__).parents[2] / "configs"
STRATEGIES = ["merge", "replay:0.5+own:0.3", "last:1", "orthogonal", "slao", "gate", "consolidate", "library"]


def flags(model: str, runs: Path, strategies: list[str]) -> list[str]:
    options = {
        "source": "atlas",
        "prompt": "implications",
        "grader": "string",
        "sizes": {"train": 1, "select": 2, "eval": 6},
    }
    return [
        f"--domain.options={json.dumps(options)}",
        "--model.name",
        model,
        "--model.bf16",
        "false",
        "--model.threads",
        "1",
        "--runs",
        str(runs),
        "--write.max_tokens",
        "12",
        "--inner.answer_tokens",
        "3",
        "--inner.recipe.rank",
        "2",
        "--inner.recipe.tokens",
        "400",
        "--continual.sequences",
        "2",
        "--continual.length",
        "3",
        "--continual.known",
        "2",
        f"--continual.strategies={json.dumps(strategies)}",
    ]


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    out = ["--json", str(runs / "out.json"), "--figure", str(runs / "out.png")]
    assert (
        main(["continual", "@", str(CONFIGS / "continual.toml"), *flags(model, runs, STRATEGIES), *out]) == 0
    )
    return runs


def test_every_strategy_gives_a_row_and_a_lower_triangle(whole: Path) -> None:
    summary = json.loads((whole / "out.json").read_text())
    assert [r["setting"] for r in summary["rows"]] == STRATEGIES
    for row in summary["rows"]:
        assert {
            "untouched",
            "diagonal",
            "final",
            "backward_transfer",
            "kept",
            "old_knowledge_loss",
            "silent",
            "seconds",
        } <= set(row)
        values = summary["matrices"][row["setting"]]
        assert [[x is None for x in line] for line in values] == [
            [False, True, True],
            [False, False, True],
            [False] * 3,
        ]
    assert "routed_right" in summary["rows"][-1]
    assert (whole / "out.png").stat().st_size > 10_000


def test_killed_between_steps_it_ends_the_same(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        "continual",
        "@",
        str(CONFIGS / "continual.toml"),
        *flags(model, tmp_path, ["merge", "library", "replay:0.5+own:0.3"]),
    ]
    step = Continual._asked

    failed: set[int] = set()

    def fail(self: Continual, apart: bool, sequences: object, i: int) -> object:
        if i == 1 and len(failed) < 3:
            failed.add(len(failed))
            raise KeyboardInterrupt
        return step(self, apart, sequences, i)  # type: ignore[arg-type]

    monkeypatch.setattr(Continual, "_asked", fail)
    assert [main(given) for _ in range(4)] == [130, 130, 130, 0], "once in each strategy"
    monkeypatch.undo()
    for name in ("merge", "library", "replay-0.5+own-0.3"):
        for i in range(3):
            found, expected = (
                json.loads((runs / f"continual/continual/{name}/step-{i}.json").read_text())
                for runs in (tmp_path, whole)
            )
            assert found.pop("seconds") >= 0 and expected.pop("seconds") >= 0
            assert found == expected


def test_a_sequence_too_long_or_a_strategy_unknown_is_one_sentence(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["continual", "@", str(CONFIGS / "continual.toml"), *flags(model, tmp_path, ["merge"])]
    assert main([*given, "--continual.length", "9"]) == 2
    assert "need 18 held-out tasks" in capsys.readouterr().err
    for name, says in {
        "nothing": "no retention strategy",
        "replay:2": "between 0 and 1",
        "slao:3": "takes no",
        "replay:x": "takes no",
    }.items():
        with pytest.raises(SealError, match=says):
            strategy(name)


def test_the_matrix_has_holes_where_nothing_was_asked() -> None:
    steps = [{"first": 0, "scores": [[0.5]]}, {"first": 1, "scores": [[0.25]]}]
    assert np.array_equal(matrix(steps), np.array([[[0.5, np.nan], [np.nan, 0.25]]]), equal_nan=True)


def test_the_figures_are_those_of_the_matrix() -> None:
    common = {"silent": 0.0, "kl": [0.1], "dropped": 0, "tokens": 10, "seconds": 0.1}
    steps = [
        {"first": 0, "scores": [[0.8], [0.6]], **common},
        {
            "first": 0,
            "scores": [[0.4, 0.9], [0.4, 0.7]],
            "known": [0.9, 0.7],
            "edits": [-1.0, -1.0],
            **common,
        },
    ]
    record = {
        "date": "d",
        "machine": "m",
        "seed": 0,
        "untouched": [[0.1, 0.1], [0.1, 0.1]],
        "baseline": {"known": 0.9, "edits": -1.0},
    }
    row = summarise([record | {"results": [{"strategy": "merge", "steps": steps}]}], "c")["rows"][0]
    assert row["diagonal"]["mean"] == 0.75
    assert row["final"]["mean"] == 0.6
    assert row["backward_transfer"]["mean"] == pytest.approx(-0.3)
    assert row["old_knowledge_loss"]["mean"] == pytest.approx(0.1)
    assert row["kept"]["mean"] == pytest.approx((0.6 - 0.1) / (0.75 - 0.1), abs=1e-4)


def test_rows_replayed_take_their_share_of_the_budget() -> None:
    past = Memory(rows=[tuple(Example(f"old {i} {j}") for j in range(10)) for i in range(3)])
    new, own = tuple(Example(f"new {j}") for j in range(10)), tuple(Example(f"own {j}") for j in range(50))
    rng = random.Random(0)
    assert strategy("merge").rows(past, new, own, rng) == new
    rows = strategy("replay:0.5").rows(past, new, own, rng)
    assert len(rows) == 20 and sum(r.completion.startswith("old") for r in rows) == 10
    rows = strategy("replay:0.5+own:0.2").rows(past, new, own, rng)
    assert [sum(r.completion.startswith(k) for r in rows) for k in ("new", "old", "own")] == [10, 10, 5]
    assert len(strategy("consolidate").rows(past, new, own, rng)) == 40
    rows = strategy("consolidate+own:0.5").rows(past, new, own, rng)
    assert [sum(r.completion.startswith(k) for r in rows) for k in ("new", "old", "own")] == [10, 30, 40]
    assert strategy("replay+slao").weight(4) == 0.5


def changes(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight."""
    return {n: adapter.scale * b @ a for n, (a, b) in adapter.weights.items()}


@pytest.mark.parametrize(
    "name",
    ["merge", "replay:0.5", "own:0.3", "last:1", "orthogonal", "slao", "gate", "consolidate", "library"],
)
def test_what_is_in_force_while_the_next_is_trained_and_what_is_kept(policy: Model, name: str) -> None:
    """All but `library` and `consolidate` train on top of what is there, and keep the sum; none forgets what
    lies beneath."""
    first, second = trained(policy, 2)
    way, memory = strategy(name), Memory([first], [(Example("old"),)])
    recipe = Recipe(rank=3, alpha=6, targets="all-linear", steps=2, tokens=100)
    job = way.job(policy, memory, (Example("new"),), (Example("new"),), recipe, 0)
    apart = name in ("library", "consolidate")
    assert job.beneath is (None if apart else first)
    kept = way.keep(memory, second, 0.5 if not apart else 1.0)
    if name == "library":
        assert kept == [first, second]
        return
    (whole,) = kept
    for module, change in changes(whole).items():
        expected = changes(second)[module] * (1.0 if apart else 0.5) + (
            0 if apart else changes(first)[module]
        )
        torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-4)


def test_orthogonal_trains_b_alone_on_what_is_not_read_yet(policy: Model) -> None:
    (first,) = trained(policy, 1)
    job = strategy("orthogonal").job(
        policy, Memory([first]), (Example("new"),), (), Recipe(rank=3, targets="all-linear", steps=2), 0
    )
    assert job.only_b and job.start is not None
    for name, (a, b) in job.start.weights.items():
        assert (a @ first.weights[name][0].T).abs().max() < 1e-5 and not b.any()


def test_last_layers_are_the_last_alone(policy: Model) -> None:
    job = strategy("last:1").job(
        policy, Memory(), (Example("new"),), (), Recipe(rank=2, targets="all-linear"), 0
    )
    assert job.recipe.last_layers == 1


def test_consolidation_has_the_budget_of_all_edits(policy: Model) -> None:
    """Three edits before and one now: four budgets; own samples beside do not eat into them."""
    memory = Memory([], [(Example("a"), Example("b"))] * 3)
    new = (Example("c"), Example("d"))
    recipe = Recipe(tokens=1000, steps=None)
    rows = strategy("consolidate").rows(memory, new, (), random.Random(0))
    assert strategy("consolidate").job(policy, memory, rows, new, recipe, 0).recipe.tokens == 4000
    more = (*rows, *rows)
    assert strategy("consolidate").job(policy, memory, more, new, recipe, 0).recipe.tokens == 8000


def test_joined_adapters_add_up_by_their_weights(policy: Model) -> None:
    first, second = trained(policy, 2)
    for weight in (1.0, 0.25):
        for module, change in changes(join(first, second, weight)).items():
            torch.testing.assert_close(
                change, changes(first)[module] + weight * changes(second)[module], atol=1e-6, rtol=1e-4
            )
        for module, change in changes(join(None, second, weight)).items():
            torch.testing.assert_close(change, weight * changes(second)[module], atol=1e-6, rtol=1e-4)


def test_the_gate_scales_down_or_drops_what_costs_known_answers(policy: Model) -> None:
    """By probes that the evaluation does not use: full weight where nothing is lost, 0.4 where only that is
    harmless, none at all else."""
    adapters = trained(policy, 4)
    allowed = [1.0, 0.7, 0.4, 0.0]  # the largest harmless weight of each
    asked = []

    def known(found: list[Adapter | None], tasks: object) -> list[float]:
        asked.append(tasks)
        if all(a is None for a in found):
            return [0.9] * len(found)
        scores = []
        for a in found:
            assert a is not None
            place = next(
                i for i, x in enumerate(adapters) if torch.equal(x.weights[NAME][0], a.weights[NAME][0])
            )
            scale = float((a.weights[NAME][1] / adapters[place].weights[NAME][1]).nanmean())
            scores.append(0.9 if scale <= allowed[place] + 1e-3 else 0.85)
        return scores

    NAME = next(iter(adapters[0].weights))
    streams = [SimpleNamespace(memory=Memory()) for _ in adapters]
    fake = SimpleNamespace(_known=known, probes=["probe"])
    assert Continual._gated(fake, streams, adapters, [1.0] * 4) == pytest.approx([1.0, 0.7, 0.4, 0.0])  # type: ignore[arg-type]
    assert all(t == ["probe"] for t in asked)


def test_harm_is_measured_on_other_entities_than_the_gate_and_the_rehearsal_see(
    model: str, tmp_path: Path
) -> None:
    config = load_config(
        CONFIGS / "continual.toml", [*flags(model, tmp_path, ["gate"]), "--continual.rehearsed", "3"]
    )
    found = Continual(config, Store(config))
    ids = [
        {t.id for t in some}
        for some in (found.probes, found.known, found.rehearsed, found.order[0], found.order[1])
    ]
    assert all(ids) and not any(a & b for i, a in enumerate(ids) for b in ids[i + 1 :])


def trained(policy: Model, n: int) -> list:
    recipe = Recipe(rank=3, alpha=6, targets="all-linear", steps=5, learning_rate=1e-2)
    jobs = [Job((Example(f"Passage {i} says {i * 7}."),), recipe, i) for i in range(n)]
    return [t.adapter for t in train_adapters(policy, jobs)]


def router_of(tasks: list[Task], rows: list[tuple[Example, ...]]) -> Router:
    return Router([t.data["title"] for t in tasks], [" ".join(x.completion for x in mine) for mine in rows])


def test_deleting_an_edit_of_a_library_leaves_the_others_answers_unchanged(policy: Model) -> None:
    adapters = trained(policy, 4)
    tasks = [Task(f"t{i}", {"title": f"Passage{i}"}) for i in range(4)]
    rows = [(Example(f"Passage{i}\nPassage{i} says something of its own, number{i}."),) for i in range(4)]
    questions = [Prompt(f"Topic: Passage{i}\nQuestion: what?\nAnswer:") for i in range(4)]

    def answers(keep: list[int]) -> dict[int, str]:
        router = router_of([tasks[i] for i in keep], [rows[i] for i in keep])
        picks = {i: router.pick(questions[i].text) for i in keep}
        assert all(place is not None and keep[place] == i for i, place in picks.items())
        texts = ask(policy, [adapters[i] for i in keep], [[questions[i]] for i in keep], Sampling(12))
        return {i: t[0] for i, t in zip(keep, texts, strict=True)}

    full, less = answers([0, 1, 2, 3]), answers([0, 2, 3])
    assert less == {i: full[i] for i in (0, 2, 3)}
    assert router_of(tasks, rows).pick("Topic: Elsewhere\nQuestion: unheard of?\nAnswer:") is None


def test_adapters_joined_and_made_compact_change_the_weights_the_same(policy: Model, tmp_path: Path) -> None:
    first, *others = trained(policy, 24)
    joined = first
    for other in others:
        joined = join(joined, other, 0.5)
    small = compact(joined)
    assert joined.rank == 72 and small.rank == 32  # the widest module is 32 × 48: no more are needed
    for name, (a, b) in joined.weights.items():
        x, y = small.weights[name]
        torch.testing.assert_close(joined.scale * b @ a, small.scale * y @ x, atol=1e-5, rtol=1e-4)
    save_many([first, small], tmp_path / "two.safetensors")
    for found, expected in zip(load_many(tmp_path / "two.safetensors"), [first, small], strict=True):
        assert (found.rank, found.alpha) == (expected.rank, expected.alpha)
        assert all(
            torch.equal(x, y)
            for n in expected.weights
            for x, y in zip(found.weights[n], expected.weights[n], strict=True)
        )


def test_a_long_stream_asks_everything_only_now_and_then(model: str, tmp_path: Path) -> None:
    given = flags(model, tmp_path, ["merge"])
    config = load_config(
        CONFIGS / "continual.toml",
        [*given, "--continual.sequences", "1", "--continual.length", "5", "--continual.ask_every", "2"],
    )
    steps = Continual(config, Store(config)).run("merge")["steps"]
    assert [s["first"] for s in steps] == [0, 0, 2, 0, 0]


def test_seals_own_result_file_stands_beside(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(K + 1, K), the untouched model first, zeros where nothing was asked."""
    path = tmp_path / "published.json"
    table = [[0.3, 0.3], [0.4, 0.0], [0.2, 0.5]]
    path.write_text(json.dumps({"mean_over_sequences": table, "n_sequences": 4, "n_datapoints": 2}))
    row, values = read_released(path)
    assert values == [[0.4, None], [0.2, 0.5]]
    assert [row[k]["mean"] for k in ("untouched", "diagonal", "final", "backward_transfer")] == [
        0.3,
        0.45,
        0.35,
        -0.2,
    ]
    assert row["gain_by_age"] == [0.15, -0.1] and row["kept"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
    out = tmp_path / "table.json"
    assert main(["report", str(whole / "continual"), "--beside", str(path), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][-1]["setting"] == "published"
    assert "published" in capsys.readouterr().out
    page = (whole / "continual/report.html").read_text()
    assert page.count("<img") == 2 and all(name in page for name in STRATEGIES)
    path.write_text(json.dumps({"mean_over_sequences": [[1.0]], "n_sequences": 1}))
    assert main(["report", str(whole / "continual"), "--beside", str(path)]) == 2
    assert "no result file" in capsys.readouterr().err


def test_the_share_kept_is_uncertain_over_runs_too() -> None:
    rng = np.random.default_rng(0)
    untouched, diagonal = np.full((3, 40), 0.1), 0.5 + rng.normal(0, 0.02, (3, 40))
    steady = _kept(untouched, diagonal, 0.4 + rng.normal(0, 0.02, (3, 40)))
    restless = _kept(untouched, diagonal, np.array([[0.2], [0.4], [0.6]]) + rng.normal(0, 0.02, (3, 40)))
    assert (
        steady
        and restless
        and steady["mean"] == pytest.approx(0.75, abs=0.02) == pytest.approx(restless["mean"], abs=0.02)
    )
    assert steady["high"] - steady["low"] < 0.1 and restless["high"] - restless["low"] > 0.8
    assert _kept(untouched, untouched, untouched) is None


def test_a_dropped_adapter_is_counted_and_another_seed_is_another_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Continual, "_gated", lambda self, sequences, adapters, weights: [0.0, 1.0])
    kls = []
    for seed in ("0", "1"):
        given = [*flags(model, tmp_path / seed, ["gate"]), "--continual.length", "2", "--seed", seed]
        config = load_config(CONFIGS / "continual.toml", given)
        steps = Continual(config, Store(config)).run("gate")["steps"]
        assert [s["dropped"] for s in steps] == [1, 1] and [s["weights"] for s in steps] == [[0.0, 1.0]] * 2
        assert [s["kl"][0] for s in steps] == [0.0, 0.0], "what was dropped changes nothing"
        kls.append([s["kl"][1] for s in steps])
    assert kls[0] != kls[1]


def test_runs_of_one_seed_stand_in_one_table(whole: Path) -> None:
    record = json.loads((whole / "continual/continual.json").read_text())
    halves = [record | {"results": record["results"][:1]}, record | {"results": record["results"][1:]}]
    assert summarise(halves, "c") == summarise([record], "c")
    with pytest.raises(SealError, match="passages or models differ"):
        summarise([record, record | {"untouched": []}], "c")


def test_of_one_long_sequence_passages_are_the_unit() -> None:
    common = {"silent": 0.0, "kl": [0.1], "dropped": 0, "tokens": 10, "seconds": 0.1}
    steps = [
        {"first": 0, "scores": [[0.8]], **common},
        {"first": 0, "scores": [[0.4, 0.9]], "known": [0.9], "edits": [-1.0], **common},
    ]
    record = {
        "date": "d",
        "machine": "m",
        "seed": 0,
        "untouched": [[0.1, 0.1]],
        "baseline": {"known": 0.9, "edits": -1.0},
    }
    row = summarise([record | {"results": [{"strategy": "merge", "steps": steps}]}], "c")["rows"][0]
    assert (
        row["diagonal"]["scores"] == [[0.8, 0.9]]
        and row["diagonal"]["low"] < 0.8
        and row["diagonal"]["high"] > 0.9
    )


def test_where_a_domain_names_nothing_known_the_shipped_questions_are_asked(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them by the gate, the other half to tell what was lost; through the router, where there is one."""
    monkeypatch.setattr("seal.loop.retained.ENOUGH", 0.05)
    rows = [
        {
            "title": f"T{i}",
            "context": f"Number {i} is red.",
            "questions": [{"question": f"Which {i}?", "answer": "red"}],
        }
        for i in range(9)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    options = {
        "source": str(tmp_path / "p.json"),
        "grader": "string",
        "sizes": {"train": 1, "select": 2, "eval": 6},
    }
    words = [*flags(model, tmp_path, ["merge", "gate", "library"]), "--domain.options", json.dumps(options)]
    words += ["--inner.recipe.learning_rate", "0.05", "--json", str(tmp_path / "out.json")]
    assert main(["continual", "@", str(CONFIGS / "continual.toml"), *words]) == 0
    stream = Continual(config := load_config(CONFIGS / "continual.toml", words[:-2]), Store(config))
    assert stream.items and not stream.known
    assert stream.baseline()["known"] == 1.0  # only what the untouched model has right counts
    rows_ = json.loads((tmp_path / "out.json").read_text())["rows"]
    lost = {r["setting"].split(" ")[0]: r["old_knowledge_loss"]["mean"] for r in rows_}
    assert lost["merge"] > 0.1 >= lost["gate"]
