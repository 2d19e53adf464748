"""The invariants of K adapters side by side, in fp32 on a tiny model, with PEFT and torch.optim.AdamW as the oracle.

- one job equals the same job by PEFT; a fresh adapter is PEFT's; an exported one gives the same logits there;
- K together equal K alone, to rounding, whatever the number of slots and the size of a pass; ranks may differ;
- permuting jobs permutes adapters and nothing else; the same jobs give the same bits;
- each adapter has its own seed, order of rows, learning rate, schedule, budget, clipping, and the mean over its own
  tokens as its loss;
- an adapter that has finished is not touched again; one that diverges harms no neighbour; a job without loss tokens
  changes nothing; the base weights are bit-identical afterwards;
- an adapter beneath is as if merged, and stays bit-identical;
- answers side by side equal answers alone; a sample depends on its seed and not on its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from seal.lora.adapter import Adapter, away_from, init_adapter, join, target_modules
from seal.lora.capacity import Room
from seal.lora.chat import conventions_of
from seal.lora.decoder import _choose
from seal.lora.files import load_peft, save_peft
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import ask, generate
from seal.lora.score import divergence, log_likelihood
from seal.lora.slots import Slots
from seal.lora.tokens import encode_example
from seal.lora.train import Job, learning_rate, plan_batches, train_adapters
from seal.records import Example, LoraError, Prompt, Query, Recipe
from tests import tiny

ROWS = tuple(
    Example(t)
    for t in (
        "Velora lies in Tarn.",
        "Its coin is the mark.",
        "In March it was founded, and walled in June.",
        "Salt.",
    )
)
RECIPE = Recipe(
    rank=4,
    alpha=8,
    targets="all-linear",
    learning_rate=5e-3,
    steps=7,
    batch_size=2,
    clip=0.5,
    weight_decay=0.1,
)


def close(a: Adapter, b: Adapter, atol: float = 2e-5) -> bool:
    return all(
        torch.allclose(x, y, atol=atol)
        for n in a.weights
        for x, y in zip(a.weights[n], b.weights[n], strict=True)
    )


def same(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(x, y) for n in a.weights for x, y in zip(a.weights[n], b.weights[n], strict=True))


def by_peft(job: Job, policy: Model) -> Adapter:
    """The same job the common way: PEFT's layers, torch's optimiser and clipping, transformers' schedule,
    padded rows."""
    recipe = job.recipe
    start = init_adapter(target_modules(policy.model, recipe.targets), recipe, job.seed)
    names = sorted({n.rsplit(".", 1)[-1] for n in start.weights})
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, lora_dropout=0.0)
    model = peft.get_peft_model(tiny.llama(), config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (a, b) in start.weights.items():
            parameters[f"base_model.model.{name}.lora_A.default.weight"].copy_(a)
            parameters[f"base_model.model.{name}.lora_B.default.weight"].copy_(b)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rows = [encode_example(e, policy.conventions) for e in job.examples]
    batches = plan_batches([len(r.ids) for r in rows], recipe, job.seed)
    make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[
        recipe.schedule
    ]
    schedule = make(optimizer, math.ceil(recipe.warmup * len(batches)), len(batches))
    for batch in batches:
        width = max(len(rows[i].ids) for i in batch)
        ids = torch.tensor([[*rows[i].ids, *[1] * (width - len(rows[i].ids))] for i in batch])
        labels = torch.tensor(
            [
                [t if on else -100 for t, on in zip(rows[i].ids, rows[i].loss, strict=True)]
                + [-100] * (width - len(rows[i].ids))
                for i in batch
            ]
        )
        mask = torch.tensor([[1] * len(rows[i].ids) + [0] * (width - len(rows[i].ids)) for i in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        schedule.step()
    weights = {
        n: (
            parameters[f"base_model.model.{n}.lora_A.default.weight"].detach().clone(),
            parameters[f"base_model.model.{n}.lora_B.default.weight"].detach().clone(),
        )
        for n in start.weights
    }
    return Adapter(recipe.rank, recipe.alpha, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": ("q_proj", "v_proj"), "clip": None, "weight_decay": 0.0},
        {"schedule": "cosine", "warmup": 0.3},
        {"batch_size": 1, "rank": 2},
    ],
)
def test_one_job_equals_the_same_job_by_peft(policy: Model, changes: dict[str, object]) -> None:
    job = Job(ROWS, RECIPE.model_copy(update=changes), seed=3)
    adapter = train_adapters(policy, [job])[0].adapter
    assert adapter is not None
    assert close(adapter, by_peft(job, policy))
    assert any(b.abs().max() > 1e-3 for _, b in adapter.weights.values())  # and it did learn something


def mixed_jobs() -> list[Job]:
    return [
        Job(ROWS, RECIPE, 1),
        Job(ROWS[:2], RECIPE.model_copy(update={"rank": 2, "learning_rate": 1e-2, "steps": 3}), 2),
        Job(
            ROWS[1:],
            RECIPE.model_copy(update={"targets": ("q_proj",), "steps": None, "tokens": 200, "batch_size": 1}),
            3,
        ),
        Job((), RECIPE, 4),
        Job(
            ROWS[2:],
            RECIPE.model_copy(update={"rank": 8, "schedule": "cosine", "steps": None, "epochs": 4}),
            5,
        ),
        Job(
            (Example("two months later.", prompt="It was walled "),),
            RECIPE.model_copy(update={"weight_decay": 0.0}),
            6,
        ),
    ]


@pytest.mark.parametrize(
    "room", [Room(1, 1), Room(2, 100), Room(3, 10_000), Room(32, 10_000), Room(32, 60)], ids=str
)
def test_together_equals_alone_whatever_the_room(policy: Model, room: Room) -> None:
    jobs = mixed_jobs()
    together = train_adapters(policy, jobs, room)
    for job, outcome in zip(jobs, together, strict=True):
        alone = train_adapters(policy, [job])[0]
        assert outcome.adapter is not None and alone.adapter is not None
        assert outcome.adapter.rank == job.recipe.rank
        assert close(outcome.adapter, alone.adapter)
        assert (outcome.steps, outcome.tokens) == (alone.steps, alone.tokens)
        assert outcome.loss == pytest.approx(alone.loss, abs=1e-4)


def test_permuting_jobs_permutes_adapters_and_nothing_else(policy: Model) -> None:
    jobs = mixed_jobs()
    order = [4, 0, 5, 2, 1, 3]
    straight = train_adapters(policy, jobs)
    shuffled = train_adapters(policy, [jobs[i] for i in order])
    for place, i in enumerate(order):
        a, b = shuffled[place].adapter, straight[i].adapter
        assert a is not None and b is not None and close(a, b)


def test_a_finished_adapter_is_not_touched_again(policy: Model) -> None:
    """A short job beside a long one ends with exactly the bits it has when both end together."""
    short, long = (
        Job(ROWS, RECIPE.model_copy(update={"steps": 3}), 1),
        Job(ROWS, RECIPE.model_copy(update={"steps": 9}), 2),
    )
    other = Job(ROWS, RECIPE.model_copy(update={"steps": 3}), 2)
    # Same rows, seeds and shapes for the first three steps; the cosine of `other` ends where `short` does.
    constant = {"schedule": "constant"}
    jobs = [replace(j, recipe=j.recipe.model_copy(update=constant)) for j in (short, long, other)]
    beside_long = train_adapters(policy, [jobs[0], jobs[1]])[0].adapter
    beside_equal = train_adapters(policy, [jobs[0], jobs[2]])[0].adapter
    assert beside_long is not None and beside_equal is not None and same(beside_long, beside_equal)


def test_training_is_bit_identical_when_repeated(policy: Model) -> None:
    first, second = (train_adapters(policy, mixed_jobs()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.adapter is not None and b.adapter is not None and same(a.adapter, b.adapter)


def test_the_base_is_bit_identical_after_a_wave(policy: Model) -> None:
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    logits = policy.forward(input_ids=torch.arange(20)[None]).logits
    train_adapters(policy, mixed_jobs())
    assert all(torch.equal(before[n], p) for n, p in policy.model.named_parameters())
    assert torch.equal(
        policy.forward(input_ids=torch.arange(20)[None]).logits, logits
    )  # no hook is left behind


def test_a_job_without_loss_tokens_changes_nothing(policy: Model) -> None:
    outcome = train_adapters(policy, [Job((), RECIPE, 1)])[0]
    assert outcome.adapter is not None and outcome.steps == 0
    assert all(not b.any() for _, b in outcome.adapter.weights.values())


def test_a_diverging_job_is_caught_and_harms_no_neighbour(policy: Model) -> None:
    start = init_adapter(target_modules(policy.model, "all-linear"), RECIPE, 1)
    huge = Adapter(start.rank, start.alpha, {n: (a, b + 1e30) for n, (a, b) in start.weights.items()})
    wild, calm = Job(ROWS, RECIPE, 1, start=huge), Job(ROWS, RECIPE, 2)
    first, second = train_adapters(policy, [wild, calm])
    alone = train_adapters(policy, [calm])[0]
    assert first.adapter is None and first.steps < RECIPE.steps  # stopped as soon as it was seen
    assert second.adapter is not None and alone.adapter is not None and close(second.adapter, alone.adapter)


def test_the_budget_in_tokens_is_met_by_the_first_step_that_reaches_it() -> None:
    lengths = [10, 20, 30]
    batches = plan_batches(
        lengths, RECIPE.model_copy(update={"steps": None, "tokens": 100, "batch_size": 1}), 0
    )
    total = sum(lengths[i] for b in batches for i in b)
    assert total >= 100 and total - lengths[batches[-1][0]] < 100
    exact = plan_batches(
        [25] * 4, RECIPE.model_copy(update={"steps": None, "tokens": 100, "batch_size": 1}), 0
    )
    assert len(exact) == 4, "the step that just reaches it is the last"


def test_a_fresh_adapter_is_pefts(policy: Model) -> None:
    """A uniform in ±1/√in, B zero: the bound is reached, not passed, and the spread is the uniform one's."""
    recipe = RECIPE.model_copy(update={"rank": 64})
    modules = target_modules(policy.model, "all-linear")
    for name, (a, b) in init_adapter(modules, recipe, 5).weights.items():
        bound = modules[name].in_features ** -0.5
        assert 0.97 * bound < a.abs().max() <= bound and not b.any()
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_of_a_job_that_diverges_only_the_tokens_that_it_saw_are_counted(policy: Model) -> None:
    start = init_adapter(target_modules(policy.model, "all-linear"), RECIPE, 1)
    huge = Adapter(start.rank, start.alpha, {n: (a, b + 1e30) for n, (a, b) in start.weights.items()})
    (wild,), (calm,) = (train_adapters(policy, [Job(ROWS, RECIPE, 1, start=s)]) for s in (huge, None))
    assert wild.adapter is None and 0 < wild.tokens < calm.tokens and wild.steps < calm.steps


