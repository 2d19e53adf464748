"""Text in, text out: sampling self-edits, answering questions through K adapters at once, likelihood of gold answers.

The transformers engine serves any policy. Where a policy is :attr:`~seal.models.policy.Policy.served` by another, that one writes and answers (but for what a
schema constrains); likelihoods are always computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from seal.models.grammar import Constraint
from seal.models.lora import Adapter, Slots
from seal.models.memory import is_out_of_memory
from seal.models.packing import pack
from seal.models.policy import Policy
from seal.models.tokens import Row, encode_example, encode_prompt, end_token, pad_left, render
from seal.types import Example, Prompt, Query, SealError, Written

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy. Every row has its own seed, so a sample does not depend on its batch."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: str = ""
    """Text that ends an answer once something is written (itself cut off); empty for the end token alone."""
    schema: str = ""
    """JSON schema, as JSON, that whatever is written must obey (unless cut off by ``max_tokens``); empty for none."""


def generate(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], batch: int = 128
) -> list[str]:
    """One text per prompt from the policy without adapters, in order, wherever it ends."""
    return [written.text for written in complete(policy, prompts, sampling, seeds, batch)]


def complete(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], batch: int = 128
) -> list[Written]:
    """One text per prompt from the policy without adapters, in order, each told whether it was cut off. Rows of like length go
    together, and a prompt that stands there several times is read once."""
    tokens = [_encode(policy, p, sampling) for p in prompts]
    if policy.served is not None and not sampling.schema and tokens:
        return list(policy.served.complete(tokens, sampling, seeds, [None] * len(tokens)))
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    texts = [Written("")] * len(prompts)

    def some(start: int, stop: int) -> None:
        rows = order[start:stop]
        for i, text in zip(rows, _decode(policy, [tokens[i] for i in rows], sampling, [seeds[i] for i in rows]), strict=True):
            texts[i] = text

    _in_parts(len(order), batch, some)
    return texts


def ask(
    policy: Policy,
    adapters: Sequence[Adapter | None],
    prompts_K_Q: Sequence[Sequence[Prompt]],
    sampling: Sampling,
    slots: int = 32,
) -> list[list[str]]:
    """Greedy or sampled answers of K adapters (``None``: the policy as it is) to their own lists of prompts, side by side."""
    answers: list[list[str]] = [[] for _ in adapters]
    if policy.served is not None and not sampling.schema and any(prompts_K_Q):
        flat = [(a, _encode(policy, p, sampling)) for a, prompts in zip(adapters, prompts_K_Q, strict=True) for p in prompts]
        texts = iter(policy.served.complete([t for _, t in flat], sampling, [0] * len(flat), [a for a, _ in flat]))
        return [[next(texts).text for _ in prompts] for prompts in prompts_K_Q]

    def some(start: int, stop: int) -> None:
        tokens = [[_encode(policy, p, sampling) for p in prompts] for prompts in prompts_K_Q[start:stop]]
        flat, width = _rectangle(tokens)
        if not width:
            return
        texts = _decode(policy, flat, sampling, [0] * len(flat), _room(policy, adapters[start:stop]))
        for k, prompts in enumerate(tokens):
            answers[start + k] = [t.text for t in texts[k * width : k * width + len(prompts)]]

    _in_parts(len(adapters), slots, some)
    return answers


@torch.no_grad()
def log_likelihood(
    policy: Policy, adapters: Sequence[Adapter | None], queries_K_Q: Sequence[Sequence[Query]], slots: int = 32
) -> list[list[float]]:
    """Mean log-probability per token of each query's gold answer (end token included): one forward, no generation."""
    found: list[list[float]] = [[] for _ in adapters]

    def some(start: int, stop: int) -> None:
        rows = [[_gold_row(policy, q) for q in queries] for queries in queries_K_Q[start:stop]]
        asked = sorted((k for k, mine in enumerate(rows) if mine), key=lambda k: sum(len(r.ids) for r in rows[k]))
        if not asked:
            return
        room = _room(policy, [adapters[start + k] for k in asked])
        lines = pack([rows[k] for k in asked], policy.device)
        with (
            room.attached(policy.runner.dtype, rectangle=lines.rectangle) if room else nullcontext(),
            policy.losses(lines) as (_, each),
        ):
            losses = iter(each.tolist())
        for k in asked:
            counts = [sum(row.loss) for row in rows[k]]
            found[start + k] = [-sum(islice(losses, n)) / max(1, n) for n in counts]

    _in_parts(len(adapters), slots, some)
    return found


