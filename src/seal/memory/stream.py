"""The continual experiment: learn passages one after the other, and see what stays.

``sequences`` × ``length`` held-out passages; at every step each sequence trains an adapter on the next
passage's self-edit, keeps it by the strategy, and is asked every passage so far: a lower-triangular matrix.
Sequences are independent adapters of one model, so they go side by side.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from seal.config import RunConfig
from seal.domains.base import Domain
from seal.loop.exam import answering, graded, prompts_of
from seal.loop.inner import checked, open_domain, samples_of, understand
from seal.loop.results import fingerprints
from seal.loop.retained import Item, items, known_items, right_items
from seal.loop.write import write_edits
from seal.lora.adapter import Adapter, compact, join
from seal.lora.files import load_many, save_many
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.sample import ask
from seal.lora.score import divergence, log_likelihood
from seal.lora.train import train_adapters
from seal.memory.router import Router
from seal.memory.strategies import Memory, Rows, strategy
from seal.progress import progress
from seal.records import Edit, Example, Json, Query, SealError, Task, Wanted, seed_of
from seal.store import Stage, Store

GATE = (1.0, 0.7, 0.4)
"""Weights that ``gate`` tries, in this order; none of them: the adapter is dropped."""
HARM = 0.01
"""What ``gate`` allows to be lost of what was known: a point."""


@dataclass
class Stream:
    """One sequence: its passages, their edits' rows, and what it remembers."""

    tasks: list[Task]
    rows: list[Rows]
    memory: Memory