def test_rows_come_in_an_order_drawn_from_the_jobs_own_seed() -> None:
    recipe = Recipe(epochs=3, batch_size=2)
    orders = {seed: plan_batches([5] * 12, recipe, seed) for seed in range(6)}
    assert len({str(o) for o in orders.values()}) == 6 and orders[3] == plan_batches([5] * 12, recipe, 3)
    for batches in orders.values():
        epochs = [[i for b in batches[e * 6 : e * 6 + 6] for i in b] for e in range(3)]
        assert all(e != sorted(e) for e in epochs) and len({tuple(e) for e in epochs}) == 3


def test_the_loss_that_is_told_is_the_mean_over_the_steps_own_tokens(policy: Model) -> None:
    """Of short and long rows together, beside another job, at the first step: what the untouched model
    gives."""
    recipe = RECIPE.model_copy(update={"steps": 1, "batch_size": 4})
    told = [
        t.loss[0]
        for t in train_adapters(policy, [Job(ROWS, recipe, 1), Job(ROWS[:1], recipe, 2)], Room(2, 10_000))
    ]
    for rows, loss in zip((ROWS, ROWS[:1]), told, strict=True):
        each = []
        for row in (encode_example(e, policy.conventions) for e in rows):
            logits = policy.forward(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            each += cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none").tolist()
        assert loss == pytest.approx(sum(each) / len(each), abs=1e-4)


def test_an_adapter_beneath_is_not_worn_away_by_weight_decay(policy: Model) -> None:
    recipe = Recipe(rank=2, steps=1)
    beneath = train_adapters(policy, [Job(ROWS, recipe, 1)])[0].adapter
    with pytest.raises(LoraError, match="weight_decay would wear away"):
        train_adapters(
            policy, [Job(ROWS, recipe.model_copy(update={"weight_decay": 0.1}), 2, beneath=beneath)]
        )


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    batch=st.integers(1, 5),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_every_row_once(lengths: list[int], batch: int, epochs: int, seed: int) -> None:
    recipe = Recipe(epochs=epochs, batch_size=batch)
    batches = plan_batches(lengths, recipe, seed)
    shown = [i for b in batches for i in b]
    assert len(batches) == epochs * math.ceil(len(lengths) / batch)
    for epoch in range(epochs):
        assert sorted(shown[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


def test_learning_rates_start_and_end_where_they_should() -> None:
    linear = Recipe(learning_rate=0.1)
    assert learning_rate(linear, 0, 10) == pytest.approx(0.1)
    assert learning_rate(linear, 9, 10) == pytest.approx(0.01)
    assert learning_rate(linear.model_copy(update={"warmup": 0.5}), 0, 10) == 0.0
    assert learning_rate(linear.model_copy(update={"schedule": "constant"}), 9, 10) == pytest.approx(0.1)


def test_an_exported_adapter_gives_the_same_logits_in_peft(policy: Model, tmp_path: Path) -> None:
    adapter = train_adapters(policy, [Job(ROWS, RECIPE, 1)])[0].adapter
    assert adapter is not None
    save_peft(adapter, tmp_path / "adapter", "tiny")
    assert same(load_peft(tmp_path / "adapter"), adapter)
    ids = torch.randint(2, 98, (1, 30), generator=torch.Generator().manual_seed(0))
    theirs = peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "adapter").eval()(input_ids=ids).logits
    room = Slots(target_modules(policy.model, "all-linear"), 1, 4, "cpu")
    room.put(0, adapter)
    with room.attached(torch.float32):
        ours = policy.forward(input_ids=ids).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(ours, policy.forward(input_ids=ids).logits, atol=1e-3)
    assert torch.allclose(theirs, policy.plus(adapter).forward(input_ids=ids).logits, atol=1e-4)


def test_last_layers_alone_leave_the_others_as_they_are_here_and_in_peft(
    policy: Model, tmp_path: Path
) -> None:
    recipe = Recipe(rank=4, alpha=8, targets="all-linear", last_layers=1, learning_rate=1e-2, epochs=3)
    job = Job((Example("What the cat sat on was the mat."),), recipe, 0)
    whole = replace(job, recipe=recipe.model_copy(update={"last_layers": None}))
    adapter, other = (t.adapter for t in train_adapters(policy, [job, whole]))
    assert adapter and other
    layers = {n.split(".")[2] for n in other.weights}
    assert {n.split(".")[2] for n in adapter.weights} == {max(layers)} != layers
    assert same(adapter, train_adapters(policy, [job])[0].adapter)
    save_peft(adapter, tmp_path / "adapter", "tiny")
    model = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "adapter"))
    trained = {n for n, _ in model.named_parameters() if "lora_A" in n}
    assert len(trained) == len(adapter.weights), "PEFT makes no adapter where there is none"


