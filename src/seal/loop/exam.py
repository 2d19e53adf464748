"""The test of a task, turn by turn, and its grade."""

from __future__ import annotations

from collections.abc import Sequence

from seal.config import InnerConfig
from seal.domains.base import Domain
from seal.lora.records import Sampling
from seal.records import Grade, Prompt, Query, SealError, Task

MAX_TURNS = 16
"""Of a test that talks: one that goes on for longer does not end."""


class Test:
    """One task's test going on (:meth:`seal.domains.base.Domain.test`): what is asked now, and what was said
    so far."""

    __test__ = False  # pytest's word for what it collects

    def __init__(self, domain: Domain, task: Task) -> None:
        self.task = task
        self.queries: list[Query] = []
        self.answers: list[str] = []
        self.grade: Grade | None = None
        """Of a test that grades itself."""
        self.turns = 0
        self._talk = domain.test(task)
        self.asked: list[Query] = list(next(self._talk, ()))
        self.queries += self.asked

    def hear(self, answers: Sequence[str]) -> None:
        """The answers to what is asked now.

        Raises:
            SealError: the test does not end.
        """
        self.answers += answers
        self.turns += 1
        try:
            self.asked = list(self._talk.send(list(answers)))
        except StopIteration as end:
            self.asked, self.grade = [], end.value
        self.queries += self.asked
        if self.turns >= MAX_TURNS and self.asked:
            raise SealError(f"the test of the task {self.task.id!r} goes on after {MAX_TURNS} turns")

    def replay(self, answers: Sequence[str]) -> Test:
        """The whole test by answers that were given before."""
        rest = iter(answers)
        while self.asked:
            self.hear([next(rest, "") for _ in self.asked])
        return self


def marked(domain: Domain, tests: Sequence[Test]) -> list[Grade | None]:
    """The grade of each test: its own, or the domain's, all of them at once. ``None``: *ungraded*."""
    open_ = [t for t in tests if t.grade is None]
    grades = iter(domain.grade_all([t.task for t in open_], [t.answers for t in open_]))
    return [next(grades) if t.grade is None else t.grade for t in tests]


def graded(domain: Domain, tasks: Sequence[Task], answers: Sequence[Sequence[str]]) -> list[Grade]:
    """Grades that must be there, to compare with.

    Raises:
        SealError: a judge did not give them all.
    """
    tests = [Test(domain, t).replay(a) for t, a in zip(tasks, answers, strict=True)]
    return must_be_graded(marked(domain, tests))


def must_be_graded(grades: Sequence[Grade | None]) -> list[Grade]:
    """
    Raises:
        SealError: a judge did not give them all.
    """
    known = [g for g in grades if g is not None]
    if len(known) < len(grades):
        raise SealError(
            f"the judge gave no verdict on {len(grades) - len(known)} of {len(grades)} tasks, so they have no "
            "score: take another judge, or leave those tasks out"
        )
    return known


def answering(domain: Domain, config: InnerConfig) -> Sampling:
    """How answers are drawn: greedy, up to the domain's end of an answer (a base model goes on with questions
    of its own)."""
    return Sampling(config.answer_tokens, stop=domain.stop)


def prompts_of(queries: Sequence[Query]) -> list[Prompt]:
    return [q.prompt for q in queries]
