"""What a run will cost, reckoned before it begins: inner loops, tokens, FLOPs, time, memory, disk.

Lengths are those of the tasks at hand (their prompts, questions, gold answers, passages); a self-edit is taken
to be as long as ``write.max_tokens`` allows, and training to be on the context and the edit, or on the
domain's own best edit where it knows one. A weight costs two FLOPs for each token that is read or written,
and two more on a trained token's way back: the frozen weights have no gradient. Time is at the share of the
measured product rate that training and writing are taken to reach (:data:`SHARES`).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from seal.config import RunConfig
from seal.domains import load_domain
from seal.domains.base import Domain
from seal.loop.inner import checked
from seal.loop.selection import CONTROLS, SEAL
from seal.lora.hardware import Shape, peak_memory
from seal.lora.records import Recipe
from seal.lora.tokens import encode_example
from seal.lora.train import plan_batches
from seal.records import Edit, LoraError, SealError, Task
from seal.store import read_attempts, read_json

SHARES = {"trained": 0.3, "read": 0.3, "written": 0.1}
"""Of the product rate, what is taken to be reached: assumed. What they gave for the demo stands in
docs/hardware.md; every run says at its end how far they were off."""
SAMPLE = 12
"""Tasks whose lengths are looked at."""
ROW_BYTES = 700
"""What an attempt is taken to need on disk besides its text; a token is four bytes more."""


@dataclass(frozen=True)
class Work:
    """What is to be done: inner loops, and tokens of every kind."""

    loops: int = 0
    trained: int = 0
    read: int = 0
    written: int = 0
    rows: int = 0
    """Lines of ``attempts.jsonl``."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, n: int) -> Work:
        return Work(*(getattr(self, f.name) * n for f in fields(self)))


@dataclass(frozen=True)
class Cost:
    """What it comes to. Bytes, seconds; FLOPs."""

    loops: int
    trained: int
    read: int
    written: int
    flops: float
    seconds: float
    memory: int
    disk: int

    def lines(self, what: str) -> list[str]:
        """For people."""
        rest = f"{span(self.seconds)}; memory: {short(self.memory, 'B')}; disk: {short(self.disk, 'B')}"
        if not self.loops:  # of what was not counted
            return [f"{what} {rest}"]
        more = f", {short(self.read)} read, {short(self.written)} written; {short(self.flops, 'FLOP')}"
        tokens = f"{short(self.trained)} trained{more if self.flops else ''}"
        return [f"{what} {self.loops:,} inner loops; tokens: {tokens}", f"{' ' * len(what)} {rest}"]


def flops_of(shape: Shape, work: Work) -> dict[str, float]:
    """By kind: two for each weight and token, and two more on the way back of what is trained."""
    each = {"trained": 4, "read": 2, "written": 2}
    return {kind: float(n * shape.weights * getattr(work, kind)) for kind, n in each.items()}


def seconds_of(shape: Shape, work: Work) -> float:
    """At the shares of the product rate that are reached."""
    rate = shape.rate()
    return sum(flops / (SHARES[kind] * rate) for kind, flops in flops_of(shape, work).items())


