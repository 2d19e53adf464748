"""The stepper: requests come and go, and each is written as if it were alone."""

from __future__ import annotations

import pytest

from seal.lora.adapter import Adapter
from seal.lora.decoder import Decoder, encode
from seal.lora.model import Model
from seal.lora.records import Example, Prompt, Recipe, Sampling
from seal.lora.sample import ask, complete
from seal.lora.train import Job, train_adapters

PROMPTS = [Prompt(x) for x in ("abc", "a longer prompt than that", "?", "x = 1", "once more")]


@pytest.fixture
def adapters(policy: Model) -> list[Adapter]:
    recipe = Recipe(rank=2, steps=8, learning_rate=0.05, targets="all-linear")
    jobs = [Job((Example(f"{word} " * 6),), recipe, s) for s, word in enumerate(("red", "blue"))]
    return [t.adapter for t in train_adapters(policy, jobs) if t.adapter is not None]


def test_what_comes_later_is_written_as_if_alone(policy: Model) -> None:
    sampling, drawn = Sampling(12), Sampling(7, temperature=1.0, top_p=0.9)
    alone = [
        complete(policy, [p], s, [i])[0]
        for i, (p, s) in enumerate(zip(PROMPTS, [sampling, drawn] * 3, strict=False))
    ]
    with Decoder(policy) as decoder:
        for i, (prompt, how) in enumerate(zip(PROMPTS, [sampling, drawn] * 3, strict=False)):
            assert decoder.add(encode(policy, prompt, how), how, seed=i) == i
            decoder.step()
        found = decoder.run()
    assert [found[i] for i in range(len(PROMPTS))] == alone and not decoder.busy


def test_tokens_are_told_as_they_come(policy: Model) -> None:
    with Decoder(policy) as decoder:
        numbers = [decoder.add(encode(policy, p, Sampling(6)), Sampling(6)) for p in PROMPTS]
        told: dict[int, list[int]] = {n: [] for n in numbers}
        while decoder.busy:
            for number, token in decoder.step():
                told[number].append(token)
    assert {n: policy.tokenizer.decode(t) for n, t in told.items()} == {
        n: w.text for n, w in decoder.written.items()
    }


def test_what_is_cancelled_is_written_no_further_and_nobody_else_notices(policy: Model) -> None:
    sampling = Sampling(10)
    expected = complete(policy, PROMPTS, sampling, [0] * 5)
    with Decoder(policy) as decoder:
        numbers = [decoder.add(encode(policy, p, sampling), sampling) for p in PROMPTS]
        decoder.step()
        decoder.cancel(numbers[1])
        decoder.cancel(99)
        later = decoder.add(encode(policy, PROMPTS[0], sampling), sampling)
        decoder.cancel(later)
        assert numbers[1] not in [n for n, _ in decoder.step()]
        found = decoder.run()
    assert sorted(found) == [n for n in numbers if n != numbers[1]]
    assert all(found[n] == expected[n] for n in found)
    with Decoder(policy) as decoder:
        only = decoder.add(encode(policy, PROMPTS[0], sampling), sampling)
        decoder.step()
        decoder.cancel(only)
        assert decoder.step() == [] and not decoder.busy


def test_every_request_goes_through_its_own_adapter_whoever_is_beside_it(
    policy: Model, adapters: list[Adapter]
) -> None:
    one, two = adapters
    mixed = [one, None, two, one, None]
    expected = [ask(policy, [a], [[p]], Sampling(9))[0][0] for a, p in zip(mixed, PROMPTS, strict=True)]
    assert (
        len(set(ask(policy, [one, two, None], [[PROMPTS[0]]] * 3, Sampling(9))[i][0] for i in range(3))) == 3
    )
    with Decoder(policy) as decoder:
        for adapter, prompt in zip(mixed[:3], PROMPTS, strict=False):
            decoder.add(encode(policy, prompt, Sampling(9)), Sampling(9), adapter=adapter)
        decoder.step()
        for adapter, prompt in zip(mixed[3:], PROMPTS[3:], strict=True):
            decoder.add(encode(policy, prompt, Sampling(9)), Sampling(9), adapter=adapter)
        found = decoder.run()
    assert [found[i].text for i in range(5)] == expected
    assert "forward" not in policy.model.model.layers[0].self_attn.q_proj.__dict__, "nothing stays attached"
