"""Text in, text out: sampling self-edits, answering questions through K adapters at once, likelihood of gold
answers.

The transformers engine serves any model. Where a model is :attr:`~seal.lora.model.Model.served` by another,
that one writes and answers (but for what a schema constrains); likelihoods are always computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from seal.lora.adapter import Adapter
from seal.lora.capacity import in_parts
from seal.lora.decoder import Decoder, encode
from seal.lora.model import Model
from seal.lora.records import Prompt, Sampling, Written, spoken


def generate(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], batch: int = 128
) -> list[str]:
    """One text per prompt from the model without adapters, in order, wherever it ends, without any thinking at
    its beginning."""
    return [spoken(written.text) or "" for written in complete(model, prompts, sampling, seeds, batch)]


def complete(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], batch: int = 128
) -> list[Written]:
    """One text per prompt from the model without adapters, in order, each told whether it was cut off. Rows
    of like length go together, and a prompt that stands there several times is read once."""
    tokens = [encode(model, p, sampling) for p in prompts]
    if model.served is not None and not sampling.schema and tokens:
        return list(model.served.complete(tokens, sampling, seeds, [None] * len(tokens), model.stack))
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    texts = [Written("")] * len(prompts)

    def some(start: int, stop: int) -> None:
        with Decoder(model) as decoder:
            numbers = {decoder.add(tokens[i], sampling, seeds[i]): i for i in order[start:stop]}
            for number, text in decoder.run().items():
                texts[numbers[number]] = text

    in_parts(len(order), batch, some)
    return texts


ROWS = 512
"""Prompts that are answered at once: what a question needs of memory, so many times."""


def ask(
    model: Model,
    adapters: Sequence[Adapter | None],
    prompts_K_Q: Sequence[Sequence[Prompt]],
    sampling: Sampling,
    slots: int = 32,
) -> list[list[str]]:
    """Greedy or sampled answers of K adapters (``None``: the model as it is) to their own lists of prompts,
    side by side."""
    answers: list[list[str]] = [[] for _ in adapters]
    if model.served is not None and not sampling.schema and any(prompts_K_Q):
        flat = [
            (a, encode(model, p, sampling))
            for a, prompts in zip(adapters, prompts_K_Q, strict=True)
            for p in prompts
        ]
        texts = iter(
            model.served.complete(
                [t for _, t in flat], sampling, [0] * len(flat), [a for a, _ in flat], model.stack
            )
        )
        return [[spoken(next(texts).text) or "" for _ in prompts] for prompts in prompts_K_Q]

    def some(start: int, stop: int) -> None:
        answers[start:stop] = [[] for _ in range(start, stop)]
        places = [(k, p) for k in range(start, stop) for p in prompts_K_Q[k]]
        for first in range(0, len(places), ROWS):
            with Decoder(model) as decoder:
                numbers = [
                    (k, decoder.add(encode(model, p, sampling), sampling, adapter=adapters[k]))
                    for k, p in places[first : first + ROWS]
                ]
                written = decoder.run()
            for k, number in numbers:
                answers[k].append(spoken(written[number].text) or "")

    in_parts(len(adapters), slots, some)
    return answers
