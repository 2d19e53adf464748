"""Where domain and model meet: parse the edits, train an adapter on each, ask, grade, record."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import ValidationError

from seal.config import InnerConfig, RunConfig
from seal.domains import load_domain
from seal.domains.base import SPLITS, Domain
from seal.loop.judge import LocalJudge
from seal.lora.ask import ask
from seal.lora.capacity import Room, room_for
from seal.lora.load import load_policy
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.score import log_likelihood
from seal.lora.train import Job, Trained, train_adapters
from seal.progress import progress
from seal.records import Attempt, BadEdit, Edit, Grade, Prompt, Query, Recipe, SealError, Task, seed_of
from seal.store import Stage


@dataclass(frozen=True)
class Trial:
    """One thing to try: an edit (or a bad one) of a task, under a training seed."""

    task: Task
    edit: int
    seed: int
    parsed: Edit | BadEdit
    recipe: Recipe


def open_domain(config: RunConfig) -> Domain:
    """The domain of a run, with its judge loaded where that is a local model."""
    domain = load_domain(config.domain.name, config.domain.options)
    if domain.judge_model:
        m = config.model
        domain.judge = LocalJudge(
            load_policy(domain.judge_model, m.device, m.dtype, m.bf16, m.threads, m.quantize)
        )
    for note in domain.notes():
        print(f"seal: {note}", file=sys.stderr)
    return domain


def fingerprints(domain: Domain) -> dict[str, str]:
    """A hash of each split's tasks: their names, what a model is shown, and the gold answers."""
    found = {}
    for split in SPLITS:
        digest = hashlib.sha256()
        for task in domain.tasks(split):
            shown = [
                task.id,
                domain.prompt(task).text,
                *(x for q in domain.queries(task) for x in (q.prompt.text, q.gold)),
            ]
            digest.update(json.dumps(shown).encode())
        found[split] = digest.hexdigest()[:16]
    return found


def try_edits(
    policy: Model,
    domain: Domain,
    tasks: Sequence[Task],
    texts_P_E: Sequence[Sequence[str]],
    config: InnerConfig,
    stage: Stage,
    seed: object,
    label: str = "try edits",
    crew: Crew | None = None,
) -> list[Attempt]:
    """Train, ask and grade every edit; one attempt per (task, edit, training seed), in that order.

    Waves that the stage already holds are not repeated. Sibling edits share their training seeds. A ``crew``
    works on several waves at once; one that is done before its turn waits on disk.
    """
    numbered = [dict(enumerate(texts)) for texts in texts_P_E]
    trials = trials_of(domain, tasks, numbered, config, seed, range(config.seeds))
    return work_through(policy, domain, tasks, trials, config, stage, label, crew)


def trials_of(
    domain: Domain,
    tasks: Sequence[Task],
    texts_P: Sequence[Mapping[int, str]],
    config: InnerConfig,
    seed: object,
    numbers: range,
) -> list[Trial]:
    """The trials of some numbered edits of every task, under the training seeds of these numbers, which
    siblings share."""
    return [
        _trial(domain, task, e, s, text, config, seed)
        for task, texts in zip(tasks, texts_P, strict=True)
        for e, text in texts.items()
        for s in numbers
    ]


def work_through(
    policy: Model,
    domain: Domain,
    tasks: Sequence[Task],
    trials: Sequence[Trial],
    config: InnerConfig,
    stage: Stage,
    label: str,
    crew: Crew | None = None,
) -> list[Attempt]:
    """An attempt per trial, in order; what the stage holds already is not repeated."""
    before = unadapted(policy, domain, tasks, config, stage)
    attempts = stage.resumed(config.wave, len(trials))
    room = room_of(policy, config, stage)
    with progress(label, len(trials)) as advance:
        advance(len(attempts))
        turn, last = len(attempts) // config.wave, -(-len(trials) // config.wave)
        numbers = range(turn, last) if len(attempts) < len(trials) else ()
        todo = {n: trials[n * config.wave : (n + 1) * config.wave] for n in numbers}
        early = {n: wave for n in todo if (wave := stage.aside(n))}
        owed = {n: wave for n, wave in todo.items() if n not in early}
        alone = ((n, try_wave(policy, domain, wave, before, config, room)) for n, wave in owed.items())
        done = crew.waves(policy, owed, before, config, room) if crew else alone
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


