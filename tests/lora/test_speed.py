"""What makes the inner loop fast changes nothing in what it computes, and what it gives up when memory is
short."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from seal.lora import attention, train
from seal.lora.adapter import Adapter, target_modules
from seal.lora.capacity import OutOfRoom, Room, bytes_per_token, room_for
from seal.lora.load import load_model, usable_cores
from seal.lora.loss import ChunkedLoss
from seal.lora.model import Model
from seal.lora.packing import of_menu, pack
from seal.lora.records import ModelSpec, Sampling
from seal.lora.sample import ask, generate
from seal.lora.tokens import Row
from seal.lora.train import Job, Tally, choose, train_adapters
from seal.records import Example, LoraError, Prompt, Query, Recipe
from tests import tiny

ROWS = tuple(
    Example(t)
    for t in (
        "Velora lies in Tarn.",
        "Its coin is the mark.",
        "In March it was founded, walled in June.",
        "Salt.",
    )
)
SIZES = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
JOBS = [
    Job(ROWS, Recipe(rank=4, alpha=8, targets="all-linear", learning_rate=5e-3, steps=5, batch_size=2), 1),
    Job(
        ROWS[1:], Recipe(rank=2, alpha=4, targets="all-linear", learning_rate=5e-3, steps=4, batch_size=3), 2
    ),
    Job(ROWS[:1] * 3, Recipe(rank=4, alpha=8, targets="all-linear", learning_rate=1e-3, steps=6), 3),
]


def of(kind: type[PreTrainedModel], config: type, **changes: object) -> Model:
    sizes = {**SIZES, **changes}
    if kind is GPTNeoXForCausalLM:
        sizes = {k: v for k, v in sizes.items() if k not in ("num_key_value_heads", "head_dim")}
    torch.manual_seed(0)
    return Model(kind(config(**sizes)), tiny.tokenizer(), "tiny")  # type: ignore[call-arg]


ARCHITECTURES = {
    "llama": tiny.policy,
    "qwen2": lambda: of(Qwen2ForCausalLM, Qwen2Config),
    "qwen3, tied": lambda: of(Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=True),
    "gemma3": lambda: of(Gemma3ForCausalLM, Gemma3TextConfig, sliding_window=256),
    "gemma3, window shorter than a row": lambda: of(Gemma3ForCausalLM, Gemma3TextConfig, sliding_window=8),
    "gemma2, capped scores": lambda: of(Gemma2ForCausalLM, Gemma2Config, sliding_window=256),
    "olmo2": lambda: of(Olmo2ForCausalLM, Olmo2Config),
    "gpt-neox, biases": lambda: of(GPTNeoXForCausalLM, GPTNeoXConfig),
}


def close(a: Adapter | None, b: Adapter | None, atol: float = 5e-5) -> bool:
    assert a is not None and b is not None
    return all(
        torch.allclose(x, y, atol=atol)
        for n in a.weights
        for x, y in zip(a.weights[n], b.weights[n], strict=True)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_each_row_alone(name: str) -> None:
    """Whatever the architecture, packed rows of several adapters compute what the model's own forward of one
    row does."""
    policy = ARCHITECTURES[name]()
    assert policy.nature.packs is (
        name not in ("gemma2, capped scores", "gemma3, window shorter than a row") or "gemma3" in name
    )
    rows = [
        Row(tuple(2 + (5 * i + 3 * j) % 90 for j in range(n)), (False, *[True] * (n - 1)))
        for i, n in enumerate((9, 30, 17, 4, 25))
    ]
    lines = policy.pack([rows[:2], rows[2:4], rows[4:]])
    first = next(m for m in target_modules(policy.runner, "all-linear").values()).weight.requires_grad_()
    with policy.losses(lines) as (total, each):
        (packed,) = torch.autograd.grad(total, first)
    alone, expected = [], torch.zeros(())
    for line in (rows[:2], rows[2:4], rows[4:]):
        n = sum(len(r.ids) - 1 for r in line)
        for row in line:
            logits = policy.model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            losses = cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
            alone.append(losses.detach())
            expected = expected + losses.sum() / n
    (one_by_one,) = torch.autograd.grad(expected, first)
    assert torch.allclose(each, torch.cat(alone), atol=1e-4)
    assert torch.allclose(packed, one_by_one, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_together_equals_alone_on_every_architecture(name: str) -> None:
    policy = ARCHITECTURES[name]()
    together = train_adapters(policy, JOBS, Room(3, 1000))
    for job, outcome in zip(JOBS, together, strict=True):
        assert close(outcome.adapter, train_adapters(policy, [job], Room(1, 1))[0].adapter)
    adapters = [o.adapter for o in together]
    prompts = [[Prompt(f"{k}?"), Prompt("and then?")] for k in range(3)]
    answers = ask(policy, adapters, prompts, Sampling(8))
    assert answers == [ask(policy, [a], [p], Sampling(8))[0] for a, p in zip(adapters, prompts, strict=True)]


def test_recomputed_activations_change_nothing(policy: Model) -> None:
    kept = train_adapters(policy, JOBS, Room(3, 1000))
    with policy.recomputing():
        again = train_adapters(policy, JOBS, Room(3, 1000))
        assert all("forward" in m.__dict__ for m in policy._layers)
    assert all(close(a.adapter, b.adapter, 1e-6) for a, b in zip(kept, again, strict=True))


def test_bf16_computes_on_a_copy_and_a_stack_is_added_in_full_precision() -> None:
    policy = Model(tiny.llama(), tiny.tokenizer(), "tiny", bf16=True)
    assert (policy.model.dtype, policy.runner.dtype) == (torch.float32, torch.bfloat16)
    job = Job(ROWS, Recipe(rank=4, targets="all-linear", steps=8, batch_size=4), 1)
    outcome = train_adapters(policy, [job])[0]
    assert outcome.adapter is not None and outcome.loss[1] < outcome.loss[0]
    exact = train_adapters(tiny.policy(), [job])[0]
    assert outcome.loss == pytest.approx(exact.loss, rel=0.05)
    before = policy.model.get_submodule("model.layers.0.mlp.up_proj").weight.clone()
    over = policy.plus(outcome.adapter)
    a, b = outcome.adapter.weights["model.layers.0.mlp.up_proj"]
    whole = before + outcome.adapter.scale * (b @ a)
    assert torch.equal(over.runner.get_submodule("model.layers.0.mlp.up_proj").weight, whole.bfloat16())
    assert torch.equal(policy.model.get_submodule("model.layers.0.mlp.up_proj").weight, before)


# ----------------------------------------------------------------------------------------------------- memory


def fails_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make a pass of more than ``limit`` tokens run out of memory; the sizes that were tried."""
    tried = []
    whole = Model.losses

    def losses(self: Model, lines: object) -> object:
        tried.append(lines.n_real)  # type: ignore[attr-defined]
        if tried[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "losses", losses)
    return tried


