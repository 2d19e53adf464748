"""The decoding loop: tokens one after another, with a KV cache, through an adapter for each row or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from seal.lora.adapter import Adapter
from seal.lora.batch import Batch
from seal.lora.grammar import Constraint
from seal.lora.model import Model
from seal.lora.nucleus import choose
from seal.lora.records import LoraError, Prompt, Sampling, Written, spoken
from seal.lora.slots import slots_of

T = TypeVar("T")


def encode(model: Model, prompt: Prompt, sampling: Sampling) -> list[int]:
    tokens = model.conventions.encode(model.conventions.render(prompt))
    if not tokens:
        raise LoraError("a prompt is empty: there is nothing to go on from")
    if len(tokens) + sampling.max_tokens > model.context:
        raise LoraError(
            f"a prompt of {len(tokens)} tokens with room for {sampling.max_tokens} more does not fit the "
            "model's "
            f"{model.context} positions: {prompt.text[:60]!r}…"
        )
    return tokens


def fits(model: Model, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
    """Whether every prompt, and what may be written after it, fits the model's context."""
    try:
        return all(encode(model, p, sampling) for p in prompts)
    except LoraError:
        return False


def rectangle_of(rows_K_Q: Sequence[Sequence[T]]) -> tuple[list[T], int]:
    """Ragged lists as one rectangle: each short list is filled up with the first row there is."""
    width = max(len(rows) for rows in rows_K_Q)
    filler = next((rows[0] for rows in rows_K_Q if rows), None)
    flat = [row for rows in rows_K_Q for row in [*rows, *[filler] * (width - len(rows))]]
    return [r for r in flat if r is not None], width


