"""A library of edits on disk: an edit is its rows, recipe and seed, a few kilobytes; its adapter is a cache
of it.

::

    FOLDER/library/NAME.json     rows, recipe, seed
           adapter/, adapters/   the adapters, in PEFT's format: made again where one is not there

What is taken out is gone exactly: every other edit has an adapter of its own, which stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from seal.lora.adapter import Adapter
from seal.lora.files import load_peft, save_peft
from seal.lora.model import Model, must_match
from seal.lora.train import Job, Trained, train_adapters
from seal.progress import progress
from seal.records import Example, Json, Recipe, SealError
from seal.store import Stage, read_json, write_whole


@dataclass(frozen=True)
class Lesson:
    """What an adapter is made of."""

    name: str
    """Of the document or passage it is about; empty for all together."""
    rows: tuple[Example, ...]
    recipe: Recipe
    seed: int
    start: str = ""
    """A folder of the library's folder with the adapter to go on from; empty: a fresh one."""


class Library:
    """The edits of a folder, and adapters made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stage = Stage(folder / "library")

    def add(self, lesson: Lesson) -> None:
        """Keep an edit. One of that name stays as it is once something has been trained of it."""
        record = {
            "name": lesson.name,
            "seed": lesson.seed,
            **({"start": lesson.start} if lesson.start else {}),
            "recipe": lesson.recipe.model_dump(mode="json"),
            "rows": [asdict(row) for row in lesson.rows],
        }
        if (
            not (self._stage.folder / f"{_key(lesson.name)}.json").exists()
            or not self.place(lesson.name).exists()
        ):
            self._stage.put(_key(lesson.name), record)

    def names(self) -> list[str]:
        """Of the edits that are kept."""
        return [str(read_json(p)["name"]) for p in sorted(self._stage.folder.glob("*.json"))]

    def lesson(self, name: str) -> Lesson:
        """
        Raises:
            SealError: there is no such edit, or it is damaged.
        """
        path = self._stage.folder / f"{_key(name)}.json"
        data = read_json(path)
        try:
            rows = tuple(Example(**row) for row in data["rows"])
            start = str(data.get("start", ""))
            if Path(start).name != start:
                raise ValueError(f"start {start!r} is no folder of its own")
            recipe = Recipe.model_validate(data["recipe"])
            return Lesson(str(data["name"]), rows, recipe, int(data["seed"]), start)
        except (KeyError, TypeError, ValueError) as error:
            raise SealError(f"{path} is damaged: {error}") from error

    def remove(self, name: str) -> None:
        """Take an edit back, with its adapter. All others stay as they are."""
        (self._stage.folder / f"{_key(name)}.json").unlink(missing_ok=True)
        shutil.rmtree(self.place(name), ignore_errors=True)

    def place(self, name: str) -> Path:
        """Where the adapter of an edit lies."""
        if not name:
            return self.folder / "adapter"
        return (
            self.folder
            / "adapters"
            / f"{Path(name).stem[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        )

    def told(self, name: str) -> Json:
        """What the training of an edit's adapter was: steps, tokens, losses."""
        found: Json = read_json(self.place(name) / "seal.json")
        return found

    def adapters(self, model: Model, names: Iterable[str] | None = None) -> dict[str, Adapter]:
        """The adapters of these edits (of all), by name. Those that are not on disk are trained now, side by
        side.

        Raises:
            SealError: training diverged.
            LoraError: an adapter is of another model.
        """
        wanted = list(self.names() if names is None else names)
        owed = [self.lesson(n) for n in wanted if not (self.place(n) / "seal.json").exists()]
        with progress("train", len(owed)) as advance:
            starts = {s: load_peft(self.folder / s) if s else None for s in {x.start for x in owed}}
            for start in starts.values():
                if start is not None:
                    must_match(start, model)
            jobs = [Job(x.rows, x.recipe, x.seed, start=starts[x.start]) for x in owed]
            for lesson, trained in zip(owed, train_adapters(model, jobs), strict=True):
                self._save(lesson, trained, model)
                advance(1)
        found = {name: load_peft(self.place(name)) for name in wanted}
        for adapter in found.values():
            must_match(adapter, model)
        return found

    def _save(self, lesson: Lesson, trained: Trained, model: Model) -> None:
        adapter, folder = trained.adapter, self.place(lesson.name)
        if adapter is None:
            raise SealError(
                f"training diverged at step {trained.steps}: take a lower --learning-rate than "
                f"{lesson.recipe.learning_rate:g}"
            )

        def fill(aside: Path) -> None:
            save_peft(adapter, aside, model.name, model.fingerprint())
            record = {
                "document": lesson.name,
                "steps": trained.steps,
                "tokens": trained.tokens,
                "loss": list(trained.loss),
            }
            write_whole(aside / "seal.json", json.dumps(record, indent=1))

        Stage(folder.parent).once_folder(folder.name, fill)


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else "all"
