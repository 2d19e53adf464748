"""Adapters that others made: what PEFT can write is computed as PEFT does, or refused by name.

PEFT is the oracle: for every kind a tiny model is adapted by PEFT, saved, and read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from seal.lora.adapter import Adapter
from seal.lora.files import load_peft, save_peft
from seal.lora.load import load_model
from seal.lora.model import must_match
from seal.lora.records import Example, LoraError, Recipe
from seal.lora.train import Job, train_adapters
from tests import tiny

IDS = torch.randint(2, 98, (2, 30), generator=torch.Generator().manual_seed(0))
TARGETS = ["q_proj", "v_proj", "up_proj"]


def made(folder: Path, **settings: Any) -> torch.Tensor:
    """An adapter by PEFT in a folder, of random numbers; the logits that PEFT gives with it when it is read
    again over the untouched model."""
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings})
    model = peft.get_peft_model(tiny.llama(), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "lora_magnitude" in name:
                p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(tiny.llama(), str(folder)).eval()
    with torch.no_grad():
        logits: torch.Tensor = again(input_ids=IDS).logits
    return logits


def ours(adapter: Adapter) -> torch.Tensor:
    logits: torch.Tensor = tiny.policy().plus(adapter).forward(input_ids=IDS).logits
    return logits


COMPUTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"lora_dropout": 0.5},
    "rsLoRA": {"use_rslora": True},
    "rank by module": {"rank_pattern": {"q_proj": 2}},
    "alpha by module": {"alpha_pattern": {"v_proj": 32}},
    "both by module": {"rank_pattern": {"q_proj": 2, "up_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "both, and rsLoRA": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
    "by whole path": {"rank_pattern": {r"model.layers.1.self_attn.q_proj": 1}},
    "by a pattern": {"alpha_pattern": {r"layers\.0\..*\.v_proj": 64}},
    "the last layer": {"layers_to_transform": [1]},
    "some left out": {"exclude_modules": ["up_proj"]},
    "begun by a normal": {"init_lora_weights": "gaussian"},
    "begun orthogonal": {"init_lora_weights": "orthogonal"},
    "one module by regex": {"target_modules": r".*\.1\..*(k|o)_proj"},
    "all linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_what_is_taken_is_computed_as_peft_does(kind: str, tmp_path: Path) -> None:
    theirs = made(tmp_path, **COMPUTED[kind])
    assert torch.allclose(ours(load_peft(tmp_path)), theirs, atol=1e-5)
    assert not torch.allclose(
        ours(load_peft(tmp_path)), tiny.policy().forward(input_ids=IDS).logits, atol=1e-2
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa"),
    "PiSSA by iterations": ({"init_lora_weights": "pissa_niter_2"}, "pissa_niter_2"),
    "OLoRA": ({"init_lora_weights": "olora"}, "olora"),
    "DoRA": ({"use_dora": True}, "use_dora"),
    "bias of LoRA": ({"lora_bias": True}, "lora_bias"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "activated LoRA": ({"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens"),
    "trained tokens": ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
    "copied layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_computed_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    settings, word = REFUSED[kind]
    made(tmp_path, **settings)
    with pytest.raises(LoraError, match=word) as told:
        load_peft(tmp_path)
    assert "\n" not in str(told.value)


def changed(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def test_a_setting_that_is_not_known_is_refused_where_it_says_something(tmp_path: Path) -> None:
    made(tmp_path)
    load_peft(changed(tmp_path, use_something_new=False))
    with pytest.raises(LoraError, match="use_something_new"):
        load_peft(changed(tmp_path, use_something_new=True))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(q|q)*proj", "x" * 300, "[", ".*.*.*.*.*_proj"])
def test_a_pattern_that_could_take_for_ever_is_not_tried(pattern: str, tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(LoraError, match="pattern"):
        load_peft(changed(tmp_path, alpha_pattern={pattern: 4}))


def test_half_a_module_or_another_rank_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    with pytest.raises(LoraError, match="rank"):
        load_peft(changed(tmp_path, r=8))
    changed(tmp_path, r=4)
    lost = next(k for k in tensors if ".lora_B." in k)
    save_file({k: v for k, v in tensors.items() if k != lost}, file)
    with pytest.raises(LoraError, match="without its other half"):
        load_peft(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": float("nan")}, {"lora_alpha": 1e400}, {"lora_alpha": "8"}, {"r": 0}, {"alpha_pattern": {"q_proj": None}},
        {"target_modules": ["v_proj"]}, {"layers_to_transform": [0]}, {"target_modules": []},
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_the_weights_are_one_sentence(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    made(tmp_path)
    with pytest.raises(LoraError) as told:
        load_peft(changed(tmp_path, **settings))
    assert "\n" not in str(told.value)


def test_numbers_that_are_not_finite_and_keys_of_another_form_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k.removeprefix("base_model.model."): v for k, v in tensors.items()}, file)
    with pytest.raises(LoraError, match="the tensor"):
        load_peft(tmp_path)
    save_file({k: v * float("nan") for k, v in tensors.items()}, file)
    with pytest.raises(LoraError, match="not finite"):
        load_peft(tmp_path)


def test_an_adapter_of_the_head_counts_in_losses_and_likelihoods_too(tmp_path: Path) -> None:
    from seal.lora.records import Prompt, Query
    from seal.lora.score import log_likelihood

    torch.manual_seed(3)
    model = peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.3 * torch.randn(p.shape))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter, policy = load_peft(tmp_path), tiny.policy()
    over = policy.plus(adapter)
    query = [[Query(Prompt("one "), "two")]]
    assert log_likelihood(policy, [adapter], query)[0] == pytest.approx(
        log_likelihood(over, [None], query)[0], abs=1e-5
    )
    assert log_likelihood(policy, [adapter], query)[0] != pytest.approx(
        log_likelihood(policy, [None], query)[0], abs=1e-3
    )


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(LoraError, match="pickle"):
        load_peft(tmp_path)


@pytest.mark.parametrize("kind", ["plain", "rsLoRA", "both by module"])
def test_training_goes_on_from_what_peft_has(kind: str, tmp_path: Path) -> None:
    """Before the first step PEFT's logits, afterwards other ones; and what comes out PEFT reads again."""
    theirs = made(tmp_path / "theirs", **COMPUTED[kind])
    start = load_peft(tmp_path / "theirs")
    recipe = Recipe(rank=4, targets="all-linear", learning_rate=1e-2, steps=3)
    policy = tiny.policy()
    nothing, some = train_adapters(
        policy,
        [Job((), recipe, 0, start=start), Job((Example("go on from here"),), recipe, 0, start=start)],
    )
    assert nothing.adapter is not None and some.adapter is not None
    assert torch.allclose(ours(nothing.adapter), theirs, atol=1e-5)
    assert not torch.allclose(ours(some.adapter), theirs, atol=1e-2)
    save_peft(some.adapter, tmp_path / "ours", "tiny")
    again = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "ours")).eval()
    assert torch.allclose(again(input_ids=IDS).logits, ours(some.adapter), atol=1e-5)


