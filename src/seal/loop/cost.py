"""What a run will cost, reckoned before it begins: inner loops, tokens, FLOPs, time, memory, disk.

Lengths are those of the tasks at hand (their prompts, questions, gold answers, passages); a self-edit is taken
to be as long as ``write.max_tokens`` allows, and training to be on the context and the edit, or on the
domain's own best edit where it knows one. A weight costs two FLOPs for each token that is read or written,
and two more on a trained token's way back: the frozen weights have no gradient. Time is at the share of the
measured product rate that training and writing reach (:data:`SHARES`).
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from seal.config import RunConfig
from seal.domains import load_domain
from seal.domains.base import Domain
from seal.loop.inner import checked
from seal.loop.selection import CONTROLS, SEAL
from seal.lora.adapter import adapted_modules
from seal.lora.capacity import BYTES_PER_WEIGHT, ENOUGH, MOST_SLOTS, free_memory, spread, weights_bytes
from seal.lora.load import native_bf16, shape_of, threads_of
from seal.lora.records import ModelSpec, Recipe
from seal.lora.tokens import encode_example
from seal.lora.train import plan_batches
from seal.machine import product_rate
from seal.records import Edit, SealError, Task
from seal.store import read_attempts, read_json

SHARES = {"trained": 0.3, "read": 0.3, "written": 0.1}
"""Of the product rate, what is reached: measured on the embedded model (docs/results/policy.json)."""
SAMPLE = 12
"""Tasks whose lengths are looked at."""
ROW_BYTES = 700
"""What an attempt takes on disk besides its texts, measured; a token is four bytes more."""


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
        more = f", {short(self.read)} read, {short(self.written)} written; {short(self.flops, 'FLOP')}"
        return [
            f"{what} {self.loops:,} inner loops; tokens: {short(self.trained)} trained{more if self.flops else ''}",
            f"{' ' * len(what)} {span(self.seconds)}; memory: {short(self.memory, 'B')} at most; disk: "
            f"{short(self.disk, 'B')}",
        ]


class Shape:
    """A model by its config alone: what it weighs, without loading it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.config, self.tokenizer = shape_of(spec)
        with torch.device("meta"):
            self.empty: Any = AutoModelForCausalLM.from_config(self.config)
        head = self.empty.get_output_embeddings()
        linear = {id(m): m for m in self.empty.modules() if isinstance(m, torch.nn.Linear)}
        self.weights = sum(m.in_features * m.out_features for m in linear.values())
        self.tied = head is not None and id(head) not in linear
        kind = spread(spec.device)[0]
        self.native = native_bf16(kind) if spec.bf16 == "auto" else spec.bf16
        self.bytes_each = 4 if spec.dtype == "float32" and not self.native and not spec.quantize else 2

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text)["input_ids"])

    def adapter_weights(self, recipe: Recipe) -> int:
        """Of one adapter."""
        found = adapted_modules(self.empty, recipe).values()
        return sum(recipe.rank * (m.in_features + m.out_features) for m in found)

    def flops(self, work: Work) -> dict[str, float]:
        """By kind."""
        each = {"trained": 4, "read": 2, "written": 2}
        return {kind: float(n * self.weights * getattr(work, kind)) for kind, n in each.items()}

    def seconds(self, work: Work) -> float:
        """At the rate that this machine has now, on the device the model goes to."""
        dtype = torch.bfloat16 if self.bytes_each == 2 else torch.float32
        rate = product_rate(spread(self.spec.device)[0], dtype, threads_of(self.spec))
        return sum(flops / (SHARES[kind] * rate) for kind, flops in self.flops(work).items())

    def memory(self, recipe: Recipe, slots: int | str, pass_tokens: int | str, stack: bool) -> int:
        """At its highest, while adapters are trained: the weights (a stack over fp32 weights has its own of
        the layers that it changes), adapters with their optimiser, and the activations of a pass."""
        spec, text = self.spec, self.config.get_text_config()
        copied = bool(self.native) and spec.dtype == "float32"
        frozen = weights_bytes(self.config, spec.dtype, spec.quantize, copied)
        over = (
            self.weights * self.bytes_each if stack and spec.dtype == "float32" and not spec.quantize else 0
        )
        kind = spread(spec.device)[0]
        free = max(0, free_memory(torch.device(kind)) - frozen - over)
        each = self.adapter_weights(recipe) * BYTES_PER_WEIGHT
        n = min(MOST_SLOTS, max(1, free // 2 // each)) if slots == "auto" else int(slots)
        wide = int(getattr(text, "intermediate_size", 4 * text.hidden_size))
        token = (
            self.bytes_each * text.num_hidden_layers * (11 * text.hidden_size + 4 * wide)
        )  # counted on Llama
        fits = max(1, free // 2 // (2 * token))
        if pass_tokens == "auto":
            pass_tokens = min(ENOUGH.get(kind.partition(":")[0], ENOUGH["cuda"]), fits)
        return int(frozen + over + n * each + int(pass_tokens) * 2 * token)


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
        lengths = [len(encode_example(e, self.shape.tokenizer).ids) for e in edit.examples] if edit else []
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
        flops = sum(self.shape.flops(work).values())
        return Cost(
            work.loops, work.trained, work.read, work.written, flops, self.shape.seconds(work), memory, disk
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
    begun, start = _has_attempts(folder), time.monotonic()
    yield
    took = measured(folder, time.monotonic() - start, device)
    if not begun and took.trained and (cost := reckoned()):
        for line in (*cost.lines("seal: reckoned"), *took.lines("seal: it took ")):
            print(line, file=sys.stderr)


def _has_attempts(folder: Path) -> bool:
    return any(folder.rglob("attempts.jsonl")) or any(folder.rglob("seal.json"))


def measured(folder: Path, seconds: float, device: str) -> Cost:
    """What a run that lies in a folder took."""
    attempts = [a for path in folder.rglob("attempts.jsonl") for a in read_attempts(path)]
    outer = [read_json(p).get("tokens", 0) for n in ("outer.json", "seal.json") for p in folder.rglob(n)]
    disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    trained = sum(a.tokens for a in attempts) + sum(outer)
    return Cost(len(attempts), trained, 0, 0, 0.0, seconds, peak_memory(device), disk)


def peak_memory(device: str) -> int:
    """The most that this process has held so far, on the device."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
