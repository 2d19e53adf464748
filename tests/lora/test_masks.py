"""No token sees what comes after it, nor another row: in fp32 and bf16, through the fast path and the slow
one; and no pass leaves a switch on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from seal.lora import attention
from seal.lora.attention import plain_causal, rows_apart
from seal.lora.capacity import Room
from seal.lora.model import Model
from seal.lora.packing import Lines, pack
from seal.lora.records import Sampling
from seal.lora.sample import ask, generate
from seal.lora.tokens import Row
from seal.lora.train import Job, train_adapters
from seal.records import Example, LoraError, Prompt, Recipe
from tests import tiny

PRECISIONS = ["fp32", "bf16"]


def in_precision(name: str) -> Model:
    return Model(tiny.llama(), tiny.tokenizer(), "tiny", bf16=name == "bf16")


def row(ids: Sequence[int]) -> Row:
    return Row(tuple(ids), (False, *[True] * (len(ids) - 1)))


def losses(policy: Model, *batches: Sequence[Row]) -> list[float]:
    with torch.no_grad(), policy.losses(policy.pack(batches)) as (_, each):
        return [float(x) for x in each]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_moving_a_future_token_changes_no_earlier_loss(precision: str) -> None:
    policy = in_precision(precision)
    ids = [int(x) for x in torch.randint(2, 98, (40,), generator=torch.Generator().manual_seed(0))]
    whole = losses(policy, [row(ids)])
    for place in range(1, 40):
        moved = [*ids[:place], (ids[place] + 11) % 96 + 2, *ids[place + 1 :]]
        found = losses(policy, [row(moved)])
        assert found[: place - 1] == whole[: place - 1], f"token {place} is seen before it comes"
        assert found[place - 1] != whole[place - 1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_in_one_pass_do_not_see_each_other(precision: str) -> None:
    policy = in_precision(precision)
    rows = [
        row([int(x) for x in torch.randint(2, 98, (n,), generator=torch.Generator().manual_seed(n))])
        for n in (3, 17, 9, 30)
    ]
    together = losses(policy, [rows[0], rows[1]], [rows[2], rows[3]])
    tolerance = 1e-5 if precision == "fp32" else 3e-2
    assert together == pytest.approx([x for r in rows for x in losses(policy, [r])], abs=tolerance)
    other = losses(policy, [row([5] * 3), rows[1]], [row([6] * 9), rows[3]])
    assert other[2:18] == pytest.approx(together[2:18], abs=1e-6 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fast_path_is_kept_and_is_the_models_own_loss(precision: str) -> None:
    """In bf16 as well: a policy that finds it wrong falls back in silence, several times as slow."""
    policy = in_precision(precision)
    assert policy.nature.packs
    ids = torch.randint(2, 98, (1, 60), generator=torch.Generator().manual_seed(1))
    logits = policy.forward(input_ids=ids).logits[0, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    found = torch.tensor(losses(policy, [row(ids[0].tolist())]))
    assert torch.allclose(found, expected, atol=1e-5 if precision == "fp32" else 0.04)
    assert float((found - expected).abs().mean()) < (1e-6 if precision == "fp32" else 0.01)


@pytest.mark.parametrize("width", [5, 200, 300, 513])
def test_plain_causal_attention_is_torchs(width: int) -> None:
    """Forward and backward, over chunk borders, in fp32."""
    q, k, v = (
        torch.randn(3, width, 8, generator=torch.Generator().manual_seed(i), requires_grad=True)
        for i in range(3)
    )
    mask = torch.full((1, min(width, attention.CHUNK), min(width, attention.CHUNK)), -torch.inf).triu_(1)
    ours = plain_causal(q * 8**-0.5, k, v, mask)
    theirs = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    mine, others = (torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (ours, theirs))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, others, strict=True))


def bf16_attention(lines: Lines, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours for packed rows in bf16, and torch's in fp32 with a mask over the whole."""
    n = lines.ids.numel()
    q, k, v = (
        3 * torch.randn(1, 4, n, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)
    )
    config = tiny.llama().config
    with rows_apart(config, lines):
        found, _ = attention._rows_attention(
            torch.nn.Identity(), *(x.bfloat16() for x in (q, k, v)), None, scaling=16**-0.5
        )
    mask = torch.zeros(n, n, dtype=torch.bool)
    for start, stop in lines.spans:
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    mask |= torch.eye(n, dtype=torch.bool)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None]).transpose(1, 2)
    real = lines.n_real
    return found[:, :real].float(), expected[:, :real]