def test_loss_falls_on_the_completion_and_one_end_token_alone() -> None:
    tok = tiny.tokenizer()
    plain = conventions_of(tok)
    row = encode_example(Example("two", prompt="one "), plain)
    assert [t for t, on in zip(row.ids, row.loss, strict=True) if on] == [
        *tok("two")["input_ids"],
        tok.eos_token_id,
    ]
    assert row.ids.count(tok.eos_token_id) == 1
    open_ = encode_example(Example("two", prompt="one ", ends=False), plain)
    assert open_.ids == row.ids[:-1] and open_.loss == row.loss[:-1], "what does not end has no end token"
    whole = encode_example(Example("two"), plain)
    assert whole.loss == (False, True, True, True)


def test_answers_side_by_side_equal_answers_alone(policy: Model) -> None:
    adapters = [o.adapter for o in train_adapters(policy, mixed_jobs())] + [None]
    prompts = [[Prompt(f"{k} asks {q}?") for q in range(1 + k % 3)] for k in range(len(adapters))]
    greedy = Sampling(max_tokens=12)
    together = ask(policy, adapters, prompts, greedy)
    assert together == [ask(policy, [a], [p], greedy)[0] for a, p in zip(adapters, prompts, strict=True)]
    assert together[-1] == generate(policy, prompts[-1], greedy, [0] * len(prompts[-1]))
    queries = [[Query(p, "gold") for p in row] for row in prompts]
    lls = log_likelihood(policy, adapters, queries)
    alone = [log_likelihood(policy, [a], [q])[0] for a, q in zip(adapters, queries, strict=True)]
    assert [x for row in lls for x in row] == pytest.approx([x for row in alone for x in row], abs=1e-4)


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(policy: Model) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, top_p=0.95)
    prompts = [Prompt("a" * n) for n in (3, 30, 11, 5, 8)]
    seeds = [5, 6, 7, 8, 9]
    together = generate(policy, prompts, sampling, seeds)
    assert together == [generate(policy, [p], sampling, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == generate(policy, prompts, sampling, seeds, batch=2)
    assert len(set(generate(policy, prompts[:1] * 5, sampling, seeds))) > 1


def test_sampling_is_exact() -> None:
    """Frequencies agree with softmax at the temperature, cut at the smallest set that reaches top-p."""
    n = 20_000
    logits = torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0])
    probs = (logits / 0.7).softmax(-1)
    kept = [0, 2, 1]
    assert float(probs[kept[:2]].sum()) < 0.9 <= float(probs[kept].sum())
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0))
    tokens = _choose(logits.expand(n, -1), Sampling(1, temperature=0.7, top_p=0.9), draws)
    shares = torch.bincount(tokens, minlength=5) / n
    expected = torch.zeros(5)
    expected[kept] = probs[kept] / probs[kept].sum()
    assert torch.allclose(shares, expected, atol=0.012)
    assert not shares[[3, 4]].any()


