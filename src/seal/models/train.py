"""The one trainer: a list of jobs in, a list of adapters out, trained side by side on one frozen model.

The inner loop, the outer SFT of ReST-EM and the continual experiment are all this function; one job is the list of
length one. What a job learns does not depend on its neighbours (to float rounding): every adapter has its own rows,
order, loss (mean over its own tokens), gradient clipping, learning rate, schedule, optimiser state and end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from seal.models.lora import Adapter, Slots, init_adapter, target_modules
from seal.models.policy import Policy
from seal.models.tokens import Row, encode_example
from seal.types import Example, Recipe

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's constants, torch's defaults."""


@dataclass(frozen=True)
class Job:
    """What one adapter is to learn: examples, recipe, and the seed of its weights and of the order of its rows."""

    examples: tuple[Example, ...]
    recipe: Recipe
    seed: int
    start: Adapter | None = None
    """Go on from this adapter instead of a fresh one."""


@dataclass(frozen=True)
class Trained:
    """One job's outcome. ``adapter`` is ``None`` where training diverged (a loss or a weight that is not finite)."""

    adapter: Adapter | None
    steps: int
    tokens: int
    loss: tuple[float, float]
    """Training loss at the first and the last step (0, 0 if there was no step)."""


def plan_batches(lengths: Sequence[int], recipe: Recipe, seed: int) -> list[list[int]]:
    """The rows of every optimiser step: epochs of a seeded shuffle, cut into batches, up to the recipe's budget."""
    if not lengths:
        return []
    rng = random.Random(seed)
    per_epoch = math.ceil(len(lengths) / recipe.batch_size)
    n_steps = recipe.steps or max(1, round(recipe.epochs * per_epoch))
    batches: list[list[int]] = []
    tokens = 0
    while True:
        order = rng.sample(range(len(lengths)), len(lengths))
        for start in range(0, len(order), recipe.batch_size):
            batches.append(order[start : start + recipe.batch_size])
            tokens += sum(lengths[i] for i in batches[-1])
            if tokens >= recipe.tokens if recipe.tokens else len(batches) == n_steps:
                return batches


def learning_rate(recipe: Recipe, step: int, n_steps: int) -> float:
    """The learning rate of step 0 … n_steps - 1; transformers' linear and cosine schedules."""
    warm = math.ceil(recipe.warmup * n_steps)
    if step < warm:
        return recipe.learning_rate * step / max(1, warm)
    done = (step - warm) / max(1, n_steps - warm)
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[recipe.schedule]
    return recipe.learning_rate * factor


class _Work:
    """One job in its slot: rows, batches, and where it has come to."""

    def __init__(self, index: int, job: Job, policy: Policy) -> None:
        self.index, self.job = index, job
        modules = target_modules(policy.model, job.recipe.targets)
        self.start = job.start or init_adapter(modules, job.recipe, job.seed)
        rows = [encode_example(e, policy.tokenizer, policy.chat) for e in job.examples]
        self.rows = [policy.clip_row(r) for r in rows]
        if not any(any(r.loss) for r in self.rows):
            self.rows = []
        self.batches = plan_batches([len(r.ids) for r in self.rows], job.recipe, job.seed)
        self.step = 0
        self.tokens = 0
        self.first = self.last = 0.0

    def batch(self) -> list[Row]:
        return [self.rows[i] for i in self.batches[self.step]]

    def record(self, loss: float, tokens: int) -> None:
        self.first = loss if self.step == 0 else self.first
        self.last = loss
        self.tokens += tokens
        self.step += 1

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.last)

    @property
    def done(self) -> bool:
        return self.step == len(self.batches) or self.diverged

    def outcome(self, adapter: Adapter) -> Trained:
        sound = not self.diverged and all(bool(a.isfinite().all() and b.isfinite().all()) for a, b in adapter.weights.values())
        return Trained(adapter if sound else None, self.step, self.tokens, (self.first, self.last))


