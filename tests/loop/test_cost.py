"""What a run is reckoned to cost, against what it does."""

from __future__ import annotations

import io
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from seal.cli.doctor import examine
from seal.cli.main import main
from seal.config import RunConfig, load_config
from seal.loop.cost import Cost, Work, flops_of, measured, reckon, short, span
from seal.loop.verbs import evaluate, train
from seal.lora.adapter import init_adapter, target_modules
from seal.lora.hardware import Shape, product_rate
from seal.lora.load import load_model
from seal.lora.records import ModelSpec, Recipe
from seal.machine import EXTRAS, missing
from seal.store import claim
from tests import tiny

ROOT = Path(__file__).parents[2]


def flags(model: str, tmp_path: Path, *more: str) -> list[str]:
    sizes = json.dumps({"source": "atlas", "sizes": {"train": 6, "select": 2, "eval": 4}})
    return [
        "--name", "run", "--runs", str(tmp_path), "--rounds", "2", "--tasks_per_round", "3", "--edits_per_task", "2",
        "--model.name", model, "--domain.options", sizes, "--write.max_tokens", "16", "--inner.answer_tokens", "4",
        "--inner.recipe.rank", "4", "--inner.recipe.tokens", "200", "--outer.recipe.rank", "4",
        "--eval.edits_per_task", "1", "--eval.siblings", "2", "--eval.saturation_epochs", "[1, 2]", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more", [[], ["--inner.start", "base", "--inner.seeds", "2"], ["--eval.pool", "lora"]]
)
def test_inner_loops_are_reckoned_to_the_last_one(model: str, tmp_path: Path, more: list[str]) -> None:
    """And tokens, where the recipe fixes them, and disk roughly."""
    config = load_config(None, flags(model, tmp_path, *more))
    before = reckon(config, "demo", ["random", "worst"])
    assert before is not None
    folder = train(config, ["random", "worst"])
    evaluate(config)
    after = measured(folder, 1.0, "cpu")
    bad = sum(
        json.loads(x)["status"] == "bad edit"
        for path in folder.rglob("attempts.jsonl")
        for x in path.read_text().splitlines()
    )
    if "--eval.pool" in more:  # one finetune a writer there, and a row for every task
        assert before.loops < after.loops
    else:
        assert before.loops == after.loops
        assert after.trained <= 1.5 * before.trained and (bad or before.trained <= 3 * after.trained)
    assert 0.3 < before.disk / after.disk < 3
    assert min(before.flops, before.seconds, before.memory, before.read, before.written) > 0


def test_a_model_is_weighed_by_its_config(model: str) -> None:
    shape, loaded = Shape(ModelSpec(name=model)), load_model(model)
    linear = [m for m in loaded.model.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.weights == sum(m.weight.numel() for m in linear)
    recipe = Recipe(rank=4, targets="all-linear")
    adapter = init_adapter(target_modules(loaded.model, "all-linear"), recipe, 0)
    assert shape.adapter_weights(recipe) == sum(a.numel() + b.numel() for a, b in adapter.weights.values())
    assert flops_of(shape, Work(trained=3, read=5, written=7)) == {
        "trained": 12.0 * shape.weights, "read": 10.0 * shape.weights, "written": 14.0 * shape.weights,
    }  # fmt: skip
    recipe = Recipe(rank=8)
    assert shape.memory(recipe, 8, 512, False) > shape.memory(recipe, 1, 512, False) > 4 * shape.weights


def test_a_dry_run_says_what_it_costs_and_does_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "eval", "continual", "demo"):
        assert main([command, *flags(model, tmp_path), "--dry-run"]) == 0
        out, err = capsys.readouterr()
        assert RunConfig.model_validate(json.loads(out)).rounds == 2
        assert re.search(r"seal: reckoned [\d,]+ inner loops; tokens: .* FLOP|FLOP", err), err
    assert not (tmp_path / "run").exists()
    document = tmp_path / "d.md"
    document.write_text("# Velora\n\nVelora was walled in May.\n")
    words = ["learn", str(document), "--model", model, "--out", str(tmp_path / "taught"), "--dry-run"]
    assert main(words) == 0 and "seal: reckoned 1 inner loops" in capsys.readouterr().out
    assert not (tmp_path / "taught").exists()


