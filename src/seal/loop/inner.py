"""Where domain and model meet: parse the edits, train an adapter on each, ask, grade, record."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pydantic import ValidationError

from seal.config import InnerConfig, RunConfig
from seal.domains import load_domain
from seal.domains.base import Domain
from seal.loop.exam import Test, answering, graded, marked, prompts_of
from seal.loop.judge import LocalJudge
from seal.loop.rooms import Rooms, inner_rooms
from seal.lora.adapter import Adapter
from seal.lora.capacity import Room
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.sample import ask, generate
from seal.lora.score import log_likelihood
from seal.lora.train import Job, Trained, train_adapters
from seal.progress import progress
from seal.records import (
    UNFINISHED,
    Attempt,
    BadEdit,
    Edit,
    Grade,
    Recipe,
    Task,
    Wanted,
    seed_of,
    spoken,
)
from seal.store import Stage

MAX_SAMPLES = 256
"""That one edit may want of the model."""


@dataclass(frozen=True)
class Trial:
    """One thing to try: an edit (or a bad one, or one that wants the model to write its rows) of a task,
    under a training seed."""

    task: Task
    edit: int
    seed: int
    parsed: Edit | BadEdit | Wanted
    recipe: Recipe


def open_domain(config: RunConfig) -> Domain:
    """The domain of a run, with its judge loaded where that is a local model."""
    domain = load_domain(config.domain.name, config.domain.options)
    if domain.judge_model:
        domain.judge = LocalJudge(
            load_model(
                config.model.at(domain.judge_model).model_copy(update={"chat": "auto", "system": None})
            )
        )
    for note in domain.notes():
        print(f"seal: {note}", file=sys.stderr)
    return domain


class Workers(Protocol):
    """Who works on the waves of a stage: this process (:data:`HERE`), or others
    (:class:`seal.loop.workers.RayWorkers`)."""

    def waves(
        self,
        inner: InnerLoop,
        model: Model,
        waves: Mapping[int, Sequence[Trial]],
        before: Mapping[str, Grade],
        rooms: Rooms,
    ) -> Iterator[tuple[int, list[Attempt]]]:
        """Number and attempts of each wave, as they are done."""
        ...


class _Here:
    """This process, one wave after the other."""

    def waves(
        self,
        inner: InnerLoop,
        model: Model,
        waves: Mapping[int, Sequence[Trial]],
        before: Mapping[str, Grade],
        rooms: Rooms,
    ) -> Iterator[tuple[int, list[Attempt]]]:
        for n, wave in waves.items():
            yield n, rooms.within(n, partial(inner.wave, model, wave, before))


HERE = _Here()


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop of a domain: edits in, attempts out. It holds no state; what is done lies in the
    stage."""

    domain: Domain
    config: InnerConfig
    workers: Workers = HERE

    def before(self, model: Model, tasks: Sequence[Task], stage: Stage) -> dict[str, Grade]:
        """What the model scores on each task before any edit: asked once per task."""
        answers = stage.once(
            "before", lambda: [t.answers for t in self.tested(model, [None] * len(tasks), tasks)]
        )
        return {t.id: g for t, g in zip(tasks, graded(self.domain, tasks, answers), strict=True)}

    def try_edits(
        self,
        model: Model,
        tasks: Sequence[Task],
        texts_P_E: Sequence[Sequence[str]],
        stage: Stage,
        seed: object,
    ) -> list[Attempt]:
        """Train, ask and grade every edit; one attempt per (task, edit, training seed), in that order.
        Sibling edits share their training seeds."""
        numbered = [dict(enumerate(texts)) for texts in texts_P_E]
        return self.work_through(
            model, tasks, self.trials(tasks, numbered, seed, range(self.config.seeds)), stage
        )

    def trials(
        self, tasks: Sequence[Task], texts_P: Sequence[Mapping[int, str]], seed: object, numbers: range
    ) -> list[Trial]:
        """The trials of some numbered edits of every task, under the training seeds of these numbers, which
        siblings share."""
        found = []
        for task, texts in zip(tasks, texts_P, strict=True):
            for edit, text in texts.items():
                parsed, recipe = understand(self.domain, task, text, self.config.recipe)
                found += [
                    Trial(task, edit, seed_of("inner", seed, task.id, s), parsed, recipe) for s in numbers
                ]
        return found

    def work_through(
        self, model: Model, tasks: Sequence[Task], trials: Sequence[Trial], stage: Stage
    ) -> list[Attempt]:
        """An attempt per trial, in order. Waves that the stage already holds are not repeated; workers may be
        at several at once, and one that is done before its turn waits on disk."""
        size = self.config.wave
        before = self.before(model, tasks, stage)
        attempts = stage.resumed(size, len(trials))
        rooms = inner_rooms(model, self.config, stage)
        with progress(f"{stage.label}: try edits", len(trials)) as advance:
            advance(len(attempts))
            turn, last = len(attempts) // size, -(-len(trials) // size)
            numbers = range(turn, last) if len(attempts) < len(trials) else ()
            todo = {n: trials[n * size : (n + 1) * size] for n in numbers}
            early = {n: wave for n in todo if (wave := stage.aside(n))}
            owed = {n: wave for n, wave in todo.items() if n not in early}
            done = self.workers.waves(self, model, owed, before, rooms)
            advance(sum(map(len, early.values())))
            while turn in todo:
                if turn in early:
                    attempts += early[turn]
                    stage.append(early.pop(turn), turn)
                    turn += 1
                    continue
                n, wave = next(done)
                advance(len(wave))
                if n != turn:
                    stage.put_aside(n, wave)
                early[n] = wave
        return attempts

    def wave(
        self, model: Model, trials: Sequence[Trial], before: Mapping[str, Grade], room: Room
    ) -> list[Attempt]:
        """These trials, side by side.

        Raises:
            OutOfRoom: memory ran out.
        """
        start = time.monotonic()
        trials = self._composed(model, trials)
        jobs = {
            i: Job(t.parsed.examples, t.recipe, t.seed)
            for i, t in enumerate(trials)
            if isinstance(t.parsed, Edit)
        }
        trained = dict(zip(jobs, train_adapters(model, list(jobs.values()), room), strict=True))
        adapters = {i: r.adapter for i, r in trained.items() if r.adapter is not None}
        tests = self.tested(model, list(adapters.values()), [trials[i].task for i in adapters], room.slots)
        likely = log_likelihood(model, list(adapters.values()), [t.queries for t in tests], room.slots)
        grades = marked(self.domain, tests)
        asked = dict(zip(adapters, zip(tests, likely, grades, strict=True), strict=True))
        seconds = (time.monotonic() - start) / max(1, len(trials))
        found = []
        for i, trial in enumerate(trials):
            attempt = Attempt.begun(
                trial.task.id, trial.edit, trial.seed, trial.parsed.text, before[trial.task.id]
            )
            found.append(replace(self._told(attempt, trial, trained.get(i), asked.get(i)), seconds=seconds))
        return found

    def _told(
        self,
        attempt: Attempt,
        trial: Trial,
        trained: Trained | None,
        asked: tuple[Test, list[float], Grade | None] | None,
    ) -> Attempt:
        if isinstance(trial.parsed, BadEdit):
            return attempt.refused(trial.parsed.reason)
        assert isinstance(trial.parsed, Edit) and trained is not None
        attempt = attempt.trained(len(trial.parsed.examples), trained.steps, trained.tokens, trained.loss)
        if asked is None:
            return attempt.diverged()
        test, logs, grade = asked
        if grade is None:
            return attempt.ungraded(test.answers)
        likely = sum(map(math.exp, logs)) / max(1, len(logs))
        rewards = {"accuracy": grade.score, "likelihood": likely, "mixed": (grade.score + likely) / 2}
        return replace(
            attempt.graded(test.answers, grade, rewards[self.config.reward]),
            log_likelihood=sum(logs) / max(1, len(logs)),
            likelihoods=tuple(round(math.exp(x), 6) for x in logs),
        )

    def _composed(self, model: Model, trials: Sequence[Trial]) -> list[Trial]:
        """The trials with their rows: where an edit wants some that the model writes itself, they are written
        now. What is drawn depends on the edit alone."""
        wanting = [i for i, t in enumerate(trials) if isinstance(t.parsed, Wanted)]
        wanted = [t.parsed for t in trials if isinstance(t.parsed, Wanted)]
        seeds = [seed_of("wanted", trials[i].task.id, trials[i].edit, trials[i].parsed.text) for i in wanting]
        composed = list(trials)
        for i, edit, texts in zip(wanting, wanted, samples_of(model, wanted, seeds), strict=True):
            trial = trials[i]
            parsed, recipe = checked(self.domain.compose(trial.task, edit, texts), trial.recipe)
            composed[i] = replace(trial, parsed=parsed, recipe=recipe)
        return composed

    def tested(
        self, model: Model, adapters: Sequence[Adapter | None], tasks: Sequence[Task], slots: int = 32
    ) -> list[Test]:
        """The test of each task, taken through its own adapter: all of them turn by turn, side by side."""
        tests = [Test(self.domain, t) for t in tasks]
        while going := [i for i, t in enumerate(tests) if t.asked]:
            prompts = [prompts_of(tests[i].asked) for i in going]
            answers = ask(
                model, [adapters[i] for i in going], prompts, answering(self.domain, self.config), slots
            )
            for i, mine in zip(going, answers, strict=True):
                tests[i].hear(mine)
        return tests