class Reckoner:
    """A run's settings with the lengths of its tasks."""

    def __init__(self, config: RunConfig, domain: Domain, shape: Shape | None = None) -> None:
        self.config, self.domain = config, domain
        self.shape = shape or Shape(config.model)
        split = next((s for s in ("train", "eval", "select") if domain.tasks(s)), None)
        if split is None:
            raise SealError("there is no task to reckon with")
        tasks = list(domain.tasks(split))[:SAMPLE]
        self.prompt = self._mean(lambda t: self.shape.count(domain.prompt(t).text), tasks)
        self.queries = self._mean(lambda t: len(domain.queries(t)), tasks)
        self.question = self._mean(
            lambda t: sum(self.shape.count(q.prompt.text) for q in domain.queries(t)), tasks
        )
        self.answer = self._mean(
            lambda t: sum(1 + self.shape.count(q.gold) for q in domain.queries(t)), tasks
        )
        self.rows = self._mean(lambda t: self.trained(t, None), tasks)
        self.plain = self._mean(lambda t: self.shape.count(domain.plain(t) or ""), tasks)

    def _mean(self, of: Callable[[Task], int], tasks: Sequence[Task]) -> int:
        return max(1, round(statistics.fmean(of(t) for t in tasks)))

    def trained(self, task: Task, recipe: Recipe | None) -> int:
        """Tokens that one inner loop of a task trains on."""
        recipe = recipe or self.config.inner.recipe
        known = self.domain.oracle(task)
        edit, asked = checked_edit(self.domain, task, known or self.domain.plain(task) or "", recipe)
        lengths = [len(encode_example(e, self.shape.conventions).ids) for e in edit.examples] if edit else []
        if known is None:
            n = self.config.write.max_tokens
            lengths += [n // 8] * 8 if n >= 8 else [n]
        return sum(lengths[i] for batch in plan_batches(lengths, asked, 0) for i in batch)

    def tried(self, loops: int, trained: int | None = None) -> Work:
        """Inner loops, each with its questions asked and scored."""
        each = Work(1, trained or self.rows, 2 * self.question + self.answer, self.answer, 1)
        return each * loops

    def asked(self, tasks: int) -> Work:
        return Work(0, 0, self.question, self.answer) * tasks

    def wrote(self, texts: int) -> Work:
        return Work(0, 0, self.prompt, self.config.write.max_tokens) * texts

    def training(self, controls: Sequence[str]) -> Work:
        """Of ``seal train``."""
        c = self.config
        n, edits = min(c.tasks_per_round, len(self.domain.tasks("train"))), c.edits_per_task
        each = c.trial.race or edits * c.inner.seeds
        total = Work()
        for branch in (SEAL, *(CONTROLS[name] for name in dict.fromkeys(controls) if name in CONTROLS)):
            if branch.writes:
                total += self.wrote(n * edits)
            if branch.looks and not c.trial.proxy:
                total += self.asked(n) + self.tried(n * each)
            row, kept = self.prompt + c.write.max_tokens, n * c.outer.keep
            batches = plan_batches([row] * kept, c.outer.recipe, 0)
            total += Work(trained=row * sum(map(len, batches)))
        return total * c.rounds

    def evaluation(self, controls: int) -> Work:
        """Of ``seal eval``, with so many controls that were trained."""
        c, e = self.config, self.config.eval
        n, chosen = len(self.domain.tasks("eval")), len(self.domain.tasks("select"))
        tasks = list(self.domain.tasks("eval"))
        policies = 1 + controls + c.rounds
        loops = n * e.edits_per_task * c.inner.seeds
        writers = policies + (c.inner.start == "policy" and c.rounds > 0) + bool(e.external)
        total = self.asked(2 * n) + self.wrote(policies * n * max(e.siblings, e.edits_per_task))
        total += (
            (Work(writers, loops * self.rows * writers) + self.asked(n * writers))
            if e.pool
            else (self.tried(loops * writers))
        )
        if tasks and self.domain.oracle(tasks[0]) is not None:
            total += self.tried(n * c.inner.seeds)
        if tasks and self.domain.plain(tasks[0]) is not None:
            epochs = e.saturation_epochs
            some = min(chosen, e.saturation_tasks) * c.inner.seeds
            total += self.tried(n * c.inner.seeds, 10 * self.plain) + self.tried(n * c.inner.seeds)
            total += self.tried(n * c.inner.seeds, max(epochs) * self.plain)
            for length in epochs:
                total += self.tried(some, length * self.plain)
        return total

    def continual(self) -> Work:
        """Of ``seal continual``: every passage learnt, and those so far asked after it."""
        c = self.config.continual
        steps = c.sequences * c.length
        asked = sum(i + 1 for i in range(0, c.length, c.ask_every)) * c.sequences + c.known * steps
        one = self.tried(steps) + self.asked(asked)
        return self.wrote(steps) + one * len(c.strategies)

    def cost(self, work: Work, branches: int = 0) -> Cost:
        """``branches``: those that save a policy every round."""
        c = self.config
        each = 4 * self.shape.adapter_weights(c.outer.recipe) * branches
        policies = sum(
            min(r, (c.outer.compress or 10**9) / c.outer.recipe.rank) for r in range(1, c.rounds + 1)
        )
        disk = (
            int(each * policies) + ROW_BYTES * work.rows + 4 * (work.written + c.write.max_tokens * work.rows)
        )
        memory = self.shape.memory(c.inner.recipe, c.inner.slots, c.inner.pass_tokens, branches > 0)
        flops = sum(flops_of(self.shape, work).values())
        return Cost(
            work.loops,
            work.trained,
            work.read,
            work.written,
            flops,
            seconds_of(self.shape, work),
            memory,
            disk,
        )


def checked_edit(domain: Domain, task: Task, text: str, recipe: Recipe) -> tuple[Edit | None, Recipe]:
    parsed = domain.parse(task, text) if text else None
    if not isinstance(parsed, Edit):
        return None, recipe
    edit, asked = checked(parsed, recipe)
    return (edit, asked) if isinstance(edit, Edit) else (None, recipe)


def reckon(config: RunConfig, command: str, controls: Sequence[str] = ()) -> Cost | None:
    """What ``train``, ``eval``, ``demo`` (both) or ``continual`` will cost; ``None`` for a scripted model.

    Raises:
        SealError: the model or the tasks cannot be read.
    """
    if config.model.name.startswith("fake:"):
        return None
    r = Reckoner(config, load_domain(config.domain.name, config.domain.options))
    works = {
        "train": lambda: r.training(controls),
        "eval": lambda: r.evaluation(len(controls)),
        "demo": lambda: r.training(controls) + r.evaluation(len(controls)),
        "continual": r.continual,
    }
    return r.cost(works[command](), (1 + len(controls)) * (command in ("train", "demo")))


@contextmanager
def compared(folder: Path, device: str, reckoned: Callable[[], Cost | None]) -> Iterator[None]:
    """Say at the end of what is done in a folder what it took, and what had been reckoned; of a run that was
    gone on with nothing."""
    begun, start = _is_begun(folder), time.monotonic()
    yield
    seconds = time.monotonic() - start
    if begun or not _is_begun(folder):
        return
    try:
        cost = reckoned()
    except (SealError, LoraError):  # the work is done, whatever can be said of it
        return
    if cost is not None:
        took = measured(folder, seconds, device)
        for line in (*cost.lines("seal: reckoned"), *took.lines("seal: it took ")):
            print(line, file=sys.stderr)


def _is_begun(folder: Path) -> bool:
    return any(any(folder.rglob(name)) for name in ("attempts.jsonl", "seal.json", "step-0.json"))


def measured(folder: Path, seconds: float, device: str) -> Cost:
    """What a run that lies in a folder took."""
    attempts = [a for path in folder.rglob("attempts.jsonl") for a in read_attempts(path)]
    outer = [read_json(p).get("tokens", 0) for n in ("outer.json", "seal.json") for p in folder.rglob(n)]
    disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    trained = sum(a.tokens for a in attempts) + sum(outer)
    return Cost(len(attempts), trained, 0, 0, 0.0, seconds, peak_memory(device), disk)


def short(n: float, unit: str = "") -> str:
    """1,234,567 → 1.2 M."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.{0 if n >= 100 * size else 1}f} {letter}{unit}"
    return f"{n:.0f} {unit}".rstrip()


def span(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