class Decoder:
    """Text, a token at a time, for requests that come and go: :meth:`add`, :meth:`step`, :meth:`cancel`. A
    context: within it the model is the decoder's, and adapters may be attached.

    Requests that are added between two steps are read together and then written side by side, each through
    its own adapter; those of one adapter need not be neighbours. Rows that have ended leave, and so do
    adapters all of whose rows have.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.written: dict[int, Written] = {}
        """What is finished, by its number."""
        self._new: list[_Request] = []
        self._cohorts: list[_Cohort] = []
        self._attached: _Cohort | None = None
        self._count = 0

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()

    def add(
        self, prompt: Sequence[int], sampling: Sampling, seed: int = 0, adapter: Adapter | None = None
    ) -> int:
        """A request: the tokens of a prompt (:func:`encode`), and how to go on. Its number."""
        self._new.append(_Request(self._count, tuple(prompt), sampling, seed, adapter))
        self._count += 1
        return self._count - 1

    @property
    def busy(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._new or self._cohorts)

    @torch.no_grad()
    def step(self) -> list[tuple[int, int]]:
        """One token more of every request: (its number, the token). A request whose end has come is in
        :attr:`written` afterwards, and an end is no token."""
        alike: dict[tuple[Sampling, int], list[_Request]] = {}
        for r in self._new:  # one length at a time, where the model reads no padded prompts
            alike.setdefault((r.sampling, 0 if self.model.nature.pads else len(r.prompt)), []).append(r)
        self._cohorts += [_Cohort(self.model, mine, sampling) for (sampling, _), mine in alike.items()]
        self._new = []
        tokens: list[tuple[int, int]] = []
        for cohort in list(self._cohorts):
            if not cohort.over:
                self._attach(cohort)
                tokens += cohort.step()
            if cohort.over:
                self.written |= cohort.texts()
                self._detach()
                self._cohorts.remove(cohort)
        return tokens

    def cancel(self, number: int) -> None:
        """A request is no longer wanted: nothing more of it is written. Unknown and finished ones are no
        matter."""
        self._new = [r for r in self._new if r.number != number]
        for cohort in self._cohorts:
            cohort.cancel(number)

    def run(self) -> dict[int, Written]:
        """Everything to its end."""
        while self.busy:
            self.step()
        return self.written

    def _attach(self, cohort: _Cohort) -> None:
        if self._attached is not cohort:
            self._detach()
            cohort.batch.attach()
            self._attached = cohort

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.batch.adapters.close()
            self._attached = None


@dataclass(frozen=True)
class _Request:
    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    adapter: Adapter | None


class _Cohort:
    """Requests that were read together."""

    def __init__(self, model: Model, requests: Sequence[_Request], sampling: Sampling) -> None:
        self.conventions, self.sampling = model.conventions, sampling
        adapters = list(dict.fromkeys(r.adapter for r in requests))
        room = slots_of(model.runner, adapters, model.device)
        by_slot = [[r for r in requests if r.adapter is a] for a in adapters] if room else [list(requests)]
        rows, width = rectangle_of(by_slot)  # with adapters as many rows for each: a short one is filled up
        mine = [k * width + i for k, slot in enumerate(by_slot) for i in range(len(slot))]
        self.requests = {row: rows[row] for row in mine}
        self.batch = Batch(model, [r.prompt for r in rows], room)
        self.draws = _draws(
            sampling, [r.seed for r in rows]
        )  # (N, max_tokens) uniform numbers, one row's own, or None
        self.ids: list[list[int]] = [[] for _ in rows]
        self.open = set(mine)
        self.ends = model.conventions.ends or {model.conventions.end}
        self.constraint = Constraint(model.tokenizer, sampling.schema, len(rows)) if sampling.schema else None
        self.steps = 0
        self.over = not sampling.max_tokens

    def step(self) -> list[tuple[int, int]]:
        """One token more of every row that is open."""
        logits = self.batch.forward()
        if self.constraint:
            logits = self.constraint.mask(logits, self.batch.rows)
        tokens = _choose(
            logits, self.sampling, None if self.draws is None else self.draws[self.batch.rows, self.steps]
        )
        self.steps += 1
        found = []
        for row, token in zip(self.batch.rows, tokens.tolist(), strict=True):
            if row in self.open and self._goes_on(row, token):
                found.append((self.requests[row].number, token))
        self.over = not self.open or self.steps == self.sampling.max_tokens
        if not self.over:
            self.batch.take(tokens, self.open)
        return found

    def _goes_on(self, row: int, token: int) -> bool:
        """Write a token down; whether it is one, and not the end."""
        if token in self.ends:
            self.open.remove(row)
            return False
        self.ids[row].append(token)
        if self.constraint:
            self.constraint.take(row, token)
        stop = self.sampling.stop
        if stop and stop in (spoken(self.conventions.decode(self.ids[row])) or "").lstrip():
            self.open.remove(row)
        return True

    def cancel(self, number: int) -> None:
        self.requests = {row: r for row, r in self.requests.items() if r.number != number}
        self.open &= self.requests.keys()
        self.over = self.over or not self.open

    def texts(self) -> dict[int, Written]:
        """Of every request: what was written, and whether the limit ended it."""
        rows = list(self.requests)
        if not rows:
            return {}
        texts = [self.conventions.decode(self.ids[row]) for row in rows]
        answers = answers_in(texts, self.sampling)
        return {
            self.requests[row].number: Written(text, row in self.open)
            for row, text in zip(rows, answers, strict=True)
        }


def answers_in(texts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each up to what ends an answer, once something is written after any thinking. Of thinking that does not
    end nothing is an answer."""
    if not sampling.stop:
        return list(texts)
    return [(spoken(t) or "").lstrip().split(sampling.stop)[0] for t in texts]


def _draws(sampling: Sampling, seeds: Sequence[int]) -> Tensor | None:
    if sampling.temperature == 0:
        return None
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(sampling.max_tokens, generator=g) for g in generators])


def _choose(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
    """The next token of each row: (N, V) → (N,)."""
    if draw is None:
        return logits.argmax(-1)
    return choose(logits, sampling.temperature, sampling.top_p, draw)