def test_a_model_that_is_not_at_hand_does_not_spoil_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags(str(tmp_path / "none"), tmp_path), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rounds"] == 2 and "cannot be reckoned" in err and err.count("\n") == 1


def test_at_its_end_a_run_says_what_it_took_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags(model, tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "seal: reckoned 12 inner loops" in err and "seal: it took  12 inner loops" in err
    assert main(["train", *flags(model, tmp_path)]) == 0
    assert "it took" not in capsys.readouterr().err, "of a run that was gone on with there is nothing to say"


def test_figures_are_for_people() -> None:
    assert [short(n) for n in (7, 1234, 123456, 1.5e9)] == ["7", "1.2 k", "123 k", "1.5 G"]
    assert short(2.5e6, "B") == "2.5 MB"
    assert [span(s) for s in (5, 300, 7200)] == ["5 s", "5 min", "2.0 h"]
    assert all(
        len(line) < 110
        for line in Cost(10, 10**9, 10**9, 10**9, 1e20, 1e6, 10**11, 10**12).lines("seal: reckoned")
    )


def test_the_doctor_names_what_is_here_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "ray", (("no_such_module",), "many machines"))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines] and len(lines) == len(set(lines))
    text = "\n".join(lines)
    assert torch.__version__ in text and f"Python {sys.version.split()[0]}" in text
    assert re.search(r"products of matrices: float32 [\d,]+ GFLOP/s, bfloat16 [\d,]+ GFLOP/s", text)
    assert "missing (no_such_module): pip install 'seal-lm[ray]'" in text
    assert examine(Path("/"))[0] == lines[0]


def test_the_doctor_knows_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "bench"}
    for extra in EXTRAS:
        assert len(EXTRAS[extra][0]) == len(extras[extra]), "a module for each package"
        assert missing(extra) == [] or extra in ("4bit", "hub"), "what the tests need is installed"


def test_a_rate_is_a_rate_and_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    assert product_rate("cpu", torch.float32, 1) > 1e8
    assert torch.get_num_threads() == before
    assert tiny.policy().device.type == "cpu"


def test_every_command_that_takes_long_compares_at_its_end(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is taught from standard input, which can be read only once."""

    def told() -> bool:
        err = capsys.readouterr().err
        return "seal: reckoned" in err and "seal: it took" in err

    assert main(["train", *flags(model, tmp_path)]) == 0 and told()
    assert main(["eval", *flags(model, tmp_path)]) == 0 and told()
    more = ["--continual.sequences", "1", "--continual.length", "2", "--continual.known", "1"]
    assert main(["continual", *flags(model, tmp_path, *more), "--name", "stream"]) == 0 and told()
    text = io.TextIOWrapper(io.BytesIO(b"# Velora\n\nVelora was walled in May.\n"))
    monkeypatch.setattr("sys.stdin", text)
    words = [
        "learn",
        "-",
        "--model",
        model,
        "--out",
        str(tmp_path / "taught"),
        "--edits",
        "1",
        "--questions",
        "0",
    ]
    assert main([*words, "--epochs", "1"]) in (0, 1) and told()


def test_a_dry_run_takes_no_lock_and_writes_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, flags(model, tmp_path))
    train(config)
    before = {p: p.stat().st_mtime_ns for p in config.folder.rglob("*")}
    with claim(config.folder):  # as by a run that is at work
        assert main(["eval", *flags(model, tmp_path), "--dry-run"]) == 0
    assert "seal: reckoned" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in config.folder.rglob("*") if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