def understand(
    domain: Domain, task: Task, text: str, recipe: Recipe
) -> tuple[Edit | BadEdit | Wanted, Recipe]:
    """An edit and the recipe it asks for; an edit without rows, or whose settings are out of bounds, is a bad
    one."""
    said = spoken(text)
    if said is None:
        return BadEdit(text, UNFINISHED), recipe
    parsed = domain.parse(task, said)
    if isinstance(parsed, Wanted):
        if not 0 < len(parsed.prompts) * parsed.n <= MAX_SAMPLES:
            return BadEdit(
                text, f"it wants {len(parsed.prompts) * parsed.n} samples, and 1 to {MAX_SAMPLES} are had"
            ), recipe
        return parsed, recipe
    return checked(parsed, recipe)


def checked(parsed: Edit | BadEdit, recipe: Recipe) -> tuple[Edit | BadEdit, Recipe]:
    """The same, with what it asks for of the recipe, where both are in order."""
    if isinstance(parsed, BadEdit):
        return parsed, recipe
    if not parsed.examples:
        return BadEdit(parsed.text, "no training row"), recipe
    if not parsed.directives:
        return parsed, recipe
    try:
        return parsed, Recipe.model_validate({**recipe.model_dump(), **parsed.directives})
    except ValidationError as error:
        first = error.errors()[0]
        return BadEdit(parsed.text, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"), recipe


def samples_of(model: Model, wanted: Sequence[Wanted], seeds: Sequence[int]) -> list[list[list[str]]]:
    """What the model writes to what each of these edits wants written: for every prompt ``n`` texts. Those
    that want the same kind of sample are written together."""
    found: list[list[list[str]]] = [[[] for _ in w.prompts] for w in wanted]
    for kind in dict.fromkeys(w.sampling for w in wanted):
        places = [
            (i, p, k)
            for i, w in enumerate(wanted) if w.sampling == kind
            for p in range(len(w.prompts)) for k in range(w.n)
        ]  # fmt: skip
        drawn = [seed_of("sample", seeds[i], p, k) for i, p, k in places]
        texts = generate(model, [wanted[i].prompts[p] for i, p, _ in places], kind, drawn)
        for (i, p, _), text in zip(places, texts, strict=True):
            found[i][p].append(text)
    return found