def test_an_adapter_names_its_base_and_no_other_is_asked_with_it(tmp_path: Path) -> None:
    mine, other = (load_model(tiny.save(tmp_path / name, seed)) for name, seed in (("a", 0), ("b", 1)))
    adapter = train_adapters(
        mine, [Job((Example("learn this"),), Recipe(rank=2, targets="all-linear", steps=1), 0)]
    )[0]
    assert adapter.adapter is not None
    save_peft(adapter.adapter, tmp_path / "adapter", mine.name, mine.fingerprint())
    back = load_peft(tmp_path / "adapter")
    assert back.base == mine.fingerprint() != other.fingerprint()
    must_match(back, mine)
    mine.with_stack(back)
    with pytest.raises(LoraError, match="of other weights"):
        other.with_stack(back)
    assert (
        json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
        == mine.name
    )
    peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "adapter"))


def test_a_fingerprint_is_of_the_weights_and_not_of_their_precision(tmp_path: Path) -> None:
    from seal.lora.records import ModelSpec

    name = tiny.save(tmp_path / "a")
    exact, rounded = load_model(name), load_model(ModelSpec(name=name, dtype="bfloat16", threads=None))
    assert exact.fingerprint() == rounded.fingerprint()
    merged = exact.plus(
        train_adapters(exact, [Job((Example("x" * 9),), Recipe(rank=2, learning_rate=0.1, steps=2), 0)])[
            0
        ].adapter  # type: ignore[arg-type]
    )
    merged.save(tmp_path / "merged")
    assert load_model(tmp_path / "merged").fingerprint()["weights"] != exact.fingerprint()["weights"]
    assert load_model(tmp_path / "merged").fingerprint()["outside"] == exact.fingerprint()["outside"]