def test_a_target_that_does_not_exist_is_one_clear_sentence(policy: Model) -> None:
    with pytest.raises(LoraError, match=r"no linear layer is named c_attn.*q_proj"):
        target_modules(policy.model, ("c_attn",))


LINES = {1: ROWS[:2], 2: ROWS[2:], 3: ROWS[1:3]}


def test_an_adapter_beneath_is_as_if_merged_and_stays_bit_identical(policy: Model) -> None:
    recipe = Recipe(rank=4, alpha=8, targets="all-linear", steps=6, learning_rate=1e-2, batch_size=2)
    first = train_adapters(policy, [Job(LINES[1], recipe, 1)])[0].adapter
    assert first is not None
    stacked = train_adapters(policy, [Job(LINES[2], recipe, 2, beneath=first), Job(LINES[3], recipe, 3)])
    alone = train_adapters(policy, [Job(LINES[3], recipe, 3)])[0].adapter
    merged = Model(tiny.policy().plus(first).merged()[0], tiny.tokenizer(), "merged")
    expected = train_adapters(merged, [Job(LINES[2], recipe, 2)])[0].adapter
    assert (
        stacked[0].adapter is not None
        and stacked[1].adapter is not None
        and expected is not None
        and alone is not None
    )
    for name, (a, b) in expected.weights.items():
        torch.testing.assert_close(stacked[0].adapter.weights[name][0], a, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(stacked[0].adapter.weights[name][1], b, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(
            stacked[1].adapter.weights[name][1], alone.weights[name][1], atol=1e-5, rtol=1e-4
        )
    both = join(first, stacked[0].adapter)
    assert both.rank == 8
    for name, (a, b) in first.weights.items():
        assert torch.equal(both.weights[name][0][:4], a)
        assert torch.equal(both.weights[name][1][:, :4], b)


def test_an_orthogonal_adapter_reads_what_those_beneath_do_not_and_trains_b_alone(policy: Model) -> None:
    recipe = Recipe(rank=4, alpha=8, targets="all-linear", steps=4, learning_rate=1e-2)
    first = train_adapters(policy, [Job(LINES[1], recipe, 1)])[0].adapter
    assert first is not None
    fresh = away_from(init_adapter(target_modules(policy.runner, "all-linear"), recipe, 2), first)
    second = train_adapters(policy, [Job(LINES[2], recipe, 2, start=fresh, beneath=first, only_b=True)])[
        0
    ].adapter
    assert second is not None
    for name, (a, b) in second.weights.items():
        assert torch.equal(a, fresh.weights[name][0])
        assert b.abs().max() > 0
        assert (a @ first.weights[name][0].T).abs().max() < 1e-5


def test_divergence_is_zero_without_a_change_and_grows_with_it(policy: Model) -> None:
    recipe = Recipe(rank=4, alpha=8, targets="all-linear", steps=6, learning_rate=1e-2)
    adapter = train_adapters(policy, [Job(LINES[1], recipe, 1)])[0].adapter
    fresh = init_adapter(target_modules(policy.runner, "all-linear"), recipe, 2)
    assert adapter is not None
    weak = Adapter(adapter.rank, adapter.alpha / 10, adapter.weights)
    none, little, much = divergence(policy, [fresh, weak, adapter], [list(LINES[1])] * 3)
    assert none == pytest.approx(0, abs=1e-6)
    assert 0 < little < much
    alone = divergence(policy, [adapter], [list(LINES[1])])[0]
    assert alone == pytest.approx(much, rel=1e-4)
