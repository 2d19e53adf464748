"""Text in, text out: sampling self-edits, answering questions through K adapters at once, likelihood of gold answers.

``Engine`` is the interface; the transformers engine serves any policy; the scripted engine answers from a function and
needs no model, for tests and for trying out a domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from seal.models.lora import Adapter, Slots
from seal.models.policy import Policy
from seal.models.tokens import encode_example, encode_prompt, end_token, pad_left, pad_rows, render
from seal.types import Example, Prompt, Query, SealError

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy. Every row has its own seed, so a sample does not depend on its batch."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: str = ""
    """Text that ends an answer once something is written (itself cut off); empty for the end token alone."""


def generate(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], batch: int = 128
) -> list[str]:
    """One text per prompt from the policy without adapters, in order. Rows of like length go together."""
    tokens = [_encode(policy, p, sampling) for p in prompts]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for i, text in zip(rows, _decode(policy, [tokens[i] for i in rows], sampling, [seeds[i] for i in rows]), strict=True):
            texts[i] = text
    return texts


def ask(
    policy: Policy,
    adapters: Sequence[Adapter | None],
    prompts_K_Q: Sequence[Sequence[Prompt]],
    sampling: Sampling,
    slots: int = 32,
) -> list[list[str]]:
    """Greedy or sampled answers of K adapters (``None``: the policy as it is) to their own lists of prompts, side by side."""
    answers: list[list[str]] = []
    for start in range(0, len(adapters), slots):
        group = prompts_K_Q[start : start + slots]
        tokens = [[_encode(policy, p, sampling) for p in prompts] for prompts in group]
        room = _room(policy, adapters[start : start + slots])
        flat, width = _rectangle(tokens)
        if not width:
            answers += [[] for _ in group]
            continue
        with room.attached() if room else nullcontext():
            texts = _decode(policy, flat, sampling, [0] * len(flat), shrink=room is None)
        answers += [texts[k * width : k * width + len(prompts)] for k, prompts in enumerate(group)]
    return answers


@torch.no_grad()
def log_likelihood(
    policy: Policy, adapters: Sequence[Adapter | None], queries_K_Q: Sequence[Sequence[Query]], slots: int = 32
) -> list[list[float]]:
    """Mean log-probability per token of each query's gold answer (end token included): one forward, no generation."""
    out: list[list[float]] = []
    for start in range(0, len(adapters), slots):
        group = queries_K_Q[start : start + slots]
        rows = [
            [
                policy.clip_row(
                    encode_example(Example(_joined(q), prompt=q.prompt.text, chat=True), policy.tokenizer, policy.chat)
                )
                for q in queries
            ]
            for queries in group
        ]
        flat, width = _rectangle(rows)
        if not width:
            out += [[] for _ in group]
            continue
        room = _room(policy, adapters[start : start + slots])
        ids, labels = pad_rows(flat, policy.device)
        with room.attached() if room else nullcontext():
            logits = policy.forward(input_ids=ids, use_cache=False).logits
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        )
        mean = (-each.sum(1) / (labels[:, 1:] != -100).sum(1).clamp(min=1)).tolist()
        out += [mean[k * width : k * width + len(queries)] for k, queries in enumerate(group)]
    return out


def _joined(query: Query) -> str:
    """The gold answer as it follows its prompt: a space between, unless the prompt ends in white space."""
    return query.gold if query.prompt.text[-1:].isspace() else " " + query.gold


def _encode(policy: Policy, prompt: Prompt, sampling: Sampling) -> list[int]:
    tokens = encode_prompt(render(prompt, policy.tokenizer, policy.chat), policy.tokenizer, policy.chat)
    if len(tokens) + sampling.max_tokens > policy.context:
        raise SealError(
            f"a prompt of {len(tokens)} tokens with room for {sampling.max_tokens} more does not fit the model's "
            f"{policy.context} positions: {prompt.text[:60]!r}…"
        )
    return tokens


def _rectangle(rows_K_Q: Sequence[Sequence[T]]) -> tuple[list[T], int]:
    """Ragged lists as one rectangle: each short list is filled up with the first row there is."""
    width = max(len(rows) for rows in rows_K_Q)
    filler = next((rows[0] for rows in rows_K_Q if rows), None)
    flat = [row for rows in rows_K_Q for row in [*rows, *[filler] * (width - len(rows))]]
    return [r for r in flat if r is not None], width


def _room(policy: Policy, adapters: Sequence[Adapter | None]) -> Slots | None:
    """Slots holding these adapters (an empty slot changes nothing), or ``None`` when there is none to hold."""
    real = [a for a in adapters if a is not None]
    if not real:
        return None
    modules = {n: policy.model.get_submodule(n) for a in real for n in a.weights}
    room = Slots(modules, len(adapters), max(a.rank for a in real), policy.device)
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            room.put(slot, adapter)
    return room


@torch.no_grad()
def _decode(
    policy: Policy, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], shrink: bool = True
) -> list[str]:
    """The decoding loop, with a KV cache. ``shrink``: stopped rows leave the batch (not while a rectangle is needed)."""
    ids, mask = pad_left(prompts, policy.device)
    draws = _draws(sampling, seeds)  # (N, max_tokens) uniform numbers, one row's own, or None
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    open_rows = set(rows)
    end = end_token(policy.tokenizer)
    cache = DynamicCache(config=policy.model.config)
    for step in range(sampling.max_tokens):
        out = policy.forward(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        tokens = _choose(out.logits[:, -1].float(), sampling, None if draws is None else draws[rows, step])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row not in open_rows:
                continue
            if token == end:
                open_rows.remove(row)
                continue
            written[row].append(token)
            if sampling.stop and sampling.stop in policy.tokenizer.decode(written[row]).lstrip():
                open_rows.remove(row)
        if not open_rows:
            break
        if shrink and len(open_rows) <= 0.7 * len(rows):
            keep = torch.tensor([i for i, row in enumerate(rows) if row in open_rows], device=ids.device)
            rows = [rows[i] for i in keep.tolist()]
            cache.batch_select_indices(keep)
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    texts = policy.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [t.lstrip().split(sampling.stop)[0] if sampling.stop else t for t in texts]


def _draws(sampling: Sampling, seeds: Sequence[int]) -> Tensor | None:
    if sampling.temperature == 0:
        return None
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(sampling.max_tokens, generator=g) for g in generators])


def _choose(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
    """The next token of each row: (N, V) → (N,). Nucleus sampling by inverting the cumulative distribution at ``draw``."""
    if draw is None:
        return logits.argmax(-1)
    probs, order = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True)
    total = probs.cumsum(-1)
    probs = probs.masked_fill(total - probs >= sampling.top_p, 0)  # the smallest set that reaches top_p
    total = probs.cumsum(-1)
    at = (total < draw.to(total.device)[:, None] * total[:, -1:]).sum(-1, keepdim=True).clamp(max=probs.shape[-1] - 1)
    return order.gather(-1, at)[:, 0]


Scripted = Callable[[Prompt], str]
"""The fake model: any function from a prompt to a text."""