class Continual:
    """The passages, their edits, and what the untouched model says; then :meth:`run`, once for each
    strategy."""

    def __init__(self, config: RunConfig, store: Store) -> None:
        self.config, self.store, c = config, store, config.continual
        self.domain: Domain = open_domain(config)
        store.begun_with(fingerprints(self.domain))
        self.base: Model = load_model(config.model, config.inner.recipe.rank)
        tasks = list(self.domain.tasks("eval"))
        if len(tasks) < c.sequences * c.length:
            raise SealError(
                f"{c.sequences} sequences of {c.length} need {c.sequences * c.length} held-out tasks, there "
                f"are {len(tasks)}: raise sizes.eval"
            )
        self.order = [tasks[s * c.length : (s + 1) * c.length] for s in range(c.sequences)]
        self.stage = store.stage("continual")
        flat = [t for row in self.order for t in row]
        texts = self.stage.once("edits", lambda: self._write(flat))
        self.rows = {t.id: self._rows(t, text[0]) for t, text in zip(flat, texts, strict=True)}
        known = list(self.domain.known_tasks(2 * c.known + c.rehearsed))
        self.probes, self.known = known[: c.known], known[c.known : 2 * c.known]
        self.rehearsed = known[2 * c.known :] or self.probes
        self.fixed = [t for t in list(self.domain.tasks("select"))[:16]]
        self.items: list[Item] = []
        """Where the domain names nothing that the model knows: of the questions that ship, those that it has right.
        Half of them, every other one, are the probes that ``gate`` looks at."""
        if not known:
            numbers = self.stage.once("items", lambda: [items().index(i) for i in known_items(self.base)])
            self.items = [items()[n] for n in numbers]

    def _write(self, tasks: Sequence[Task]) -> list[list[str]]:
        config, folder = self.config, self.config.continual.policy
        seed = seed_of("continual", config.seed)
        with (
            load_model(config.model.at(folder), loaded=self.base)
            if folder
            else nullcontext(self.base) as writer
        ):
            return write_edits(writer, self.domain, tasks, 1, config.write, seed, self.stage)

    def _rows(self, task: Task, text: str) -> Rows:
        """An edit that cannot be used teaches nothing, and its step changes nothing."""
        recipe = self.config.inner.recipe
        edit, _ = understand(self.domain, task, text, recipe)
        if isinstance(edit, Wanted):
            (samples,) = samples_of(self.base, [edit], [seed_of("continual", self.config.seed, task.id)])
            edit, _ = checked(self.domain.compose(task, edit, samples), recipe)
        return edit.examples if isinstance(edit, Edit) else ()

    def untouched(self) -> list[list[float]]:
        """The model's score on every passage before any edit, (S, L)."""
        queries = [[q for t in row for q in self.domain.queries(t)] for row in self.order]
        answers = self.stage.once("untouched", lambda: self._ask(None, queries))
        return self._scores(self.order, answers)

    def baseline(self) -> dict[str, float]:
        """Of the untouched model: what it knows, and how likely it finds edits of its own."""

        def compute() -> dict[str, float]:
            return {"known": self._known([None])[0], "edits": self._writing([None])[0]}

        found: dict[str, float] = self.stage.once("baseline", compute)
        return found

    def run(self, name: str) -> Json:
        """One strategy over all steps; what is on disk is not repeated. Its record, with the matrix of every
        sequence."""
        c, way = self.config.continual, strategy(name)
        stage = self.store.stage(f"continual/{name.replace(':', '-')}")
        sequences = [Stream(row, [self.rows[t.id] for t in row], Memory()) for row in self.order]
        done = sum((stage.folder / f"step-{i}.json").exists() for i in range(c.length))
        if done:
            self._restore(stage, sequences, done)
        with progress(name, c.length) as advance:
            advance(done)
            for i in range(done, c.length):
                start = time.monotonic()
                told = self._step(way, sequences, i)
                stage.once_folder(f"memory-{i}", lambda folder: self._save(folder, sequences))
                told |= self._asked(way.apart, sequences, i)
                told["seconds"] = round((time.monotonic() - start) / len(sequences), 4)
                stage.once(f"step-{i}", lambda told=told: told)  # type: ignore[misc]
                shutil.rmtree(stage.folder / f"memory-{i - 1}", ignore_errors=True)
                advance(1)
        steps = [stage.read(f"step-{i}") for i in range(c.length)]
        return {"strategy": name, "steps": steps}

    def _step(self, way: Any, sequences: Sequence[Stream], i: int) -> Json:
        """Train the next adapter of every sequence, and keep it."""
        recipe = self.config.inner.recipe
        own = self._own() if way.own else ()
        jobs = []
        for s, sequence in enumerate(sequences):
            seed = seed_of("continual", self.config.seed, s, i)
            rows = (
                way.rows(sequence.memory, sequence.rows[i], own, random.Random(seed))
                if sequence.rows[i]
                else ()
            )
            jobs.append(way.job(self.base, sequence.memory, rows, sequence.rows[i], recipe, seed))
        outcomes = train_adapters(self.base, jobs)
        adapters = [o.adapter for o in outcomes]
        weights = [way.weight(i + 1) if a is not None else 0.0 for a in adapters]
        if way.gate:
            weights = self._gated(sequences, adapters, weights)
        for sequence, adapter, weight in zip(sequences, adapters, weights, strict=True):
            if adapter is not None and weight:
                sequence.memory.adapters = [compact(a) for a in way.keep(sequence.memory, adapter, weight)]
            elif way.apart:  # its place in the library stays empty: nothing was learnt
                sequence.memory.adapters = [*sequence.memory.adapters, _nothing(jobs, adapters, sequences)]
            sequence.memory.rows.append(sequence.rows[i])
        return {
            "tokens": sum(o.tokens for o in outcomes) / len(outcomes),
            "dropped": sum(not w for w in weights),
            "weights": [round(w, 4) for w in weights],
            "kl": divergence(
                self.base,
                [s.memory.adapters[-1] if s.memory.adapters else None for s in sequences],
                [s.rows[i] for s in sequences],
            ),
        }

    def _gated(
        self, sequences: Sequence[Stream], adapters: Sequence[Adapter | None], weights: Sequence[float]
    ) -> list[float]:
        """For each sequence the largest weight that costs no more than :data:`HARM` of the probes."""
        before = self._known([s.memory.whole for s in sequences], self.probes)
        found = [0.0] * len(sequences)
        left = [k for k, a in enumerate(adapters) if a is not None]
        for scale in GATE:
            tried = [join(sequences[k].memory.whole, adapters[k], weights[k] * scale) for k in left]  # type: ignore[arg-type]
            after = self._known(tried, self.probes)
            passed = [k for k, score in zip(left, after, strict=True) if score >= before[k] - HARM]
            for k in passed:
                found[k] = weights[k] * scale
            left = [k for k in left if k not in passed]
            if not left:
                break
        return found

    def _own(self) -> Rows:
        """The untouched model's own answers to questions it knows, as rows: what it is to go on saying."""
        if not self.rehearsed:
            raise SealError(
                "the strategy `own` needs tasks that the model knows (Domain.known_tasks), and this domain "
                "names none"
            )
        prompts = tuple(q.prompt for t in self.rehearsed for q in self.domain.queries(t))
        wanted = Wanted("", prompts, 1, answering(self.domain, self.config.inner))
        answers = self.stage.once("own", lambda: [row[0] for row in samples_of(self.base, [wanted], [0])[0]])
        return tuple(
            Example(a, prompt=p.text, system=p.system, chat=True, answer=True)
            for p, a in zip(prompts, answers, strict=True)
            if a.strip()
        )

    # ------------------------------------------------------------------------------------------------- asking

    def _asked(self, apart: bool, sequences: Sequence[Stream], i: int) -> Json:
        """The row of the matrix after step ``i`` (of the passages asked), and after the last what else is
        lost."""
        c = self.config.continual
        last = i == c.length - 1
        first = 0 if last or (i + 1) % c.ask_every == 0 else i
        asked = [s.tasks[first : i + 1] for s in sequences]
        queries = [[q for t in tasks for q in self.domain.queries(t)] for tasks in asked]
        told: Json = {"first": first}
        if apart:
            answers, told["routed right"] = self._routed(sequences, queries, asked)
        else:
            answers = self._ask([s.memory.whole for s in sequences], queries)
        told["scores"] = self._scores(asked, answers)
        told["silent"] = sum(not a.strip() for row in answers for a in row) / max(1, sum(map(len, answers)))
        if last:
            whole = [s.memory.whole for s in sequences]
            if apart:
                known = [[q for t in self.known for q in self.domain.queries(t)] for _ in sequences]
                replies, _ = self._routed(sequences, known, None)
                told["known"] = [
                    sum(x) / len(x) for x in self._scores([self.known] * len(sequences), replies) if x
                ] or [self._routed_items(s) for s in sequences]
                whole = [None] * len(
                    sequences
                )  # writing an edit is nobody's question: no adapter is in force
            else:
                told["known"] = self._known(whole)
            told["edits"] = self._writing(whole)
        return told

    def _ask(
        self, adapters: Sequence[Adapter | None] | None, queries: Sequence[Sequence[Query]]
    ) -> list[list[str]]:
        who = [None] * len(queries) if adapters is None else list(adapters)
        return ask(
            self.base, who, [prompts_of(q) for q in queries], answering(self.domain, self.config.inner), 16
        )

    def _routed(
        self,
        sequences: Sequence[Stream],
        queries: Sequence[Sequence[Query]],
        asked: Sequence[Sequence[Task]] | None,
    ) -> tuple[list[list[str]], float]:
        """Answers through the adapter that a router picks by the question alone, and how often it picked the
        passage's own."""
        groups: dict[tuple[int, int], list[int]] = {}
        right = total = 0
        for s, (sequence, mine) in enumerate(zip(sequences, queries, strict=True)):
            router = _router(sequence)
            owners = [j for j, t in enumerate(asked[s]) for _ in self.domain.queries(t)] if asked else []
            for number, query in enumerate(mine):
                picked = router.pick(query.prompt.text)
                place = -1 if picked is None else picked
                groups.setdefault((s, place), []).append(number)
                if asked:
                    right += place == owners[number] + len(sequence.memory.adapters) - len(asked[s])
                    total += 1
        keys = sorted(groups)
        adapters = [sequences[s].memory.adapters[place] if place >= 0 else None for s, place in keys]
        replies = self._ask(adapters, [[queries[s][n] for n in groups[s, place]] for s, place in keys])
        answers = [[""] * len(mine) for mine in queries]
        for (s, place), texts in zip(keys, replies, strict=True):
            for number, text in zip(groups[s, place], texts, strict=True):
                answers[s][number] = text
        return answers, right / max(1, total)

    def _scores(self, asked: Sequence[Sequence[Task]], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """The score of each passage, from the flat answers of its sequence."""
        found = []
        for tasks, row in zip(asked, answers, strict=True):
            flat = iter(row)
            split = [[next(flat) for _ in self.domain.queries(t)] for t in tasks]
            found.append([g.score for g in graded(self.domain, list(tasks), split)])
        return found

    def _known(self, adapters: Sequence[Adapter | None], tasks: Sequence[Task] | None = None) -> list[float]:
        """Mean score of each adapter on what the untouched model knows."""
        probes = tasks is not None
        tasks = self.known if tasks is None else tasks
        if not tasks:
            mine = self.items[int(probes) :: 2]
            return [
                sum(row) / len(row) if row else 1.0
                for row in right_items(self.base, adapters, [mine] * len(adapters))
            ]
        queries = [q for t in tasks for q in self.domain.queries(t)]
        answers = self._ask(adapters, [queries] * len(adapters))
        return [sum(row) / len(row) for row in self._scores([tasks] * len(adapters), answers)]

    def _routed_items(self, sequence: Stream) -> float:
        """The share of the items that is right still where a router picks the adapter that answers."""
        router = _router(sequence)
        groups: dict[int | None, list[Item]] = {}
        for item in self.items[::2]:
            groups.setdefault(router.pick(item.question), []).append(item)
        adapters = [None if place is None else sequence.memory.adapters[place] for place in groups]
        right = [r for row in right_items(self.base, adapters, list(groups.values())) for r in row]
        return sum(right) / len(right) if right else 1.0

    def _writing(self, adapters: Sequence[Adapter | None]) -> list[float]:
        """Mean log-likelihood per token of edits that the untouched model wrote of other passages: the skill
        of writing edits."""
        seed = seed_of("skill", self.config.seed)
        texts = self.stage.once(
            "skill",
            lambda: write_edits(self.base, self.domain, self.fixed, 1, self.config.write, seed, self.stage),
        )
        queries = [
            Query(self.domain.prompt(t), text[0])
            for t, text in zip(self.fixed, texts, strict=True)
            if text[0].strip()
        ]
        return [
            sum(row) / max(1, len(row))
            for row in log_likelihood(self.base, adapters, [queries] * len(adapters), 4)
        ]

    # ------------------------------------------------------------------------------------------------- memory

    def _save(self, folder: Any, sequences: Sequence[Stream]) -> None:
        for s, sequence in enumerate(sequences):
            save_many(sequence.memory.adapters, folder / f"{s}.safetensors")

    def _restore(self, stage: Stage, sequences: Sequence[Stream], done: int) -> None:
        if done == self.config.continual.length:
            return
        for s, sequence in enumerate(sequences):
            sequence.memory.adapters = load_many(stage.folder / f"memory-{done - 1}" / f"{s}.safetensors")
            sequence.memory.rows = sequence.rows[:done]


def _router(sequence: Stream) -> Router:
    """Which of a sequence's adapters a question needs, by the passages that it has learnt."""
    learnt = sequence.tasks[: len(sequence.memory.adapters)]
    texts = [" ".join(x.completion for x in rows) for rows in sequence.memory.rows]
    return Router([str(t.data.get("title", t.id)) for t in learnt], texts)


def _nothing(jobs: Sequence[Any], adapters: Sequence[Adapter | None], sequences: Sequence[Stream]) -> Adapter:
    """An adapter that changes nothing, like any there is."""
    like = next((a for a in adapters if a is not None), None) or next(
        a for s in sequences for a in s.memory.adapters
    )
    return Adapter(like.rank, like.alpha, {n: (a * 0, b * 0) for n, (a, b) in like.weights.items()})
