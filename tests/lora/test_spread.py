"""A model over two devices (``--model.device cuda*2``): the same adapters and answers, and no operation on
tensors of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seal.config import RunConfig
from seal.lora.adapter import Adapter
from seal.lora.capacity import Room, spread
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.probe import Nature
from seal.lora.records import ModelSpec, Sampling
from seal.lora.sample import ask, generate
from seal.lora.score import log_likelihood
from seal.lora.train import Job, train_adapters
from seal.records import Example, LoraError, Prompt, Query, Recipe
from tests import tiny
from tests.labelled import Devices, place

LAYERS = {f"model.layers.{i}": f"cuda:{i // 2}" for i in range(4)}
PLACES = {
    "model.embed_tokens": "cuda:0",
    "model.rotary_emb": "cuda:0",
    **LAYERS,
    "model.norm": "cuda:1",
    "lm_head": "cuda:1",
}


def model() -> Any:
    return tiny.llama(3, num_hidden_layers=4, tie_word_embeddings=False)


def work(policy: Model) -> tuple[list[Adapter | None], list[str], list[list[str]], list[list[float]]]:
    recipe = Recipe(rank=4, alpha=8, targets="all-linear", learning_rate=1e-2, epochs=3, batch_size=2)
    jobs = [
        Job(
            tuple(Example(f"fact {i} is {i * j}" * (1 + j)) for j in range(3)),
            recipe.model_copy(update={"rank": 2 + i}),
            i,
        )
        for i in range(3)
    ]
    adapters = [t.adapter for t in train_adapters(policy, jobs, Room(3, 400))]
    prompts = [Prompt("one two"), Prompt("three"), Prompt("one two")]
    texts = generate(policy, prompts, Sampling(6, 1.0), [1, 2, 3])
    answers = ask(policy, [*adapters, None], [prompts[:2]] * 4, Sampling(5))
    queries = [[Query(Prompt("a b"), "gold"), Query(Prompt("c"), "old")]] * 3
    likely = log_likelihood(policy, adapters, queries)
    for adapter in adapters[:1]:
        assert adapter is not None
        policy = policy.plus(adapter)
    return adapters, [*texts, *generate(policy, prompts, Sampling(6), [0] * 3)], answers, likely


@pytest.mark.parametrize("plain", [True, False])
def test_a_model_over_two_devices_learns_and_answers_the_same(plain: bool) -> None:
    alone = Model(model(), tiny.tokenizer(), "tiny")
    alone.nature = Nature(plain, plain)
    expected = work(alone)
    with Devices() as labels:
        apart = Model(place(model(), PLACES, labels), tiny.tokenizer(), "tiny")
        assert apart.nature.packs, "the fast path is right across devices"
        assert [str(d) for d in apart.devices] == ["cuda:0", "cuda:1"] and str(apart.device) == "cuda:0"
        apart.nature = Nature(plain, plain)
        found = work(apart)
    assert labels.moved > 0
    for a, b in zip(expected[0], found[0], strict=True):
        assert a is not None and b is not None
        for name, pair in a.weights.items():
            for x, y in zip(pair, b.weights[name], strict=True):
                torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-2)
    assert expected[1:3] == found[1:3]
    assert torch.tensor(expected[3]).allclose(torch.tensor(found[3]), atol=1e-5)


def test_the_labels_refuse_what_cuda_would() -> None:
    with Devices():
        here, there = torch.ones(2, device="cuda:0"), torch.ones(2).to("cuda:1")
        assert str((here + 1).device) == "cuda:0" and str(there[:1].device) == "cuda:1"
        with pytest.raises(RuntimeError, match="one device"):
            here + there


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="the devices are there")
def test_devices_that_are_not_there_are_named(tmp_path: Any) -> None:
    assert spread("cuda*4") == ("cuda", 4) and spread("cuda:1") == ("cuda:1", 1)
    with pytest.raises(LoraError, match=r"cuda\*2.*not on this machine"):
        load_model(ModelSpec(name=str(tiny.save(tmp_path / "m")), device="cuda*2", threads=None))


def test_what_does_not_go_with_a_spread_model_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"cuda\*2 goes with"):
        RunConfig.model_validate({"model": {"device": "cuda*2"}, "outer": {"rule": "dpo"}})
