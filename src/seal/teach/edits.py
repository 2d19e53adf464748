"""The store of edits: what a folder of `seal learn` is made of, and the same again without some of it.

Every edit that shaped an adapter is on disk with its passage, its quiz and what it taught, so an adapter can
be made again without one: trained from the stored edits of all other passages, by the same seeds, it is what
it would be had that passage never been read. Where every document has its own adapter, the others are kept as
they are, to the bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal.config import LearnConfig
from seal.domains.knowledge import Knowledge
from seal.loop.inner import understand
from seal.lora.load import load_model
from seal.memory.library import Library
from seal.records import Answers, BadEdit, Card, Edit, Passage, Quiz, Recipe, SealError, Task
from seal.store import Stage, claim, read_json
from seal.teach.learn import CHUNK, is_known, settle, teach


@dataclass(frozen=True)
class Stored:
    """A passage with what was made of it."""

    passage: Passage
    texts: list[str]
    """Its self-edits, those that were kept; none if it was not taught."""
    quiz: Quiz
    answers: Answers | None
    known: bool
    """Whether it was left out because the model knew it already."""

    @property
    def id(self) -> str:
        return str(self.passage["id"])

    @property
    def document(self) -> str:
        return str(self.passage["source"])

    def right(self, setting: str) -> float | None:
        """Share of the quiz answered rightly, *before* or *after*; ``None`` without a quiz."""
        verdicts = self.answers["right"][setting] if self.answers else []
        return sum(verdicts) / len(verdicts) if verdicts else None


def read_store(folder: Path) -> tuple[LearnConfig, list[Stored]]:
    """The settings of a taught folder and its passages.

    Raises:
        SealError: it is no folder of `seal learn`, or not a finished one.
    """
    if not (folder / "card.json").exists():
        raise SealError(f"{folder} is not a finished folder of `seal learn`")
    try:
        settings = read_json(folder / "learn.json")
        config = LearnConfig(**{k: settings[k] for k in LearnConfig.model_fields if k in settings})
        passages = [
            json.loads(line) for line in (folder / "passages.jsonl").read_text("utf-8").split("\n") if line
        ]
        stored = []
        for start in range(0, len(passages), CHUNK):
            some, chunk = passages[start : start + CHUNK], folder / f"chunks/{start // CHUNK:04d}"
            texts = read_json(chunk / ("kept.json" if config.keep is not None else "edits.json"))
            empty: list[Quiz] = [{"id": p["id"], "drafted": 0, "sound": 0, "questions": []} for p in some]
            quiz = read_json(chunk / "quiz.json") if config.questions else empty
            answers = read_json(chunk / "answers.json") if config.questions else [None] * len(some)
            for p, t, q, a in zip(some, texts, quiz, answers, strict=True):
                stored.append(Stored(p, t, q, a, is_known(q, config.skip_known)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SealError(f"{folder} is damaged: {error}") from error
    return config, stored


def find(stored: Sequence[Stored], names: Sequence[str]) -> list[Stored]:
    """Passages by the beginning of their id, or all of a document by its name or path.

    Raises:
        SealError: a name fits nothing, or several passages that are not of one document.
    """
    found: dict[str, Stored] = {}
    for name in names:
        mine = [s for s in stored if s.document == name or Path(s.document).name == name]
        mine = mine or [s for s in stored if s.id.startswith(name)]
        if not mine:
            raise SealError(
                f"no passage's id begins with {name!r}, and no document is named so: `seal edits list` shows "
                "them"
            )
        if len({s.document for s in mine}) > 1:
            raise SealError(
                f"{name!r} may mean {len(mine)} passages: give more of the id, or the document's whole path"
            )
        found |= {s.id: s for s in mine}
    return list(found.values())


def list_lines(folder: Path) -> list[list[str]]:
    """A line per passage, header first: id, document, title, edits, training rows, quiz before and after."""
    config, stored = read_store(folder)
    lines = [["id", "document", "passage", "edits", "rows", "before", "after"]]
    for s in stored:
        n_rows = 0 if s.known else sum(map(len, rows_of(config, s)))
        scores = ["–" if (x := s.right(w)) is None else f"{x:.2f}" for w in ("before", "after")]
        edits = "known already" if s.known else str(len(s.texts))
        lines.append(
            [s.id[:8], Path(s.document).name, str(s.passage["title"])[:40], edits, str(n_rows), *scores]
        )
    return lines


def show_lines(folder: Path, name: str) -> list[str]:
    """Everything about one passage (or a document's): text, edits with their rows, quiz with the answers
    before and after."""
    config, stored = read_store(folder)
    lines = []
    for s in find(stored, [name]):
        lines += [f"{s.id}  {s.passage['title']}  ({s.document})", "", str(s.passage["context"]), ""]
        if s.known:
            lines += ["not taught: the model knew it already", ""]
        for number, (text, rows) in enumerate(zip(s.texts, rows_of(config, s)[1:], strict=True), 1):
            lines += [
                f"edit {number}: {len(rows)} rows",
                *(f"    {line}" for line in text.strip().splitlines()),
                "",
            ]
        for i, q in enumerate(s.quiz["questions"]):
            lines.append(f"{q['half']}: {q['question']}  gold: {q['answer']}")
            if s.answers:
                marks = [
                    f"{w}: {s.answers[w][i] or '(silence)'} {'✓' if s.answers['right'][w][i] else '✗'}"
                    for w in ("before", "after")
                ]
                lines.append("    " + "   ".join(marks))
        lines.append("")
    return lines


def rows_of(config: LearnConfig, stored: Stored) -> list[list[str]]:
    """The training rows of the passage itself, then of each of its edits (before rows are left out for the
    quiz's sake)."""
    domain, task = Knowledge(prompt=config.prompt, grader="string"), Task(stored.id, stored.passage)
    found = []
    for text in [stored.passage["context"], *stored.texts]:
        edit, _ = understand(domain, task, text, Recipe())
        found.append(
            []
            if isinstance(edit, BadEdit) or not isinstance(edit, Edit)
            else [e.completion for e in edit.examples]
        )
    return found


def rebuild(
    folder: Path,
    out: Path,
    without: Sequence[str] = (),
    model: str | None = None,
    device: str = "cpu",
    **recipe: Any,
) -> Card:
    """Teach again from the stored edits: without some passages, or to another ``model``, or by another
    ``recipe``. Returns the card.

    Raises:
        SealError: ``out`` holds something else, or nothing would be left to teach.
    """
    config, stored = read_store(folder)
    gone = {s.id for s in find(stored, without)}
    left = [s for s in stored if s.id not in gone]
    if not left:
        raise SealError(f"{folder} has no other passage: nothing would be left to teach")
    changed = config.recipe.model_copy(update=recipe)
    new = config.model_copy(
        update={
            "model": model or config.model,
            "device": device,
            "start": str(folder / "start") if config.start else None,
            "keep": None,
            "recipe": Recipe.model_validate(changed.model_dump()),
        }
    )
    passages = [s.passage for s in left]
    policy = load_model(new.spec)
    with claim(out):
        settle(new, passages, out)
        lineage = {"from": str(folder), "removed": sorted(gone), "model": new.model, "recipe": recipe}
        if Stage(out).once("lineage", lambda: lineage) != lineage:
            raise SealError(f"{out} was made from something else: give --out a new folder")
        for start in range(0, len(left), CHUNK):
            chunk, some = Stage(out / f"chunks/{start // CHUNK:04d}"), left[start : start + CHUNK]
            chunk.once("edits", lambda some=some: [s.texts for s in some])  # type: ignore[misc]
            if new.questions:
                chunk.once("quiz", lambda some=some: [s.quiz for s in some])  # type: ignore[misc]
        if new.per_document and new.model == config.model and new.recipe == config.recipe:
            _keep_adapters(folder, out, stored, gone)
        return teach(new, policy, policy, passages, out)


def _keep_adapters(folder: Path, out: Path, stored: Sequence[Stored], gone: set[str]) -> None:
    """The edits and adapters of documents that lose nothing, as they are."""
    old, new = Library(folder), Library(out)
    touched = {s.document for s in stored if s.id in gone}
    for document in dict.fromkeys(s.document for s in stored if s.document not in touched):
        if document in old.names():
            new.add(old.lesson(document))
        source, target = old.place(document), new.place(document)
        if source.exists():
            Stage(target.parent).once_folder(target.name, lambda aside, source=source: _copy(source, aside))  # type: ignore[misc]


def _copy(source: Path, aside: Path) -> None:
    shutil.copytree(source, aside, dirs_exist_ok=True)