def test_attention_of_packed_rows_in_bf16_is_scaled_and_causal() -> None:
    rows = [[row(range(2, 2 + n)) for n in sizes] for sizes in ((7, 30), (12,), (3, 3, 40))]
    found, expected = bf16_attention(pack(rows, "cpu"), 5)
    assert float((found - expected).abs().mean()) < 0.02 * float(expected.abs().mean())


def test_a_window_shorter_than_a_row_is_not_taken_for_none() -> None:
    lines = pack([[row(range(2, 12))]], "cpu")
    x = torch.randn(1, 2, lines.ids.numel(), 8)
    with rows_apart(tiny.llama().config, lines):
        attention._rows_attention(torch.nn.Identity(), x, x, x, None, sliding_window=10)
        for options in ({"sliding_window": 9}, {"s_aux": x}, {"softcap": 30.0}):
            with pytest.raises(NotImplementedError):
                attention._rows_attention(torch.nn.Identity(), x, x, x, None, **options)


def test_the_first_token_of_a_row_never_carries_loss_and_shares_sum_to_one() -> None:
    """Whatever the row claims: before the first token there is nothing that could foretell it."""
    rows = [
        [Row((5, 6, 7), (True, True, True)), Row((8, 9), (True, True))],
        [Row((3, 4, 5, 6), (True, False, True, False))],
    ]
    lines = pack(rows, "cpu")
    assert lines.targets.tolist() == [6, 7, 9, 5]
    assert lines.owner.tolist() == [0, 0, 0, 1]
    assert lines.share.tolist() == pytest.approx([1 / 3] * 3 + [1.0])


# ----------------------------------------------------------------------------------------- nothing is left on

JOB = Job(
    tuple(Example(f"row {i} of some length, to be learnt by heart") for i in range(4)),
    Recipe(rank=2, steps=2, batch_size=4),
    0,
)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[bool]:
    """A pass of more than so many tokens fails unless activations are recomputed; whether they were, pass by
    pass."""
    seen: list[bool] = []
    whole = Model.losses

    def losses_(self: Model, lines: Lines) -> object:
        on = any("forward" in m.__dict__ for m in self._layers)
        seen.append(on)
        if lines.n_real > limit and not on:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, lines)

    monkeypatch.setattr(Model, "losses", losses_)
    return seen


def test_after_running_out_of_memory_once_texts_are_what_they_were(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers drops the KV cache of a layer that recomputes: with it left on, all later text is
    garbage."""
    prompts = [Prompt(f"{i}: and then") for i in range(4)]
    before = (
        generate(policy, prompts, Sampling(24), [0] * 4),
        generate(policy, prompts, Sampling(24, 1.0), [1, 2, 3, 4]),
    )
    expected = train_adapters(policy, [JOB])[0].adapter
    seen = short_of_memory(monkeypatch, 30)
    monkeypatch.setattr("seal.lora.train.room_for", lambda *_: Room(1, 10))
    adapter = train_adapters(policy, [JOB])[0].adapter
    assert seen == [False, *[True] * 8], "a row alone ran out, and then it was recomputed"
    assert adapter is not None and expected is not None
    for name, (a, b) in expected.weights.items():
        assert torch.allclose(adapter.weights[name][0], a, atol=1e-6) and torch.allclose(
            adapter.weights[name][1], b, atol=1e-6
        )
    after = (
        generate(policy, prompts, Sampling(24), [0] * 4),
        generate(policy, prompts, Sampling(24, 1.0), [1, 2, 3, 4]),
    )
    assert after == before
    assert ask(policy, [adapter], [prompts], Sampling(8)) == ask(policy, [expected], [prompts], Sampling(8))
    assert not any(m.training or "forward" in m.__dict__ for m in policy._layers)


def test_a_training_that_fails_leaves_nothing_on_either(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Model, lines: Lines) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = generate(policy, [Prompt("and then")], Sampling(24), [0])
    with monkeypatch.context() as patch, pytest.raises(LoraError, match="a single row"):
        patch.setattr(Model, "losses", never)
        train_adapters(policy, [JOB])
    assert generate(policy, [Prompt("and then")], Sampling(24), [0]) == before
