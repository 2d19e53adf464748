"""What a round leaves behind: a stack of adapters over weights that nobody copies; and what is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seal.cli.main import main
from seal.config import RunConfig
from seal.loop.verbs import evaluate, train
from seal.lora.load import load_model
from seal.store import Store

IDS = torch.randint(2, 98, (1, 20), generator=torch.Generator().manual_seed(0))


def config(model: str, tmp_path: Path, **more: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "run", "runs": str(tmp_path), "rounds": 2, "tasks_per_round": 2, "edits_per_task": 2,
        "model": {"name": model}, "write": {"max_tokens": 16},
        "domain": {"options": {"source": "atlas", "sizes": {"train": 3, "select": 1, "eval": 2}}},
        "inner": {"recipe": {"rank": 2, "steps": 1}, "answer_tokens": 4},
        "outer": {"recipe": {"rank": 4, "targets": "all-linear", "steps": 3, "learning_rate": 1e-2}},
        "eval": {"edits_per_task": 1, "siblings": 1, "saturation_epochs": [1]},
    }  # fmt: skip
    for key, value in more.items():
        data[key] = data.get(key, {}) | value if isinstance(value, dict) else value
    return RunConfig.model_validate(data)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(input_ids=IDS).logits  # type: ignore[no-any-return]


def test_a_stack_is_kept_at_a_rank_where_that_is_asked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, small = config(model, tmp_path / "a"), config(model, tmp_path / "b", outer={"compress": 6})
    train(whole)
    assert "compressed" not in capsys.readouterr().err
    train(small)
    assert "compressed, which lost" in capsys.readouterr().err
    stacks = {c.runs: load_model(Store(c).policy("seal", 2)).stack for c in (whole, small)}
    assert [s.rank for s in stacks.values() if s] == [8, 6]
    first, second = (json.loads((small.folder / f"seal/round-{r}/outer.json").read_text()) for r in (1, 2))
    assert "lost" not in first and 0 < second["lost"] < 1


def test_weights_are_loaded_once_for_a_whole_table(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(model, tmp_path, inner={"start": "base"})
    train(settings, ["random"])
    loaded = []
    whole = AutoModelForCausalLM.from_pretrained

    def counted(*args: Any, **options: Any) -> Any:
        loaded.append(args)
        return whole(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    evaluate(settings)
    assert len(loaded) == 1, "three policies and the base"


def test_a_round_saves_its_adapters_alone(model: str, tmp_path: Path) -> None:
    settings = config(model, tmp_path)
    train(settings)
    for r in (1, 2):
        files = {p.name for p in (settings.folder / f"seal/round-{r}/policy").iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors"}


def test_whole_weights_of_an_earlier_version_are_read_and_gone_on_with(model: str, tmp_path: Path) -> None:
    settings = config(model, tmp_path)
    train(settings)
    one = load_model(Store(settings).policy("seal", 1))
    folder = settings.folder / "seal/round-1/policy"
    before = logits(load_model(Store(settings).policy("seal", 2)))
    shutil.rmtree(folder)
    folder.mkdir()
    one.save(folder)  # as rounds did
    shutil.rmtree(settings.folder / "seal/round-2")
    train(settings)
    spec = Store(settings).policy("seal", 2)
    assert spec.name == str(folder) and spec.adapter == str(settings.folder / "seal/round-2/policy")
    two = load_model(spec)
    assert two.stack is not None and two.stack.rank == 4, "the second round's alone"
    assert torch.allclose(logits(two), before, atol=1e-3), "and the policy is the one that it was"
    assert evaluate(settings)


def test_a_run_is_exported_as_whole_weights(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(model, tmp_path)
    train(settings)
    run = str(settings.folder)
    assert main(["export", run, "--merge", str(tmp_path / "last")]) == 0
    assert main(["export", run, "--merge", str(tmp_path / "first"), "--stage", "seal/round-1"]) == 0
    assert main(["export", run, "--merge", str(tmp_path / "small"), "--dtype", "bfloat16"]) == 0
    for name, r in (("last", 2), ("first", 1)):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()(input_ids=IDS).logits
        assert torch.allclose(theirs, logits(load_model(Store(settings).policy("seal", r))), atol=1e-4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").dtype == torch.bfloat16
    capsys.readouterr()
    for words, said in (
        (["--merge", str(tmp_path / "last")], "exists already"),
        (["--merge", str(tmp_path / "x"), "--stage", "seal/round-9"], "has no policy of seal/round-9"),
        (["--merge", str(tmp_path / "x"), "--out", str(tmp_path / "y")], "take one"),
        (["--out", str(tmp_path / "y"), "--dtype", "float32"], "are of --merge"),
        ([], "say where to"),
    ):
        assert main(["export", run, *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_with_nothing_learnt_the_policy_is_the_base(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finetune that made it worse is not taken up, and the next round goes on from the base."""
    monkeypatch.setattr("seal.loop.imitate.WORSE", 0.0)
    settings = config(model, tmp_path)
    train(settings)
    told = [json.loads((settings.folder / f"seal/round-{r}/outer.json").read_text()) for r in (1, 2)]
    assert all(t["worse"] for t in told)
    policy = load_model(Store(settings).policy("seal", 2))
    assert policy.stack is None and logits(policy).equal(logits(load_model(model)))
