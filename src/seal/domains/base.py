"""What a domain is: five small pure methods. They know the world, and nothing of models."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from seal.domains.judges import Judge
from seal.records import Attempt, BadEdit, Edit, Grade, Prompt, Query, SealError, Task, Wanted

SPLITS = ("train", "select", "eval")


def split_sizes(sizes: Mapping[str, int] | None, default: Mapping[str, int]) -> dict[str, int]:
    """The number of tasks in each split, in the order of :data:`SPLITS` whatever the order given.

    Raises:
        SealError: a split is missing or unknown, its size is not a number, or all are empty.
    """
    given = dict(default if sizes is None else sizes)
    if (
        set(given) != set(SPLITS)
        or any(type(n) is not int or n < 0 for n in given.values())
        or not any(given.values())
    ):
        raise SealError(
            f"sizes must name {', '.join(SPLITS)}, each with a number, and not all 0: not {given}"
        )
    return {split: given[split] for split in SPLITS}


class Domain(ABC):
    """A kind of thing to learn from. Subclass it in your own file and name it ``my_domain.py:MyDomain`` in
    the config."""

    stop = "\n"
    """Text that ends an answer once something is written: a line break, where an answer is a line."""

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of ``train``, ``select`` or ``eval``; the three share nothing. Always the same, in the
        same order."""

    @abstractmethod
    def prompt(self, task: Task) -> Prompt:
        """What the model is shown when it is to write a self-edit."""

    @abstractmethod
    def parse(self, task: Task, text: str) -> Edit | BadEdit | Wanted:
        """A self-edit understood. The text is untrusted: bound everything, evaluate nothing, refuse with a
        reason."""

    @abstractmethod
    def queries(self, task: Task) -> Sequence[Query]:
        """The test, as the adapted model meets it."""

    @abstractmethod
    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        """The score of one answer per query. Gold answers grade 1, silence grades 0."""

    # ---- A judge, and what is cut off. For those whose answers a model grades, or whose edits are no lines.

    judge: Judge | None = None
    """A model that grades, where the domain has one; whoever loads models sets it
    (:func:`seal.loop.inner.open_domain`)."""
    judge_model = ""
    """The model that is to be loaded as the judge; empty for none."""

    def grade_all(self, tasks: Sequence[Task], answers: Sequence[Sequence[str]]) -> list[Grade | None]:
        """Grades of many tasks at once, which a judge behind an endpoint does side by side. ``None``:
        *ungraded*."""
        return [self.grade(t, a) for t, a in zip(tasks, answers, strict=True)]

    def finished(self, text: str) -> str:
        """What is whole of an edit that the limit of tokens cut off: up to its last line break; all of it,
        where no line is whole."""
        return text.rpartition("\n")[0] or text

    # ---- A test that talks. For those whose second question depends on the first answer.

    def test(self, task: Task) -> Generator[Sequence[Query], Sequence[str], Grade | None]:
        """The whole test: yields queries, receives an answer to each, and so on; returns the grade, or
        ``None`` for what :meth:`grade_all` makes of the answers. By default :meth:`queries` are asked
        once."""
        yield self.queries(task)
        return None

    # ---- Rows that the model writes itself. For those whose ``parse`` gives a ``Wanted``.

    def compose(self, task: Task, edit: Wanted, samples: Sequence[Sequence[str]]) -> Edit | BadEdit:
        """The rows that an edit makes of what the model wrote: ``edit.n`` samples for each of
        ``edit.prompts``."""
        raise SealError(
            f"parse of the domain {type(self).__name__} gives Wanted, and it has no method compose"
        )

    # ---- Directives. For those whose edits are choices, or JSON.

    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of a self-edit, where it is a JSON object: for constrained sampling."""
        return None

    def explore(self, rng: random.Random) -> str | None:
        """Directives drawn at random, as a line that a self-edit may end with (``write.explore``). ``None``:
        not offered."""
        return None

    def fixed(self, attempts: Sequence[Attempt]) -> str | None:
        """The text of the one edit for all tasks that did best in trials on training tasks, where an edit is
        a choice of settings."""
        return None

    # ---- Baselines and controls of the table of writers. What is not offered is left out of it.

    def open_queries(self, task: Task) -> Sequence[Query]:
        """The test with the context in view: what the model can do by reading. Empty: not offered."""
        return ()

    def retrieval_queries(self, tasks: Sequence[Task], k: int) -> list[Sequence[Query]]:
        """The test with the ``k`` contexts in view that a search over all these tasks' finds: the alternative
        to learning. Empty: not offered."""
        return []

    def oracle(self, task: Task) -> str | None:
        """The text of a perfect self-edit, where one is known."""
        return None

    def plain(self, task: Task) -> str | None:
        """The text of the edit that trains on the context alone, where that makes sense."""
        return None

    def known_tasks(self, n: int) -> Sequence[Task]:
        """``n`` tasks that the untouched model has the answers to, to see what it forgets. Empty: not
        offered."""
        return ()

    # ---- Evidence: how tasks belong together, and what people see of them.

    def group(self, task: Task) -> str:
        """What tasks are drawn together by: those of one group are alike, and intervals count groups. By
        default every task is its own."""
        return task.id

    def notes(self) -> Sequence[str]:
        """What a user should know of the tasks as they were read: passages that repeat each other, say. A
        sentence each."""
        return ()

    def features(self, task: Task, texts: Sequence[str]) -> dict[str, float]:
        """What can be said of sibling edits without training on them, each a share in [0, 1]. Empty: the
        report takes its own, of texts about a passage."""
        return {}

    def picture(self, task: Task, text: str, before: Sequence[str], after: Sequence[str]) -> str:
        """A task with an edit and the answers before and after it, as HTML for the report. Whatever a model
        wrote must be escaped."""
        return ""