class Crew(Protocol):
    """Who works on the waves of a stage, where it is not this process."""

    def waves(
        self,
        policy: Model,
        waves: Mapping[int, Sequence[Trial]],
        before: Mapping[str, Grade],
        config: InnerConfig,
        room: Room,
    ) -> Iterator[tuple[int, list[Attempt]]]:
        """Number and attempts of each wave, as they are done."""
        ...


def room_of(policy: Model, config: InnerConfig, stage: Stage) -> Room:
    """How many adapters go side by side: what fits, unless the config says. Kept with the stage, because a
    run that is resumed ends bit-identical only if the same adapters meet in the same passes."""

    def compute() -> dict[str, int]:
        fits = room_for(policy, [config.recipe])
        slots = fits.slots if config.slots == "auto" else config.slots
        return {"slots": slots, "tokens": fits.tokens if config.pass_tokens == "auto" else config.pass_tokens}

    return Room(**stage.once("room", compute))


def unadapted(
    policy: Model, domain: Domain, tasks: Sequence[Task], config: InnerConfig, stage: Stage
) -> dict[str, Grade]:
    """What the model scores on each task before any edit: asked once per task."""

    def compute() -> list[list[str]]:
        return ask(
            policy,
            [None] * len(tasks),
            [prompts_of(domain.queries(t)) for t in tasks],
            answering(domain, config),
        )

    answers = stage.once("before", compute)
    return {t.id: g for t, g in zip(tasks, graded(domain, tasks, answers), strict=True)}


def graded(domain: Domain, tasks: Sequence[Task], answers: Sequence[Sequence[str]]) -> list[Grade]:
    """Grades that must be there, to compare with.

    Raises:
        SealError: a judge did not give them all.
    """
    grades = domain.grade_all(tasks, answers)
    known = [g for g in grades if g is not None]
    if len(known) < len(grades):
        raise SealError(
            f"the judge left {len(grades) - len(known)} of {len(grades)} tasks ungraded; run the same "
            "command again to go on"
        )
    return known


def answering(domain: Domain, config: InnerConfig) -> Sampling:
    """How answers are drawn: greedy, up to the domain's end of an answer (a base model goes on with questions
    of its own)."""
    return Sampling(config.answer_tokens, stop=domain.stop)


def prompts_of(queries: Sequence[Query]) -> list[Prompt]:
    return [q.prompt for q in queries]


def _trial(
    domain: Domain, task: Task, edit: int, number: int, text: str, config: InnerConfig, seed: object
) -> Trial:
    parsed, recipe = understand(domain, task, text, config.recipe)
    return Trial(task, edit, seed_of("inner", seed, task.id, number), parsed, recipe)


