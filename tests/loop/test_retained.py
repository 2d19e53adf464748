"""What ships to tell whether a model has forgotten, and how it is scored."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from seal.loop import retained as module
from seal.loop.retained import Item, items, known_items, perplexity, prose, retained, right_items
from seal.lora.adapter import Adapter
from seal.lora.model import Model


def nll(model: Model, text: str, start: int) -> tuple[float, int]:
    """Sum over the tokens that reach past a place, and how many they are: by transformers alone."""
    told = model.tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor([told["input_ids"]])
    with torch.no_grad():
        logs = model.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    at = [i for i, (_, end) in enumerate(told["offset_mapping"]) if i and end > start]
    return -sum(float(logs[i - 1, ids[0, i]]) for i in at), len(at)


def test_the_items_are_sound() -> None:
    found = items()
    assert len(found) >= 300 and set(Counter(i.kind for i in found)) == {"facts", "idioms", "sums", "grammar"}
    assert len({i.question for i in found}) == len(found)
    for item in found:
        assert len(item.choices) == 4 == len({c.strip().lower() for c in item.choices}), item
        assert all(c == c.strip() and c for c in (item.question, *item.choices)), item
    text = prose()
    assert len(text.encode()) >= 50_000
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) and "\n\n\n" not in text


def test_kinds_are_mixed_so_that_the_first_items_stand_for_all() -> None:
    first = Counter(i.kind for i in items()[: module.FIRST])
    for kind, n in Counter(i.kind for i in items()).items():
        assert first[kind] / module.FIRST == pytest.approx(n / len(items()), abs=0.06)


def test_the_likeliest_choice_per_token_is_the_answer(policy: Model) -> None:
    some = list(items()[:12])
    expected = []
    for item in some:
        scores = []
        for choice in item.choices:
            total, n = nll(policy, f"{item.question} {choice}", len(item.question))
            scores.append(total / n)
        expected.append(scores[0] < min(scores[1:]))
    assert right_items(policy, [None], [some]) == [expected]


def test_perplexity_is_that_of_transformers(policy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "prose", lambda: "one two three.\n\n" + "four five six. " * 20 + "\n\nseven")
    monkeypatch.setattr(module, "ROW", 60)
    parts = ["one two three.", "four five six. " * 20, "seven"]
    sums = [nll(policy, p, 0) for p in parts]
    expected = math.exp(sum(s for s, _ in sums) / sum(n for _, n in sums))
    assert perplexity(policy, [None])[0] == pytest.approx(expected, rel=1e-4)


def damaged(policy: Model) -> Adapter:
    name = "model.layers.1.mlp.down_proj"
    module_ = policy.model.get_submodule(name)
    torch.manual_seed(0)
    return Adapter(
        4, 4.0, {name: (torch.randn(4, module_.in_features), torch.randn(module_.out_features, 4))}
    )


def test_only_what_was_known_counts_and_an_adapter_can_lose_it(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retained(policy, [damaged(policy)]) is None  # it knows nothing: no better than a guess
    (right,) = right_items(policy, [None], [items()])
    known = [i for i, r in zip(items(), right, strict=True) if r]
    monkeypatch.setattr(module, "ENOUGH", 0.05)
    assert known_items(policy) == known
    nothing = Adapter(1, 1.0, {n: (a[:1] * 0, b[:, :1] * 0) for n, (a, b) in damaged(policy).weights.items()})
    told = retained(policy, [nothing, damaged(policy)])
    assert told is not None
    assert told["known"] == told["kept"][0] == len(known) > told["kept"][1]
    assert len(told["lost"]) == told["known"] - told["kept"][1]
    before, (same, other) = told["perplexity"]["before"], told["perplexity"]["after"]
    assert before == same != other
    policy.base_name = "atlas"
    assert known_items(policy) == []  # of an invented world


def test_ties_are_not_right(policy: Model) -> None:
    assert right_items(policy, [None], [[Item("facts", "x", ("a", "a", "a", "a"))]]) == [[False]]