class _AdamW:
    """AdamW over the flat parameters of all slots at once, each slot with its own rate, decay, clipping and step count."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.mean = torch.zeros_like(slots.flat)  # (K, P)
        self.square = torch.zeros_like(slots.flat)  # (K, P)

    def reset(self, slot: int) -> None:
        self.mean[slot] = 0
        self.square[slot] = 0

    def keep(self, kept: Sequence[int]) -> None:
        index = torch.tensor(list(kept), device=self.mean.device)
        self.mean, self.square = self.mean[index].clone(), self.square[index].clone()

    @torch.no_grad()
    def step(self, works: Sequence[_Work]) -> None:
        """One update of every slot; ``works`` is what each slot is at, before this step is counted."""
        flat, grad = self.slots.flat, self.slots.grad

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=flat.device, dtype=torch.float32)[:, None]  # (K, 1)

        recipes = [w.job.recipe for w in works]
        if any(r.clip for r in recipes):
            limit = column([r.clip or math.inf for r in recipes])
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            grad.mul_((limit / (norm + 1e-6)).clamp_(max=1.0))
        rates = [learning_rate(w.job.recipe, w.step, len(w.batches)) for w in works]
        if any(r.weight_decay for r in recipes):
            flat.mul_(column([1 - lr * r.weight_decay for lr, r in zip(rates, recipes, strict=True)]))
        self.mean.lerp_(grad, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        root = column([math.sqrt(1 - BETA2 ** (w.step + 1)) for w in works])
        rate = column([lr / (1 - BETA1 ** (w.step + 1)) for lr, w in zip(rates, works, strict=True)])
        flat.sub_(self.mean / (self.square.sqrt().div_(root).add_(EPSILON)) * rate)


def train_adapters(
    policy: Policy, jobs: Sequence[Job], slots: int = 32, on_done: Callable[[int], None] | None = None
) -> list[Trained]:
    """Train one adapter per job, at most ``slots`` of them side by side; the outcomes in the order of the jobs.

    A slot whose job is done takes the next job at once; when no job is left, the wave shrinks. ``on_done`` is told the
    index of each job that ends.
    """
    outcomes: list[Trained | None] = [None] * len(jobs)

    def finish(work: _Work, adapter: Adapter) -> None:
        outcomes[work.index] = work.outcome(adapter)
        if on_done:
            on_done(work.index)

    def trainable() -> Iterator[_Work]:
        for index, job in enumerate(jobs):
            work = _Work(index, job, policy)
            if work.batches:
                yield work
            else:  # nothing to learn: the adapter that changes nothing
                finish(work, work.start)

    queue = trainable()
    works = [w for _, w in zip(range(slots), queue, strict=False)]
    if works:
        modules = target_modules(policy.model, _union([j.recipe.targets for j in jobs]))
        modules |= {n: policy.model.get_submodule(n) for w in works for n in w.start.weights}
        room = Slots(modules, len(works), max(j.recipe.rank for j in jobs), policy.device)
        optimizer = _AdamW(room)
        for slot, work in enumerate(works):
            room.put(slot, work.start)
        while works:
            _step(policy, room, optimizer, works)
            kept = []
            for slot, work in enumerate(works):
                if work.done:
                    finish(work, room.take(slot, work.start))
                    following = next(queue, None)
                    if following is None:
                        continue
                    works[slot] = following
                    optimizer.reset(slot)
                    room.put(slot, following.start)
                kept.append(slot)
            if len(kept) < len(works):
                works = [works[slot] for slot in kept]
                if works:
                    room.keep(kept)
                    optimizer.keep(kept)
    return [o for o in outcomes if o is not None]


def _union(targets: Sequence[str | tuple[str, ...]]) -> str | tuple[str, ...]:
    if "all-linear" in targets:
        return "all-linear"
    return tuple(sorted({name for group in targets for name in group}))


def _step(policy: Policy, room: Slots, optimizer: _AdamW, works: Sequence[_Work]) -> None:
    """One forward and backward of all slots, and one optimiser step."""
    ids, labels, positions = pack([w.batch() for w in works], policy.device)  # (K, T) each
    with room.attached():
        logits = policy.forward(input_ids=ids, position_ids=positions, use_cache=False).logits  # (K, T, V)
    losses = slot_losses(logits, labels)  # (K,)
    room.grad.zero_()
    torch.autograd.backward(losses.sum())  # gradients of different slots never mix: each loss depends on its own adapter alone
    optimizer.step(works)
    for work, loss in zip(works, losses.tolist(), strict=True):
        work.record(loss, sum(len(r.ids) for r in work.batch()))


def pack(batches: Sequence[Sequence[Row]], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Each slot's rows one after another in one line: ids, labels and positions, all (K, T).

    Positions start again at 0 with every row, which is how transformers knows that rows must not see each other. What is
    left over at the end of a line is a row of its own that carries no loss.
    """
    width = max(sum(len(r.ids) for r in batch) for batch in batches)
    ids = torch.zeros(len(batches), width, dtype=torch.long)
    labels = torch.full((len(batches), width), -100, dtype=torch.long)
    positions = torch.zeros(len(batches), width, dtype=torch.long)
    for k, batch in enumerate(batches):
        start = 0
        for row in batch:
            stop = start + len(row.ids)
            ids[k, start:stop] = torch.tensor(row.ids)
            labels[k, start:stop] = torch.where(torch.tensor(row.loss), ids[k, start:stop], -100)
            positions[k, start:stop] = torch.arange(stop - start)
            start = stop
        positions[k, start:] = torch.arange(width - start)
    return ids.to(device), labels.to(device), positions.to(device)


def slot_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over each slot's own loss tokens: (K, T, V), (K, T) → (K,)."""
    target = labels[:, 1:]
    each = cross_entropy(logits[:, :-1].float().transpose(1, 2), target, ignore_index=-100, reduction="none")  # (K, T-1)
    return each.sum(1) / (target != -100).sum(1).clamp(min=1)