@torch.no_grad()
def divergence(
    policy: Policy, adapters: Sequence[Adapter | None], examples_K_B: Sequence[Sequence[Example]], slots: int = 16
) -> list[float]:
    """KL(model ‖ model with adapter) in nats per loss token, for each adapter on its own examples: how far it has moved there."""
    found = [0.0] * len(adapters)

    def some(start: int, stop: int) -> None:
        rows = [
            [policy.clip_row(encode_example(e, policy.tokenizer, policy.chat)) for e in mine]
            for mine in examples_K_B[start:stop]
        ]
        flat, width = _rectangle(rows)
        room = _room(policy, adapters[start:stop])
        if not width or room is None:
            return
        longest = max(len(r.ids) for r in flat)
        ids = torch.tensor([[*r.ids, *[0] * (longest - len(r.ids))] for r in flat], device=policy.device)
        real = torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in flat], device=policy.device)
        loss = torch.tensor([[*r.loss, *[False] * (longest - len(r.ids))] for r in flat], device=policy.device)[:, 1:]
        for k, mine in enumerate(rows):  # what fills the rectangle up is not counted
            loss[k * width + len(mine) : (k + 1) * width] = False
        plain = policy.forward(input_ids=ids, attention_mask=real).logits[:, :-1][loss].float().log_softmax(-1)
        with room.attached(policy.runner.dtype):
            moved = policy.forward(input_ids=ids, attention_mask=real).logits[:, :-1][loss].float().log_softmax(-1)
        each = (plain.exp() * (plain - moved)).sum(-1)
        owner = torch.arange(len(flat), device=policy.device).div(width, rounding_mode="floor")[:, None].expand_as(loss)[loss]
        for k in range(stop - start):
            mine_ = each[owner == k]
            found[start + k] = float(mine_.mean()) if len(mine_) else 0.0

    _in_parts(len(adapters), slots, some)
    return found


def _in_parts(total: int, size: int, run: Callable[[int, int], None]) -> None:
    """``run(start, stop)`` over parts of ``size``; where memory runs out, over halves of them."""
    start = 0
    while start < total:
        stop = min(total, start + size)
        try:
            run(start, stop)
            start = stop
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            size = max(1, (stop - start) // 2)


def _gold_row(policy: Policy, query: Query) -> Row:
    example = Example(_joined(query, policy), prompt=query.prompt.text, chat=True)
    return policy.clip_row(encode_example(example, policy.tokenizer, policy.chat))


def _joined(query: Query, policy: Policy) -> str:
    """The gold answer as it follows its prompt: a space between, unless the prompt as the model reads it ends in white space."""
    text = render(query.prompt, policy.tokenizer, policy.chat)
    return query.gold if text[-1:].isspace() else " " + query.gold


def _encode(policy: Policy, prompt: Prompt, sampling: Sampling) -> list[int]:
    tokens = encode_prompt(render(prompt, policy.tokenizer, policy.chat), policy.tokenizer, policy.chat)
    if len(tokens) + sampling.max_tokens > policy.context:
        raise SealError(
            f"a prompt of {len(tokens)} tokens with room for {sampling.max_tokens} more does not fit the model's "
            f"{policy.context} positions: {prompt.text[:60]!r}…"
        )
    return tokens


def fits(policy: Policy, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
    """Whether every prompt, and what may be written after it, fits the model's context."""
    try:
        return all(_encode(policy, p, sampling) for p in prompts)
    except SealError:
        return False


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
    modules = {n: policy.runner.get_submodule(n) for a in real for n in a.weights}
    room = Slots(modules, len(adapters), max(a.rank for a in real), policy.device)
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            room.put(slot, adapter)
    return room


@torch.no_grad()
def _decode(
    policy: Policy, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], room: Slots | None = None
) -> list[Written]:
    """The decoding loop, with a KV cache. With ``room`` the prompts are a rectangle, as many for each of its slots.

    Rows that have stopped leave the batch, and so do slots all of whose rows have.
    """
    batch = _Batch(policy, prompts, room)
    draws = _draws(sampling, seeds)  # (N, max_tokens) uniform numbers, one row's own, or None
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    end = end_token(policy.tokenizer)
    constraint = Constraint(policy.tokenizer, sampling.schema, len(prompts)) if sampling.schema else None
    with batch:
        for step in range(sampling.max_tokens):
            logits = batch.forward()
            if constraint:
                logits = constraint.mask(logits, batch.rows)
            tokens = _choose(logits, sampling, None if draws is None else draws[batch.rows, step])
            for row, token in zip(batch.rows, tokens.tolist(), strict=True):
                if row not in open_rows:
                    continue
                if token == end:
                    open_rows.remove(row)
                    continue
                written[row].append(token)
                if constraint:
                    constraint.take(row, token)
                if sampling.stop and sampling.stop in policy.tokenizer.decode(written[row]).lstrip():
                    open_rows.remove(row)
            if not open_rows:
                break
            batch.take(tokens, open_rows)
    texts = policy.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Written(text, row in open_rows) for row, text in enumerate(answers_in(texts, sampling))]