def understand(domain: Domain, task: Task, text: str, recipe: Recipe) -> tuple[Edit | BadEdit, Recipe]:
    """An edit and the recipe it asks for; an edit without rows, or whose settings are out of bounds, is a bad
    one."""
    parsed = domain.parse(task, text)
    if isinstance(parsed, Edit) and not parsed.examples:
        return BadEdit(text, "no training row"), recipe
    if isinstance(parsed, Edit) and parsed.directives:
        try:
            return parsed, Recipe.model_validate({**recipe.model_dump(), **parsed.directives})
        except ValidationError as error:
            first = error.errors()[0]
            return BadEdit(text, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"), recipe
    return parsed, recipe


def try_wave(
    policy: Model,
    domain: Domain,
    trials: Sequence[Trial],
    before: Mapping[str, Grade],
    config: InnerConfig,
    room: Room,
) -> list[Attempt]:
    start = time.monotonic()
    good = [t for t in trials if isinstance(t.parsed, Edit)]
    jobs = [Job(t.parsed.examples, t.recipe, t.seed) for t in good if isinstance(t.parsed, Edit)]
    trained = train_adapters(policy, jobs, room)
    adapted = [(t, r) for t, r in zip(good, trained, strict=True) if r.adapter is not None]
    adapters = [r.adapter for _, r in adapted]
    queries = [domain.queries(t.task) for t, _ in adapted]
    answers = ask(policy, adapters, [prompts_of(q) for q in queries], answering(domain, config), room.slots)
    likelihoods = log_likelihood(policy, adapters, queries, room.slots)
    grades = domain.grade_all([t.task for t, _ in adapted], answers)
    asked = {id(t): x for (t, _), *x in zip(adapted, answers, likelihoods, grades, strict=True)}
    outcomes = {id(t): r for t, r in zip(good, trained, strict=True)}
    seconds = (time.monotonic() - start) / max(1, len(trials))
    return [
        replace(
            _attempt(t, outcomes.get(id(t)), asked.get(id(t)), before[t.task.id], config), seconds=seconds
        )
        for t in trials
    ]


def _attempt(
    trial: Trial,
    outcome: Trained | None,
    asked: Sequence[Any] | None,
    before: Grade,
    config: InnerConfig,
) -> Attempt:
    common: dict[str, Any] = {
        "task": trial.task.id,
        "edit": trial.edit,
        "seed": trial.seed,
        "text": trial.parsed.text,
        "before": before.score,
    }
    if isinstance(trial.parsed, BadEdit) or outcome is None:
        reason = trial.parsed.reason if isinstance(trial.parsed, BadEdit) else ""
        # Nothing was learnt, so the model answers as before; the reward is 0 all the same: a bad edit must
        # not pay.
        return Attempt(
            **common,
            status="bad edit",
            reason=reason,
            reward=0.0,
            after=before.score,
            scores=before.scores,
            kinds=before.kinds,
        )
    done: dict[str, Any] = {
        "rows": len(trial.parsed.examples),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
    }
    if asked is None:
        reason = f"training gave a number that is not finite, at step {outcome.steps}"
        zeros = tuple(0.0 for _ in before.scores)
        return Attempt(
            **common,
            **done,
            status="diverged",
            reason=reason,
            reward=0.0,
            after=0.0,
            scores=zeros,
            kinds=before.kinds,
            loss=outcome.loss if all(map(math.isfinite, outcome.loss)) else (0.0, 0.0),
        )
    answers, lls, grade = asked
    silent = sum(not a.strip() for a in answers) / max(1, len(answers))
    if grade is None:
        zeros, reason = tuple(0.0 for _ in before.scores), "the judge gave no verdict"
        ungraded: dict[str, Any] = {
            "status": "ungraded",
            "reason": reason,
            "reward": None,
            "after": before.score,
        }
        return Attempt(
            **common,
            **done,
            **ungraded,
            answers=tuple(answers),
            scores=zeros,
            kinds=before.kinds,
            silent=silent,
            loss=outcome.loss,
        )
    likelihoods = tuple(round(math.exp(ll), 6) for ll in lls)
    likely = sum(math.exp(ll) for ll in lls) / max(1, len(lls))
    reward = {"accuracy": grade.score, "likelihood": likely, "mixed": (grade.score + likely) / 2}[
        config.reward
    ]
    return Attempt(
        **common,
        **done,
        status="ok",
        reason="",
        reward=reward,
        after=grade.score,
        answers=tuple(answers),
        scores=grade.scores,
        kinds=grade.kinds,
        silent=silent,
        log_likelihood=sum(lls) / max(1, len(lls)),
        likelihoods=likelihoods,
        loss=outcome.loss,
    )
