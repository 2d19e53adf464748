"""What only a GPU can show; skipped elsewhere. The same code runs on the CPU in the other tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seal.lora import train
from seal.lora.capacity import Room, free_memory, room_for
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec, Sampling
from seal.lora.sample import ask, generate
from seal.lora.train import Job, train_adapters
from seal.records import Example, Prompt, Recipe
from tests import tiny
from tests.lora.test_speed import JOBS, close

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


def on_gpu(bf16: bool = False) -> Model:
    return Model(tiny.llama().to("cuda"), tiny.tokenizer(), "tiny", bf16)


def test_the_gpu_computes_what_the_cpu_does() -> None:
    here, there = (
        train_adapters(tiny.policy(), JOBS, Room(3, 1000)),
        train_adapters(on_gpu(), JOBS, Room(3, 1000)),
    )
    assert all(
        close(a.adapter, b.adapter, 5e-4) and a.steps == b.steps for a, b in zip(here, there, strict=True)
    )
    adapters = [t.adapter for t in here]
    prompts = [[Prompt(f"{k} {q}") for q in range(3)] for k in range(3)]
    assert ask(on_gpu(), adapters, prompts, Sampling(8)) == ask(tiny.policy(), adapters, prompts, Sampling(8))


def test_bf16_learns() -> None:
    job = Job(
        (Example("Velora lies in Tarn."),),
        Recipe(rank=4, targets="all-linear", steps=30, learning_rate=1e-2),
        0,
    )
    outcome = train_adapters(on_gpu(bf16=True), [job])[0]
    assert outcome.adapter is not None and outcome.loss[1] < outcome.loss[0] / 2


def test_a_step_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = on_gpu()
    train_adapters(policy, JOBS, Room(3, 1000))  # what is allocated once is there now
    step = train._Training._step

    def watched(self: train._Training, works: list[train._Work]) -> bool:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, works)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train._Training, "_step", watched)
    train_adapters(policy, JOBS, Room(3, 1000))


def test_memory_that_really_runs_out_is_survived() -> None:
    policy = on_gpu()
    whole = train_adapters(policy, JOBS, Room(3, 1000))
    taken = torch.empty(free_memory(policy.device) - (256 << 20), dtype=torch.uint8, device="cuda")
    try:
        long = [Job((Example("x" * 900),) * 8, Recipe(rank=2, steps=2, batch_size=8), i) for i in range(32)]
        train_adapters(policy, long, Room(32, 10**6))
    finally:
        del taken
        torch.cuda.empty_cache()
    again = train_adapters(policy, JOBS, Room(3, 1000))
    assert all(close(a.adapter, b.adapter) for a, b in zip(whole, again, strict=True))


def test_room_and_samples() -> None:
    policy = on_gpu()
    room = room_for(policy, [Recipe()])
    assert room.slots == 64 and room.tokens > 1000
    sampling = Sampling(20, 1.0, 0.95)
    prompts = [Prompt("a" * n) for n in (3, 30, 11)]
    assert generate(policy, prompts, sampling, [1, 2, 3]) == [
        generate(policy, [p], sampling, [s])[0] for p, s in zip(prompts, (1, 2, 3), strict=True)
    ]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_a_model_over_two_gpus_learns_what_it_learns_on_one(tmp_path: Path) -> None:
    name = tiny.save(tmp_path / "model")
    one, two = (
        load_model(ModelSpec(name=str(name), device="cuda", threads=None)),
        load_model(ModelSpec(name=str(name), device="cuda*2", threads=None)),
    )
    assert len(two.devices) == 2 and len(one.devices) == 1
    for a, b in zip(*(train_adapters(p, JOBS, Room(3, 1000)) for p in (one, two)), strict=True):
        assert close(a.adapter, b.adapter, 5e-4)
    prompts = [Prompt("one"), Prompt("two")]
    assert generate(one, prompts, Sampling(8), [0, 0]) == generate(two, prompts, Sampling(8), [0, 0])