def answers_in(texts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each up to what ends an answer, once something is written."""
    return [t.lstrip().split(sampling.stop)[0] if sampling.stop else t for t in texts]


class _Batch:
    """Rows being decoded: what goes in next, the KV cache, and which prompt and slot each row belongs to."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], room: Slots | None) -> None:
        self.policy, self.room = policy, room
        self.rows = list(range(len(prompts)))
        self.width = len(prompts) // len(room) if room else 1  # rows per slot, now
        self.wide = self.width  # and at the start: row // wide is a row's slot
        self.adapters = ExitStack()
        self.cache = DynamicCache(config=policy.runner.config)
        # Samples of one prompt share its prefill. Under adapters the same prompt is not the same computation.
        first: dict[tuple[int, ...], int] = {}
        self.repeats = [first.setdefault(tuple(p), len(first)) for p in prompts] if room is None else self.rows
        alone = list(map(list, first)) if room is None else prompts
        self.ids, self.mask = pad_left(alone, policy.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def __enter__(self) -> None:
        self._attach(None)

    def __exit__(self, *error: object) -> None:
        self.adapters.close()

    def _attach(self, slots: list[int] | None) -> None:
        self.adapters.close()
        if self.room:
            self.adapters.enter_context(self.room.attached(self.policy.runner.dtype, slots))

    def forward(self) -> Tensor:
        """Logits of the next token of every row, (N, V)."""
        out = self.policy.forward(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        if len(logits) < len(self.rows):  # the prompts have been read: one row for each of their samples
            index = torch.tensor(self.repeats, device=logits.device)
            self._select(index)
            self.mask, self.positions, logits = self.mask[index], self.positions[index], logits[index]
        return logits

    def take(self, tokens: Tensor, open_rows: set[int]) -> None:
        """Go on with these tokens, without rows that have stopped where that is worth the copy."""
        keep = self._worth_keeping(open_rows)
        if len(keep) <= 0.7 * len(self.rows):
            index = torch.tensor(keep, device=tokens.device)
            self.rows = [self.rows[i] for i in keep]
            self._select(index)
            tokens, self.mask, self.positions = tokens[index], self.mask[index], self.positions[index]
            if self.room:
                slots = list(dict.fromkeys(row // self.wide for row in self.rows))
                self.width = len(self.rows) // len(slots)
                self._attach(slots)
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def _select(self, index: Tensor) -> None:
        """These rows of the cache, whose layers may lie on several devices."""
        for layer in self.cache.layers:
            keys = getattr(layer, "keys", None)
            layer.batch_select_indices(index if keys is None else index.to(keys.device))

    def _worth_keeping(self, open_rows: set[int]) -> list[int]:
        """Places of the rows still open; with adapters, as many for every slot that has any (filled up with stopped ones)."""
        going = [i for i, row in enumerate(self.rows) if row in open_rows]
        if self.room is None:
            return going
        slots = [range(k, k + self.width) for k in range(0, len(self.rows), self.width)]
        width = max(sum(self.rows[i] in open_rows for i in places) for places in slots)
        keep = []
        for places in slots:
            still = sorted(places, key=lambda i: self.rows[i] not in open_rows)[:width]
            if self.rows[still[0]] in open_rows:
                keep += sorted(still)
        return keep


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
