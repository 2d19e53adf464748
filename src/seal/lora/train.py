"""The one trainer: a list of jobs in, a list of adapters out, trained side by side on one frozen model.

The inner loop, the outer SFT of ReST-EM and the continual experiment are all this function; one job is the
list of length one. What a job learns does not depend on its neighbours (to float rounding): every adapter has
its own rows, order, loss (mean over its own tokens), gradient clipping, learning rate, schedule, optimiser
state and end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from seal.lora.adapter import Adapter, adapted_modules, init_adapter, join, target_modules, upper
from seal.lora.capacity import OutOfRoom, Room, is_out_of_memory, room_for
from seal.lora.model import Model
from seal.lora.packing import of_menu, send
from seal.lora.records import Example, LoraError, Recipe
from seal.lora.slots import Slots
from seal.lora.teacher import Teacher, taught_rows
from seal.lora.tokens import Row, encode_example


@dataclass(frozen=True)
class Job:
    """What one adapter is to learn: examples, recipe, and the seed of its weights and of the order of its
    rows."""

    examples: tuple[Example, ...]
    recipe: Recipe
    seed: int
    start: Adapter | None = None
    """Go on from this adapter instead of a fresh one."""
    beneath: Adapter | None = None
    """An adapter in force meanwhile that stays as it is: the same as if it had been merged into the
    weights."""
    only_b: bool = False
    """Train B alone; what the adapter reads (A) stays as it starts."""
    teacher: Teacher | None = None
    """Whom to learn from at the rows that have a view."""


@dataclass(frozen=True)
class Trained:
    """One job's outcome. ``adapter`` is ``None`` where training diverged (a loss or a weight that is not
    finite)."""

    adapter: Adapter | None
    steps: int
    tokens: int
    loss: tuple[float, float]
    """Training loss at the first and the last step (0, 0 if there was no step)."""


def plan_batches(lengths: Sequence[int], recipe: Recipe, seed: int) -> list[list[int]]:
    """The rows of every optimiser step: epochs of a seeded shuffle, cut into batches, up to the recipe's
    budget."""
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
    """The learning rate of step 0 … n_steps - 1; transformers' linear and cosine schedules. A warm-up, whose
    first step has rate 0, never takes every step: of one alone there is none."""
    warm = min(math.ceil(recipe.warmup * n_steps), n_steps - 1)
    if step < warm:
        return recipe.learning_rate * step / max(1, warm)
    done = (step - warm) / max(1, n_steps - warm)
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[
        recipe.schedule
    ]
    return recipe.learning_rate * factor


class _Work:
    """One job in its slot: rows, batches, and where it has come to."""

    def __init__(self, index: int, job: Job, model: Model) -> None:
        self.index, self.job = index, job
        modules = adapted_modules(model.runner, job.recipe)
        if modules.keys() <= model.nature.unheard:
            raise LoraError(
                f"no layer that {model.name!r} reads text with is among the targets ({next(iter(modules))!r} "
                "is not called)"
            )
        self.fresh = job.start or init_adapter(modules, job.recipe, job.seed)
        self.start = join(job.beneath, self.fresh)
        self.trainable: Tensor | None = None
        if job.beneath and job.recipe.weight_decay:
            raise LoraError(
                "weight_decay would wear away the adapter beneath: take 0 where adapters are stacked"
            )
        if not job.teacher and any(e.view is not None for e in job.examples):
            raise LoraError("a row has a view for a teacher, and its job has no teacher")
        if job.teacher:
            self.rows = taught_rows(job.teacher, model, job.examples)
        else:
            rows = [encode_example(e, model.conventions) for e in job.examples]
            self.rows = [model.clip_row(r) for r in rows]
        if not any(any(r.loss) for r in self.rows):
            self.rows = []
        self.batches = plan_batches([len(r.ids) for r in self.rows], job.recipe, job.seed)
        self.widths = [sum(len(self.rows[i].ids) for i in batch) for batch in self.batches]
        self.slot = -1
        self.step = 0
        self.losses: list[float] = []

    def batch(self) -> list[Row]:
        return [self.rows[i] for i in self.batches[self.step]]

    @property
    def width(self) -> int:
        """Tokens of the next step."""
        return self.widths[self.step]

    @property
    def left(self) -> int:
        return len(self.batches) - self.step

    @property
    def diverged(self) -> bool:
        return not all(map(math.isfinite, self.losses))

    def outcome(self, adapter: Adapter) -> Trained:
        if self.job.beneath:
            adapter = upper(adapter, self.fresh.rank, list(self.fresh.weights))
        sound = all(bool(a.isfinite().all() and b.isfinite().all()) for a, b in adapter.weights.values())
        bad = next((i for i, x in enumerate(self.losses) if not math.isfinite(x)), None)
        steps = len(self.losses) if bad is None else bad + 1  # where it was lost, whenever that was noticed
        ends = (self.losses[0], self.losses[steps - 1]) if steps else (0.0, 0.0)
        return Trained(adapter if sound and bad is None else None, steps, sum(self.widths[:steps]), ends)


@dataclass
class Tally:
    """What a call of :func:`train_adapters` did, for benchmarks: forward-backward passes, tokens, and those
    that were padding."""

    passes: int = 0
    real: int = 0
    padded: int = 0
    halvings: int = 0
    """How often memory ran out and a pass was made smaller."""


def train_adapters(
    model: Model,
    jobs: Sequence[Job],
    room: Room | None = None,
    on_done: Callable[[int], None] | None = None,
    tally: Tally | None = None,
) -> list[Trained]:
    """Train one adapter per job, side by side; the outcomes in the order of the jobs.

    A slot whose job is done takes the next job at once. Slots need not keep step: each pass takes those whose
    next batches are of like length, so that little is padded. A batch that is more than a pass holds goes
    through in several, and its gradients add up. ``on_done`` is told the index of each job that ends.

    Args:
        room: how much at once. Found out, unless given; and where memory runs out all the same, it is halved
            and training goes on.

    Raises:
        OutOfRoom: memory ran out in the room that was given.
        LoraError: a single row does not fit.
    """
    return _Training(model, jobs, room, on_done or (lambda index: None), tally or Tally()).run()


class _Training:
    """One call of :func:`train_adapters`."""

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        room: Room | None,
        on_done: Callable[[int], None],
        tally: Tally,
    ) -> None:
        self.model, self.jobs, self.on_done, self.tally = model, jobs, on_done, tally
        self.outcomes: list[Trained | None] = [None] * len(jobs)
        self.queue = self._trainable()
        self.given = room is not None
        self.room = room or room_for(model, [j.recipe for j in jobs])
        self.unsettled: list[tuple[Tensor, list[_Work]]] = []

    def run(self) -> list[Trained]:
        works = [w for _, w in zip(range(self.room.slots), self.queue, strict=False)]
        if works:
            targeted = {n for j in self.jobs for n in adapted_modules(self.model.runner, j.recipe)}
            modules = {
                n: m for n, m in target_modules(self.model.runner, "all-linear").items() if n in targeted
            }
            modules |= {n: self.model.runner.get_submodule(n) for w in works for n in w.start.weights}
            rank = max((j.start or j.recipe).rank + (j.beneath.rank if j.beneath else 0) for j in self.jobs)
            modules |= {
                n: self.model.runner.get_submodule(n)
                for j in self.jobs
                if j.beneath
                for n in j.beneath.weights
            }
            self.slots = Slots(modules, len(works), rank, self.model.device)
            self.optimizer = _AdamW(self.slots)
            for slot, work in enumerate(works):
                self._admit(slot, work)
        while works:
            costs = [self.model.tokens_of([w.batch()]) for w in works]
            beside = not self.model.nature.packs
            chosen = choose(costs, [w.left for w in works], self.room.tokens, beside)
            if self._step(self._fitting([works[i] for i in chosen])):
                works = self._settled(works)
        return [o for o in self.outcomes if o is not None]

    def _trainable(self) -> Iterator[_Work]:
        for index, job in enumerate(self.jobs):
            work = _Work(index, job, self.model)
            if work.batches:
                yield work
            else:  # nothing to learn: the adapter that changes nothing
                self._finish(work, work.start)

    def _admit(self, slot: int, work: _Work) -> None:
        work.slot = slot
        self.slots.put(slot, work.start)
        self.optimizer.reset(slot)
        if work.job.beneath or work.job.only_b:
            first = work.job.beneath.rank if work.job.beneath else 0
            work.trainable = self.slots.trainable(work.start, first, work.job.only_b)

    def _finish(self, work: _Work, adapter: Adapter) -> None:
        self.outcomes[work.index] = work.outcome(adapter)
        self.on_done(work.index)

    def _settled(self, works: list[_Work]) -> list[_Work]:
        """Read the losses back when one of the jobs may be done, take out those that are, and let others
        in."""
        on_host = self.model.device.type == "cpu"
        if not (on_host or len(self.unsettled) >= 16 or any(not w.left for w in works)):
            return works  # the device is not waited for
        for losses, stepped in self.unsettled:
            for work, loss in zip(stepped, losses.tolist(), strict=True):
                work.losses.append(loss)
        self.unsettled = []
        going = []
        for work in works:
            if work.left and not work.diverged:
                going.append(work)
                continue
            self._finish(work, self.slots.take(work.slot, work.start))
            if following := next(self.queue, None):
                self._admit(work.slot, following)
                going.append(following)
        return going

    def _fitting(self, works: list[_Work]) -> list[_Work]:
        """As many of these as a pass holds: side by side they take more than each of them alone."""
        while len(works) > 1 and self.model.tokens_of([w.batch() for w in works]) > self.room.tokens:
            works = works[:-1]
        return works

    def _step(self, works: list[_Work]) -> bool:
        """One forward and backward of these slots together (of one alone in several passes, where one does not
        hold its batch), and their optimiser step; false where memory ran out."""
        batches = [w.batch() for w in works]
        parts = [batches]
        if len(works) == 1:
            parts = in_passes(batches[0], self.room.tokens, lambda rows: self.model.tokens_of([rows]))
        gradient = losses = None
        for part in parts:
            try:
                slope, loss = self._pass(works, part)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                self._make_smaller(part, error)
                return False
            # the mean is over the loss tokens of the whole batch
            share = n_loss(part[0]) / n_loss(batches[0]) if len(parts) > 1 else 1.0
            gradient = (
                slope
                if share == 1.0
                else share * slope
                if gradient is None
                else gradient.add_(slope, alpha=share)
            )
            losses = share * loss if losses is None else losses + share * loss
        assert gradient is not None and losses is not None
        for place, work in enumerate(works):
            if work.trainable is not None:
                gradient[place] *= work.trainable
        self.optimizer.step(works, gradient)
        self.unsettled.append((losses, works))
        for work in works:
            work.step += 1
        return True

    def _pass(self, works: list[_Work], batches: list[list[Row]]) -> tuple[Tensor, Tensor]:
        """Of these rows: the gradient (K', P), and every slot's loss (K',), the mean over its tokens."""
        lines = self.model.pack(batches)
        chosen = [w.slot for w in works]
        with (
            self.model.recomputing(self.room.recompute),
            self.slots.attached(self.model.runner.dtype, chosen, lines.rectangle, grad=True) as weights,
            self.model.losses(lines) as (total, each),
        ):
            # Gradients of different slots never mix: each line's loss depends on its own adapter alone.
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        self.tally.passes += 1
        self.tally.real += lines.n_real
        self.tally.padded += lines.ids.numel() - lines.n_real
        losses = each.new_zeros(len(works)).index_add_(0, lines.owner, each * lines.share)
        return self.slots.flatten(gradients), losses

    def _make_smaller(self, batches: list[list[Row]], error: RuntimeError) -> None:
        """After running out of memory: half the tokens a pass; where that was a single row, activations
        recomputed. Nothing is lost.

        Raises:
            OutOfRoom: the room was given: whoever gave it is to give a smaller one.
            LoraError: a single row does not fit.
        """
        rows = [row for batch in batches for row in batch]
        n_tokens = sum(len(row.ids) for row in rows)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) > 1:
            smaller = replace(self.room, tokens=max(1, n_tokens // 2))
        elif not self.room.recompute:
            smaller = replace(self.room, recompute=True)
        else:
            raise LoraError(
                f"a single row of {n_tokens} tokens does not fit in memory on {self.model.device}: "
                "take shorter rows or a smaller model"
            ) from error
        if self.given:
            raise OutOfRoom(smaller) from error
        self.room = smaller
        self.tally.halvings += 1


def in_passes(
    batch: Sequence[Row],
    tokens: int,
    taken: Callable[[Sequence[Row]], int] | None = None,
) -> list[list[list[Row]]]:
    """One job's batch as passes of at most so many tokens (or of one row), in order; rows without loss only
    take part beside others. ``taken``: the tokens that some rows take, if not theirs alone."""
    taken = taken or (lambda rows: sum(len(row.ids) for row in rows))
    parts: list[list[Row]] = []
    for row in batch:
        if not parts or taken([*parts[-1], row]) > tokens:
            parts.append([])
        parts[-1].append(row)
    return [[part] for part in parts if len(parts) == 1 or n_loss(part)]


def n_loss(rows: Sequence[Row]) -> int:
    """Loss tokens of some rows: of a row's first nothing can be foretold."""
    return sum(sum(row.loss[1:]) for row in rows)


def choose(widths: Sequence[int], left: Sequence[int], tokens: int, beside: bool = False) -> list[int]:
    """Which slots go together next, by width: at most ``tokens`` in all (but at least one slot), and a count
    of the menu.

    Slots next to each other in width make an even rectangle. Of all such runs the one that wastes least on
    the cost of a pass (counted as :data:`PASS` tokens), to 4 %; among equals the one whose slots have most
    steps left, so that all end together. ``beside``: each takes as much as the widest, and what is filled up is
    waste.
    """
    order = sorted(range(len(widths)), key=lambda i: (widths[i], i))
    real = [0, *accumulate(widths[i] for i in order)]
    steps = [0, *accumulate(left[i] for i in order)]
    best: tuple[tuple[float, float], list[int]] = ((-1.0, 0.0), [])
    first = 0
    for last in range(1, len(order) + 1):
        widest = widths[order[last - 1]]
        while first < last - 1 and ((last - first) * widest if beside else real[last] - real[first]) > tokens:
            first += 1
        count = next(n for n in range(last - first, 0, -1) if of_menu(n) == n)
        begin = last - count
        total = real[last] - real[begin]
        taken = count * widest if beside else total
        score = (round(25 * total / (taken + PASS)), (steps[last] - steps[begin]) / count)
        if score > best[0]:
            best = (score, order[begin:last])
    return best[1]


PASS = 256
"""What a pass costs however small, in tokens: measured on two CPU cores."""


class _AdamW:
    """torch's fused AdamW with one parameter (an adapter's flat row) per slot: its own rate, decay, clipping,
    moments.

    A slot that takes no step is not touched.
    """

    def __init__(self, slots: Slots) -> None:
        self.rows = [row.detach().requires_grad_() for row in slots.flat]
        fused = slots.flat.device.type in ("cpu", "cuda")
        self.torch = torch.optim.AdamW(
            [{"params": [row]} for row in self.rows], lr=0.0, weight_decay=0.0, fused=fused
        )

    def reset(self, slot: int) -> None:
        self.torch.state.pop(self.rows[slot], None)

    def step(self, works: Sequence[_Work], grad: Tensor) -> None:
        """One update of the slots of these jobs, each by its row of ``grad`` (K', P); not counted yet in
        ``work.step``."""
        limits = [w.job.recipe.clip or math.inf for w in works]
        if any(map(math.isfinite, limits)):
            limit = send(np.array(limits, np.float32)[:, None], grad.device)
            factor = (limit / (torch.linalg.vector_norm(grad, dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0)
            if grad.device.type != "cpu" or bool(
                (factor != 1).any()
            ):  # asking costs nothing on the CPU, and a wait elsewhere
                grad *= factor
        for work, gradient in zip(works, grad, strict=True):
            group = self.torch.param_groups[work.slot]
            group["lr"] = learning_rate(work.job.recipe, work.step, len(work.batches))
            group["weight_decay"] = work.job.recipe.weight_decay
            self.rows[work.slot].grad = gradient
        self.torch.step()
        for work in works:
            self.rows[work.slot].grad = None
