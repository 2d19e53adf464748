"""A policy is frozen weights and a stack of adapters over them.

- base and stack compute what the merged model does, round after round;
- the weights are one copy, and nobody changes them; without the stack it is the model it was;
- where weights cannot take an update (16 bits, 4 bits), a layer adds it to its output;
- adapters go on top of a stack, in training, sampling and scoring;
- PEFT reads a stack; and it is compressed when that is asked, with the loss told.
"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from seal.config import RunConfig
from seal.loop.outer import run
from seal.lora.adapter import Adapter, compress, join, no_change
from seal.lora.capacity import Room
from seal.lora.files import load_peft, save_peft
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, LoraError, ModelSpec, Prompt, Query, Recipe, Sampling
from seal.lora.sample import ask, generate
from seal.lora.score import log_likelihood
from seal.lora.train import Job, train_adapters
from seal.store import Store
from tests import tiny

RECIPE = Recipe(rank=3, alpha=12, targets="all-linear", learning_rate=1e-2, steps=4, batch_size=2)
IDS = torch.randint(2, 98, (2, 30), generator=torch.Generator().manual_seed(0))
SOME = (Example("the cat sat on the mat"), Example("two and two is four", prompt="sum: "))


def learn(model: Model, seed: int, recipe: Recipe = RECIPE) -> Adapter:
    adapter = train_adapters(model, [Job(SOME, recipe, seed)])[0].adapter
    assert adapter is not None
    return adapter


def rounds(model: Model, n: int) -> list[Model]:
    """Policies after 0 … n rounds, each with one adapter more, of ranks and scales that differ."""
    found = [model]
    for r in range(n):
        recipe = RECIPE.model_copy(update={"rank": 2 + r, "alpha": 5.0 + r})
        found.append(found[-1].plus(learn(found[-1], r, recipe)))
    return found


def test_base_and_stack_compute_what_the_merged_model_does_over_three_rounds(policy: Model) -> None:
    for over in rounds(policy, 3)[1:]:
        assert over.stack is not None
        merged, arrived = over.merged()
        assert arrived == 1.0
        theirs = merged(input_ids=IDS).logits
        assert torch.allclose(over.forward(input_ids=IDS).logits, theirs, atol=1e-5)
        assert not torch.allclose(policy.forward(input_ids=IDS).logits, theirs, atol=1e-3)


def test_the_weights_are_one_copy_and_stay_as_they_are() -> None:
    policy = tiny.policy()
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    last = rounds(policy, 2)[-1]
    generate(last, [Prompt("x y")], Sampling(4), [0])
    assert all(p.equal(before[n]) for n, p in last.model.named_parameters())
    assert last.model is policy.model
    mine, shared = dict(last.runner.named_parameters()), dict(policy.model.named_parameters())
    own = {n for n in mine if mine[n].data_ptr() != shared[n].data_ptr()}
    assert last.stack is not None and own == {f"{n}.weight" for n in last.stack.weights}
    again = last.with_stack(None)
    assert again.runner is policy.runner and again.stack is None


@pytest.mark.parametrize("bf16", [False, True])
def test_16_bit_weights_add_the_stack_to_their_outputs(bf16: bool) -> None:
    """In fp32 the update is in the weights; 16-bit weights keep theirs, and nothing is rounded away."""
    weights = tiny.llama().to(torch.bfloat16)
    name = "model.layers.0.mlp.up_proj"
    with torch.no_grad():  # +1, -1, +1, …: equal inputs cancel, and 1 + 1/1000 is 1 in bf16
        weights.get_submodule(name).weight.fill_(1.0)[:, 1::2] = -1.0
    model = Model(weights, tiny.tokenizer(), "tiny", bf16)
    shape = weights.get_submodule(name).weight.shape
    tiny_update = Adapter(1, 1.0, {name: (torch.ones(1, shape[1]), torch.full((shape[0], 1), 1e-3))})
    over = model.plus(tiny_update)
    assert over.merged()[1] < 0.6
    x = torch.ones(1, 5, shape[1], dtype=torch.bfloat16)
    assert not model.runner.get_submodule(name)(x).any()
    moved = over.runner.get_submodule(name)(x).float()
    assert moved.mean() == pytest.approx(1e-3 * shape[1], rel=0.01)
    assert over.runner.get_submodule(name).weight.data_ptr() == weights.get_submodule(name).weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_on_a_stack_are_as_on_the_merged_model(dtype: torch.dtype) -> None:
    """In training, answers and likelihoods, several side by side. (For bf16 the oracle has the weights that
    the stack stands for in fp32, and the tolerance of that precision.)"""
    exact = rounds(tiny.policy(), 2)[-1]
    if dtype == torch.float32:
        over = exact
    else:
        assert exact.stack is not None
        over = Model(tiny.llama().to(dtype), tiny.tokenizer(), "tiny").with_stack(exact.stack)
    merged = Model(exact.merged()[0], tiny.tokenizer(), "merged")
    jobs = [Job(SOME, RECIPE, 1), Job(SOME[:1], RECIPE, 2)]
    mine, theirs = (train_adapters(m, jobs, Room(2, 500)) for m in (over, merged))
    close = 1e-5 if dtype == torch.float32 else 0.05
    for a, b in zip(mine, theirs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=close)
    adapters = [t.adapter for t in theirs]
    queries = [[Query(Prompt("the cat"), "sat")], [Query(Prompt("sum"), "four"), Query(Prompt("a"), "b")]]
    a, b = (log_likelihood(m, adapters, queries) for m in (over, merged))
    assert [x for row in a for x in row] == pytest.approx([x for row in b for x in row], rel=close)
    if dtype == torch.float32:
        prompts = [[Prompt("the cat")], [Prompt("sum: "), Prompt("two")]]
        assert ask(over, adapters, prompts, Sampling(8)) == ask(merged, adapters, prompts, Sampling(8))


def test_peft_loads_a_stack(policy: Model, tmp_path: Path) -> None:
    over = rounds(policy, 3)[-1]
    assert over.stack is not None
    save_peft(over.stack, tmp_path / "policy", "tiny")
    theirs = peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "policy").eval()(input_ids=IDS).logits
    assert torch.allclose(theirs, over.forward(input_ids=IDS).logits, atol=1e-5)


def test_a_policy_is_loaded_by_its_folder_and_shares_what_is_loaded(model: str, tmp_path: Path) -> None:
    base = load_model(model)
    over = base.plus(learn(base, 0))
    assert over.stack is not None
    save_peft(over.stack, tmp_path / "policy", model)
    spec = ModelSpec(name=model, adapter=str(tmp_path / "policy"), threads=None)
    ways = [load_model(spec), load_model(tmp_path / "policy"), load_model(spec, loaded=base)]
    for found in ways:
        assert found.spec == spec and found.base_name == model
        assert found.forward(input_ids=IDS).logits.equal(over.forward(input_ids=IDS).logits)
    assert ways[0].model is not base.model is ways[2].model
    other_base = tiny.save(tmp_path / "other", seed=1)
    assert load_model(other_base, loaded=base).model is not base.model, "other weights are loaded"
    assert ways[2].with_stack(None).spec == base.spec, "workers load it without the stack"
    save_peft(no_change(base.runner, RECIPE), tmp_path / "none", model)
    assert load_model(spec.at(tmp_path / "none")).stack is None
    other = tiny.llama(hidden_size=64)
    with pytest.raises(LoraError, match="not of the model"):
        Model(other, tiny.tokenizer(), "other").with_stack(over.stack)
    (tmp_path / "none/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(LoraError, match="does not name the model"):
        load_model(tmp_path / "none")


def test_whole_weights_are_written_with_the_stack_merged(policy: Model, tmp_path: Path) -> None:
    over = rounds(policy, 2)[-1]
    assert over.save(tmp_path / "whole") == 1.0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()(input_ids=IDS).logits
    assert torch.allclose(theirs, over.forward(input_ids=IDS).logits, atol=1e-5)


def test_a_stack_is_compressed_as_well_as_can_be_and_the_loss_is_told(policy: Model) -> None:
    stack = rounds(policy, 3)[-1].stack
    assert stack is not None and stack.rank == 2 + 3 + 4
    same, nothing = compress(stack, 9)
    assert same is stack and nothing == 0.0
    found, lost = compress(stack, 4)
    assert found.rank == 4 and found.scale == pytest.approx(stack.scale)
    gone = whole = 0.0
    for name, (a, b) in stack.weights.items():
        update, (a2, b2) = b @ a, found.weights[name]
        u, s, v = torch.linalg.svd(update)
        best = u[:, :4] * s[:4] @ v[:4]
        assert torch.allclose(b2 @ a2, best, atol=1e-5)
        gone, whole = gone + float((s[4:] ** 2).sum()), whole + float((s**2).sum())
    assert lost == pytest.approx(gone / whole, rel=1e-3) and 0 < lost < 1


def test_ranks_that_a_layer_does_not_have_are_no_matter(policy: Model) -> None:
    """A stack grows beyond what its narrow layers can hold; it is exact all the same, and compresses."""
    over = policy
    for r in range(3):
        over = over.plus(learn(over, r, RECIPE.model_copy(update={"rank": 16})))
    assert over.stack is not None and over.stack.rank == 48
    assert any(min(a.shape[1], len(b)) < 48 for a, b in over.stack.weights.values())
    small, lost = compress(over.stack, 40)
    mine, theirs = (policy.with_stack(s).forward(input_ids=IDS).logits for s in (small, over.stack))
    assert lost < 1e-6 and torch.allclose(mine, theirs, atol=1e-4)
    assert torch.allclose(over.merged()[0](input_ids=IDS).logits, theirs, atol=1e-4)
    assert join(over.stack, small).rank == 88


@pytest.mark.slow
def test_4_bit_weights_go_through_two_rounds(tmp_path: Path) -> None:
    """The outer loop needs no weights to merge into; and the second round goes on from the first."""
    pytest.importorskip("bitsandbytes")
    sizes = {"source": "atlas", "sizes": {"train": 4, "select": 1, "eval": 2}}
    data = {
        "runs": str(tmp_path), "rounds": 2, "tasks_per_round": 2, "edits_per_task": 2,
        "model": {"name": "atlas", "quantize": "4bit"}, "domain": {"options": sizes}, "write": {"max_tokens": 48},
        "inner": {"recipe": {"rank": 4, "targets": "all-linear", "steps": 2}, "answer_tokens": 4, "start": "base"},
        "outer": {"recipe": {"rank": 4, "targets": "all-linear", "steps": 2, "learning_rate": 3e-3}},
    }  # fmt: skip
    config = RunConfig.model_validate(data)
    store = Store(config)
    last = run(config, store)
    assert last.quantize == "4bit" and last.adapter == str(store.folder / "seal/round-2/policy")
    base = load_model(last.weights)
    over = load_model(last, loaded=base)
    assert over.stack is not None and over.stack.rank == 8
    ids = torch.tensor([over.tokenizer("Velora\nVelora was walled in May.")["input_ids"]])
    mine, bare = (m.forward(input_ids=ids).logits.float() for m in (over, base))
    assert not torch.allclose(mine, bare, atol=0.05)
    one, two = (load_peft(store.folder / f"seal/round-{r}/policy") for r in (1, 2))
    assert all(two.weights[n][0][:4].equal(a) for n, (a, _) in one.weights.items()), "the first, beneath"
    quantised = [m for m in base.model.modules() if type(m).__name__ == "Linear4bit"]
    shared = [m for m in over.runner.modules() if type(m).__name__ == "Linear4bit"]
    assert quantised and all(
        a.weight.data_ptr() == b.weight.data_ptr() for a, b in zip(quantised, shared, strict=True)
    )
