"""Knowledge incorporation: read a passage, write what is worth learning from it, be asked without it.

Passages are JSON records ``{title, context, questions: [{question, answer}]}`` (SEAL's own files), or SQuAD's
nested form, or the invented world (:mod:`seal.domains.knowledge.atlas`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seal.domains.base import Domain, split_sizes
from seal.domains.grading import GRADERS, best_f1, best_over, golds_of
from seal.domains.judges import EndpointJudge, Item, any_of
from seal.domains.knowledge import atlas, prompts
from seal.domains.knowledge.division import divide, grouped, shared_questions
from seal.domains.knowledge.passages import noted_passages
from seal.domains.retrieval import Retriever
from seal.endpoint import is_endpoint
from seal.records import BadEdit, Edit, Example, Grade, Prompt, Query, SealError, Task

MAX_EDIT_CHARS = 20_000
"""A longer self-edit is refused: no real one comes near (the longest released edit has about 9,000)."""
MAX_ROWS = 256
"""Most training rows one self-edit may make."""
MAX_LINE_CHARS = 2_000
"""A longer line is refused."""


class Knowledge(Domain):
    """Passages and their questions.

    Args:
        source: ``"atlas"`` for the invented world, a JSON file of passages, or a data set of the hub in
            SQuAD's form (``hub:rajpurkar/squad``, ``hub:rajpurkar/squad:validation``).
        prompt: the prompt variant: one of :data:`seal.domains.knowledge.prompts.WRITE`, or the text of a
            template with ``{title}`` and ``{context}``.
        grader: ``"exact"``, ``"string"``, or a judge: a model behind an endpoint
            (``http://localhost:8000/v1#name``), or ``hf:NAME`` for one that is loaded here.
        sizes: tasks in each split; the passages of a file are dealt out by title, in an order drawn from the
            seed.
        seed: of the invented world and of the division of a file.
        passage_row: also train on the passage itself, with its title (the paper does).
        strict: refuse a file with a record that is no passage, where it is left out and said otherwise.
        directives: the first or last line of an edit may be a JSON object that says how to train on it
            (:class:`Directives`).
    """

    def __init__(
        self,
        source: str = "atlas",
        prompt: str = "implications",
        grader: str = "exact",
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        passage_row: bool = True,
        directives: bool = False,
        strict: bool = False,
    ) -> None:
        if not isinstance(source, str):
            raise SealError(f"source is 'atlas' or the name of a file, not {source!r}")
        self.source = source
        self.template = prompts.WRITE.get(prompt, prompt)
        if "{context}" not in self.template:
            raise SealError(
                f"no prompt variant is named {prompt!r} (there are: {', '.join(prompts.WRITE)}), and a "
                "template needs {context}"
            )
        try:
            self.template.format(title="", context="")
        except (KeyError, ValueError, IndexError) as error:
            raise SealError(
                f"the prompt template has a slot other than {{title}} and {{context}}: {error}"
            ) from error
        if is_endpoint(grader):
            self.judge = EndpointJudge(grader)
        elif grader.startswith("hf:"):
            self.judge_model = grader.removeprefix("hf:")
        elif grader not in GRADERS:
            raise SealError(
                f"no grader is named {grader!r}; there are: {', '.join(GRADERS)}, http://…#model and hf:MODEL"
            )
        self.qa = prompt == "self-qa"
        self.grader = GRADERS.get(grader, GRADERS["string"])
        self.sizes = split_sizes(sizes, {"train": 48, "select": 32, "eval": 64})
        self.seed = seed
        self.passage_row, self.directives, self.strict = passage_row, directives, strict
        self._tasks: dict[str, list[Task]] = {}
        self._notes: list[str] = []
        self._groups: dict[str, str] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        if not self._tasks:
            self._tasks = self._atlas() if self.source == "atlas" else self._read()
        if split not in self._tasks:
            raise SealError(f"there is no split {split!r}; there are: {', '.join(self._tasks)}")
        return self._tasks[split]

    def _read(self) -> dict[str, list[Task]]:
        passages, said = noted_passages(Path(self.source), self.strict)
        self._notes += said
        groups, repeats = grouped(passages)
        self._groups = {row["id"]: name for row, name in zip(passages, groups, strict=True)}
        tasks = divide(passages, self.sizes, self.seed, groups)
        if repeats:
            self._notes.append(
                f"{self.source}: {len(repeats)} passages under other titles repeat another nearly word for "
                "word, and stand on its side "
                f"(the first: {repeats[0]!r})"
            )
        if shared := shared_questions(tasks):
            question, first, second = shared[0]
            self._notes.append(
                f"{self.source}: {len(shared)} questions stand with the same answer in two splits: "
                f"{question!r} in {first} and {second}" + (", and so on" if len(shared) > 1 else "")
            )
        return tasks

    def notes(self) -> Sequence[str]:
        self.tasks("train")
        return self._notes

    def _atlas(self) -> dict[str, list[Task]]:
        try:
            records = {s: [atlas.record(s, i, self.seed) for i in range(n)] for s, n in self.sizes.items()}
        except IndexError as error:
            raise SealError(f"the invented world is too small for sizes {self.sizes}: {error}") from error
        return {s: [Task(r["id"], r) for r in rows] for s, rows in records.items()}

    def group(self, task: Task) -> str:
        """The article: passages of one title are alike, and of titles that share a text."""
        return self._groups.get(task.id, str(task.data["title"]))

    def prompt(self, task: Task) -> Prompt:
        return Prompt(self.template.format(title=task.data["title"], context=task.data["context"]))

    def parse(self, task: Task, text: str) -> Edit | BadEdit:
        if (
            text == task.data["context"]
        ):  # the passage alone, whatever it looks like: the baseline must be what it says
            return Edit(text, self._passage(task))
        if len(text) > MAX_EDIT_CHARS:
            return BadEdit(
                text[:MAX_EDIT_CHARS], f"too long: {len(text)} characters, at most {MAX_EDIT_CHARS}"
            )
        if bad := next((c for c in text if ord(c) < 32 and c not in "\n\t\r"), None):
            return BadEdit(text, f"control character U+{ord(bad):04X}")
        if "\ufffd" in text:
            return BadEdit(text, "not text: bytes that decode to nothing")
        pieces = self._pieces(text)
        lines = [" ".join(p.split()) if self.qa else p.strip() for p in pieces]
        lines = [line for line in lines if line]
        chosen = Directives()
        if self.directives:
            try:
                chosen, lines = _directed(lines)
            except ValueError as error:
                return BadEdit(text, f"directives: {_reason(error)}")
        if not lines:
            return BadEdit(text, "empty")
        if len(lines) > MAX_ROWS:
            return BadEdit(text, f"too many lines: {len(lines)}, at most {MAX_ROWS}")
        if any(len(line) > MAX_LINE_CHARS for line in lines):
            return BadEdit(text, f"a line of more than {MAX_LINE_CHARS} characters")
        # A line that is the passage itself adds nothing to the passage row: so the passage alone is written
        # as an edit.
        rows = [
            Example(f"{task.data['title']}\n{line}")
            for line in lines
            if not (self.passage_row and line == task.data["context"])
        ]
        passage = self._passage(task) * (chosen.repeat or 1) if self.passage_row else ()
        return Edit(text, (*passage, *rows), chosen.model_dump(exclude_none=True, exclude={"repeat"}))

    def finished(self, text: str) -> str:
        """All lines but the last (for ``self-qa`` all questions with their answers but the last): half a line
        teaches half a fact. Where no line is whole, what there is."""
        return "\n".join(self._pieces(text)[:-1]) or text

    def _pieces(self, text: str) -> list[str]:
        return (
            re.split(r"\n(?=\s*(?:question|q)\s*\d*\s*[:.])", text, flags=re.IGNORECASE)
            if self.qa
            else text.split("\n")
        )

    def _passage(self, task: Task) -> tuple[Example]:
        return (Example(f"{task.data['title']}\n{task.data['context']}"),)

    def explore(self, rng: random.Random) -> str | None:
        """Directives drawn at random, each left out now and then."""
        if not self.directives:
            return None
        drawn = {name: rng.choice(values) for name, values in EXPLORED.items()}
        return json.dumps({k: v for k, v in drawn.items() if v is not None})

    def queries(self, task: Task) -> Sequence[Query]:
        title = task.data["title"]
        return [
            Query(Prompt(prompts.ASK.format(title=title, question=q["question"])), q["answer"])
            for q in task.data["questions"]
        ]

    def open_queries(self, task: Task) -> Sequence[Query]:
        slots = {"title": task.data["title"], "context": task.data["context"]}
        return [
            Query(Prompt(prompts.ASK_OPEN.format(**slots, question=q["question"])), q["answer"])
            for q in task.data["questions"]
        ]

    def known_tasks(self, n: int) -> Sequence[Task]:
        """Entities of the invented world that the embedded model knows by heart."""
        return (
            [Task(r["id"], r) for r in (atlas.record("known", i) for i in range(min(n, atlas.N_KNOWN)))]
            if self.source == "atlas"
            else ()
        )

    def retrieval_queries(self, tasks: Sequence[Task], k: int) -> list[Sequence[Query]]:
        """The question with the passages in view that BM25 finds for title and question, the best first."""
        contexts = list(dict.fromkeys(f"{t.data['title']}\n{t.data['context']}" for t in tasks))
        index = Retriever(contexts)

        def query(title: str, question: str, answer: str) -> Query:
            found = "\n".join(contexts[i].partition("\n")[2] for i in index.best(f"{title} {question}", k))
            return Query(
                Prompt(prompts.ASK_OPEN.format(title=title, context=found, question=question)), answer
            )

        return [
            [query(t.data["title"], q["question"], q["answer"]) for q in t.data["questions"]] for t in tasks
        ]

    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        questions = task.data["questions"]
        right = [best_over(self.grader, q, a) for q, a in zip(questions, answers, strict=True)]
        return _grade(task, right, answers)

    def grade_all(self, tasks: Sequence[Task], answers: Sequence[Sequence[str]]) -> list[Grade | None]:
        if self.judge is None:
            return [self.grade(t, a) for t, a in zip(tasks, answers, strict=True)]
        items = [
            [
                Item(q["question"], any_of(golds_of(q)), a)
                for q, a in zip(t.data["questions"], row, strict=True)
            ]
            for t, row in zip(tasks, answers, strict=True)
        ]
        verdicts = iter(self.judge([item for row in items for item in row]))
        rows = [[next(verdicts) for _ in row] for row in items]
        return [
            None if None in row else _grade(t, [bool(v) for v in row], given)
            for t, row, given in zip(tasks, rows, answers, strict=True)
        ]

    def oracle(self, task: Task) -> str | None:
        return task.data.get("oracle")

    def plain(self, task: Task) -> str | None:
        """The passage alone, as an edit that adds nothing to it: the row is there already."""
        return str(task.data["context"])


class Directives(BaseModel):
    """What a self-edit may say of its own training. With a budget of tokens in the recipe, ``epochs`` changes
    nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    learning_rate: Annotated[float, Field(ge=1e-6, le=0.1)] | None = None
    epochs: Annotated[float, Field(ge=1, le=100)] | None = None
    last_layers: Annotated[int, Field(ge=1, le=256)] | None = None
    repeat: Annotated[int, Field(ge=1, le=16)] | None = None
    """How often the passage itself stands among the rows."""


EXPLORED: dict[str, list[float | None]] = {
    "learning_rate": [None, 1e-3, 2e-3, 4e-3, 1e-2, 2e-2],
    "last_layers": [None, 1, 2],
    "repeat": [None, 2, 4],
}
"""What :meth:`Knowledge.explore` draws from; ``None``: not said."""


def _directed(lines: Sequence[str]) -> tuple[Directives, list[str]]:
    """The directives and the other lines.

    Raises:
        ValueError: a first or last line that is a JSON object is none of directives, or there are two.
    """
    places = [i for i in sorted({0, len(lines) - 1}) if lines and lines[i].startswith("{")]
    if not places:
        return Directives(), list(lines)
    if len(places) > 1:
        raise ValueError("given twice")
    return Directives.model_validate_json(lines[places[0]], strict=False), [
        x for i, x in enumerate(lines) if i != places[0]
    ]


def _reason(error: ValueError) -> str:
    """The first thing that is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")


def _grade(task: Task, right: Sequence[bool], answers: Sequence[str]) -> Grade:
    questions = task.data["questions"]
    scores = tuple(map(float, right))
    overlap = [best_f1(q, a) for q, a in zip(questions, answers, strict=True)]
    return Grade(
        sum(scores) / max(1, len(scores)),
        scores,
        tuple(q.get("kind", "all") for q in questions),
        round(sum(overlap) / max(1, len(overlap)), 6),
    )