def test_out_of_memory_halves_the_pass_and_loses_nothing(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_adapters(policy, JOBS, Room(3, 1000))
    tried = fails_above(100, monkeypatch)
    tally = Tally()
    monkeypatch.setattr("seal.lora.train.room_for", lambda *_: Room(3, 1000))
    halved = train_adapters(policy, JOBS, tally=tally)
    assert tally.halvings and max(tried) > 100
    assert all(close(a.adapter, b.adapter) and a.steps == b.steps for a, b in zip(whole, halved, strict=True))


def test_a_batch_that_never_fits_is_one_clear_sentence(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = fails_above(10, monkeypatch)
    with pytest.raises(LoraError, match=r"a single row of \d+ tokens does not fit in memory on cpu"):
        train_adapters(policy, JOBS)
    assert tried[-1] == tried[-2]  # the same once more with activations recomputed


def test_a_room_that_is_given_holds_or_a_smaller_one_is_named(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever keeps a record of rooms can write the smaller one down before it is used."""
    fails_above(100, monkeypatch)
    with pytest.raises(OutOfRoom) as found:
        train_adapters(policy, JOBS, Room(3, 1000))
    again = pickle.loads(pickle.dumps(found.value)).smaller  # it comes from a worker's process
    assert again == found.value.smaller and again.tokens < 1000 and not again.recompute


@pytest.mark.parametrize("tokens", [1, 40, 90])
def test_a_batch_that_does_not_fit_is_split_and_its_gradients_add_up(
    policy: Model, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of unequal length, some without loss: the loss is the mean over the tokens of the whole batch."""
    rows = (*ROWS, Example("x" * 40, prompt="y" * 30), Example("short", prompt="a long prompt " * 3))
    job = Job(rows, Recipe(rank=4, targets="all-linear", steps=4, batch_size=len(rows)), 3)
    (whole,) = train_adapters(policy, [job], Room(1, 10_000))
    tally = Tally()
    (split,) = train_adapters(policy, [job], Room(1, tokens), tally=tally)
    assert tally.passes >= 4 * 2 and split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert close(whole.adapter, split.adapter, 1e-4) and whole.tokens == split.tokens
    tried = fails_above(max(tokens, 90), monkeypatch)
    monkeypatch.setattr("seal.lora.train.room_for", lambda *_: Room(1, 10_000))
    (found,) = train_adapters(policy, [job])
    assert max(tried) > 90 and close(whole.adapter, found.adapter, 1e-4)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Model, lines: object) -> object:
        raise RuntimeError("something else")

    monkeypatch.setattr(Model, "losses", broken)
    with pytest.raises(RuntimeError, match="something else"):
        train_adapters(policy, JOBS)


def test_answers_survive_a_lack_of_memory(policy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [o.adapter for o in train_adapters(policy, JOBS)]
    prompts = [[Prompt(f"{k} {q}") for q in range(3)] for k in range(3)]
    whole = ask(policy, adapters, prompts, Sampling(8))
    forward = Model.forward

    def tight(self: Model, **inputs: object) -> object:
        if len(inputs["input_ids"]) > 4:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "forward", tight)
    assert ask(policy, adapters, prompts, Sampling(8)) == whole


def test_what_16_bit_weights_round_away_is_told() -> None:
    """Of an update of a ten-thousandth of the weights hardly anything arrives in bf16."""
    for dtype, low, high in ((torch.float32, 1.0, 1.0), (torch.bfloat16, 0.0, 0.6)):
        policy = tiny.policy()
        policy.model.to(dtype)
        policy.runner.to(dtype)
        name = next(iter(target_modules(policy.model, "all-linear")))
        w = policy.model.get_submodule(name).weight
        with torch.no_grad():
            w.fill_(1.0)
        a, b = torch.ones(1, w.shape[1]), torch.full((w.shape[0], 1), 1e-4)
        assert low <= policy.plus(Adapter(1, 1.0, {name: (a, b)})).merged()[1] <= high
    policy = tiny.policy()
    policy.model.to(torch.bfloat16)
    policy.runner.to(torch.bfloat16)
    torch.manual_seed(0)
    shape = policy.model.get_submodule(name).weight.shape
    large = (torch.randn(1, shape[1]), torch.randn(shape[0], 1))
    assert policy.plus(Adapter(1, 1.0, {name: large})).merged()[1] == pytest.approx(1, abs=0.01)


def test_many_questions_are_asked_and_scored_part_by_part(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is that of so many rows, however many questions and adapters there are."""
    from seal.lora import sample, score

    counts = [5, 0, 7, 1]
    queries = [[Query(Prompt(f"{k} and {i}?"), f"gold {i}") for i in range(n)] for k, n in enumerate(counts)]
    prompts = [[q.prompt for q in mine] for mine in queries]
    adapters = [None] * len(counts)
    answers = sample.ask(policy, adapters, prompts, Sampling(4))
    likely = score.log_likelihood(policy, adapters, queries)
    sizes: list[int] = []
    add = sample.Decoder.run

    def run(self: sample.Decoder) -> Any:
        found = add(self)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(sample.Decoder, "run", run)
    monkeypatch.setattr(sample, "ROWS", 3)
    monkeypatch.setattr(score, "ROWS", 3)
    assert sample.ask(policy, adapters, prompts, Sampling(4)) == answers
    assert sizes == [3, 3, 3, 3, 1]
    for mine, other in zip(score.log_likelihood(policy, adapters, queries), likely, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_the_room_follows_the_memory(policy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(rank=16, targets="all-linear")
    token = bytes_per_token(policy, recipe)
    assert bytes_per_token(policy, Recipe(rank=16, targets=("q_proj",))) <= token < 200_000
    rooms = []
    for free in (1 << 10, 1 << 22, 1 << 26, 1 << 40):
        monkeypatch.setattr("seal.lora.capacity.free_memory", lambda device, free=free: free)
        rooms.append(room_for(policy, [recipe]))
    assert rooms[0] == Room(1, 1) and rooms[-1] == Room(64, 2048)
    assert all(a.slots <= b.slots and a.tokens <= b.tokens for a, b in pairwise(rooms))
    assert rooms[1].slots < 64


# ---------------------------------------------------------------------------------------------------- packing


@given(
    widths=st.lists(st.integers(1, 200), min_size=1, max_size=70),
    budget=st.integers(1, 3000),
    seed=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_a_pass_fits_and_every_token_finds_its_place(widths: list[int], budget: int, seed: int) -> None:
    left = [(seed + i) % 7 + 1 for i in range(len(widths))]
    chosen = choose(widths, left, budget)
    taken = [widths[i] for i in chosen]
    assert chosen and len(set(chosen)) == len(chosen)
    assert sum(taken) <= budget or len(taken) == 1
    assert taken == sorted(taken)
    rows = [[Row(tuple(range(n)), (False, *[True] * (n - 1)))] for n in taken]
    lines = pack(rows, "cpu")
    rectangle, n = lines.rectangle, lines.n_real
    assert n == sum(taken) <= lines.ids.numel() < n + 256
    if rectangle is None:  # it is one already: nothing is padded between lines
        assert len(taken) == 1 or taken == [lines.ids.numel() // len(taken)] * len(taken)
        return
    assert torch.equal(rectangle.index[rectangle.back], torch.arange(n))  # there and back
    assert len(rectangle.holes) + n == len(rectangle.index) and not set(rectangle.holes.tolist()) & set(
        rectangle.back.tolist()
    )
    for k, width in enumerate(taken):
        start = k * rectangle.shape[1]
        assert lines.ids[0, rectangle.index[start : start + width]].tolist() == list(range(width))


@given(n=st.integers(1, 10_000), finest=st.sampled_from([1, 16]))
def test_shapes_come_from_a_short_menu(n: int, finest: int) -> None:
    up = of_menu(n, finest)
    assert n <= up < n + max(finest, n / 4) and of_menu(up, finest) == up
    assert len({of_menu(i, finest) for i in range(1, 8192)}) < 60


@pytest.mark.parametrize("width", [16, 48, 112])
def test_attention_by_plain_products_is_causal_attention(width: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, width, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.full((1, 48, 48), -torch.inf, dtype=q.dtype).triu_(1)
    ours = attention.plain_causal(q * 0.3, k, v, mask[:, :width, :width])
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_loss_in_chunks_is_the_loss(policy: Model) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    weight, bias = torch.randn(300, 16), torch.randn(300)
    targets, share = torch.randint(0, 300, (50,)), torch.rand(50)
    each = cross_entropy(torch.nn.functional.linear(hidden, weight, bias), targets, reduction="none")
    (expected,) = torch.autograd.grad(3 * (each * share).sum(), hidden)
    for chunk in (7, 50, 1000):
        total, losses = ChunkedLoss.apply(hidden, weight, bias, targets, share, chunk)
        assert torch.allclose(losses, each, atol=1e-5)
        assert torch.allclose(torch.autograd.grad(3 * total, hidden)[0], expected, atol=1e-5)


def test_most_of_what_is_computed_is_real(policy: Model) -> None:
    words = [
        "the",
        "river",
        "town",
        "of",
        "salt",
        "and",
        "hemp",
        "lies",
        "north",
        "in",
        "the",
        "month",
        "of",
        "rain",
    ]
    jobs = [
        Job(
            tuple(Example(" ".join(words[: 3 + (i * j) % 9])) for j in range(8)),
            Recipe(rank=2, epochs=4, batch_size=8),
            i,
        )
        for i in range(24)
    ]
    tally = Tally()
    train_adapters(policy, jobs, Room(24, 4096), tally=tally)
    assert tally.real / (tally.real + tally.padded) >= 0.9
    assert tally.passes < sum(4 for _ in jobs) / 4


def test_a_prompt_is_read_once_for_all_its_samples(policy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0)
    prompts = [Prompt("a tale of salt")] * 5 + [Prompt("of hemp")] * 3
    one_by_one = [generate(policy, [p], sampling, [s])[0] for s, p in enumerate(prompts)]
    read = []
    forward = Model.forward

    def noting(self: Model, **inputs: object) -> object:
        read.append(inputs["input_ids"].shape)  # type: ignore[attr-defined]
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "forward", noting)
    assert generate(policy, prompts, sampling, list(range(8))) == one_by_one
    assert read[0][0] == 2 and read[1] == (8, 1)


def test_stopped_rows_leave_the_batch(policy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [o.adapter for o in train_adapters(policy, JOBS)] + [None]
    prompts = [[Prompt(f"{k} {q}" + "x" * q) for q in range(6)] for k in range(4)]
    often = Counter(
        "".join(a for row in ask(policy, adapters, prompts, Sampling(30)) for a in row)
    ).most_common(3)[-1][0]
    sampling = Sampling(max_tokens=30, stop=often)
    alone = [
        ask(policy, [a], [[p]], sampling)[0][0] for a, ps in zip(adapters, prompts, strict=True) for p in ps
    ]
    sizes = []
    forward = Model.forward

    def noting(self: Model, **inputs: object) -> object:
        sizes.append(len(inputs["input_ids"]))  # type: ignore[arg-type]
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "forward", noting)
    assert [a for row in ask(policy, adapters, prompts, sampling) for a in row] == alone
    assert sizes[0] == 24 and sizes[-1] < 24 and sizes == sorted(sizes, reverse=True)


def test_a_layer_that_is_no_plain_linear_is_adapted_all_the_same(policy: Model) -> None:
    """Quantised layers, and layers that another library has wrapped, get the update on top of their own
    output."""
    plain = train_adapters(policy, JOBS, Room(3, 1000))

    class Other(torch.nn.Linear):
        pass

    for name, module in target_modules(policy.runner, "all-linear").items():
        parent, _, last = name.rpartition(".")
        other = Other(module.in_features, module.out_features, bias=False)
        other.weight = module.weight
        setattr(policy.runner.get_submodule(parent), last, other)
    wrapped = train_adapters(policy, JOBS, Room(3, 1000))
    assert all(close(a.adapter, b.adapter) for a, b in zip(plain, wrapped, strict=True))


def test_on_a_device_that_is_not_waited_for_the_outcome_is_the_same(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses read back only when a job may be done: as on CUDA, where reading waits for the queue."""
    on_host = train_adapters(policy, JOBS, Room(2, 1000))
    settled = train._Training._settled

    def lazily(self: train._Training, works: list[train._Work]) -> list[train._Work]:
        return settled(self, works) if len(self.unsettled) >= 16 or any(not w.left for w in works) else works

    monkeypatch.setattr(train._Training, "_settled", lazily)
    later = train_adapters(policy, JOBS, Room(2, 1000))
    for a, b in zip(on_host, later, strict=True):
        assert close(a.adapter, b.adapter, 1e-7) and a.loss == b.loss and a.steps == b.steps


def test_4_bit_weights_train_like_the_weights_they_stand_for() -> None:
    """And not by bitsandbytes' kernels for evaluation on a CPU, which have no backward pass and say nothing
    of it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantised = load_model(ModelSpec(name="atlas", quantize="4bit", threads=None))
    dense = load_model(ModelSpec(name="atlas", dtype="bfloat16", threads=None)).model
    for name, module in quantised.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            dense.get_submodule(name).weight.data.copy_(weight)
    job = Job(
        (Example("Velora\nVelora was walled in May."),),
        Recipe(steps=8, rank=4, targets="all-linear", learning_rate=5e-3),
        0,
    )
    one, other = (
        train_adapters(p, [job])[0] for p in (quantised, Model(dense, quantised.tokenizer, "dense"))
    )
    assert one.loss == pytest.approx(other.loss, rel=0.05)
    assert one.adapter is not None
    with pytest.raises(LoraError, match="cannot be merged into 4-bit"):
        quantised.plus(one.adapter).merged()


def test_4_bit_weights_without_their_package_are_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seal.lora.load.find_spec", lambda name: None)
    with pytest.raises(LoraError, match="need the package bitsandbytes"):
        load_model(ModelSpec(name="atlas", quantize="4bit", threads=None))


def test_threads_are_within_what_the_process_may_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
