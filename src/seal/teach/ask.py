"""Asking a taught model: closed-book with and without its adapter, or with the best passage in view."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seal.domains.knowledge.prompts import ASK, ASK_FREE, ASK_OPEN
from seal.lora.adapter import Adapter
from seal.lora.files import load_peft
from seal.lora.load import load_model
from seal.lora.model import Model, must_match
from seal.lora.records import ModelSpec, Sampling
from seal.lora.sample import ask
from seal.memory.library import Library
from seal.memory.router import Router
from seal.records import Passage, Prompt, SealError
from seal.store import Stage, read_json

ANSWER_TOKENS = 64


def _text_of(path: Path, key: str) -> str:
    data = read_json(path)
    if not isinstance(data, dict):
        raise SealError(f"{path} is damaged: it holds no settings")
    return str(data.get(key) or "")


@dataclass(frozen=True)
class Taught:
    """What there is to ask: the base model's name, an adapter for each document (one alone under ``""``), and
    the passages read."""

    model: str
    adapters: dict[str, Path]
    """In PEFT's format; those of a library that are not on disk are made again when they are asked."""
    passages: list[Passage]
    library: Library | None = None
    talk: dict[str, Any] = field(default_factory=dict)
    """How it is spoken with, as it was taught: ``chat`` and ``system`` of its settings."""

    def load(self, model: Model) -> dict[str, Adapter]:
        """The adapters, by document.

        Raises:
            LoraError: they are of another model.
        """
        if self.library and self.library.names():
            return self.library.adapters(model, self.adapters)
        found = {name: load_peft(path) for name, path in self.adapters.items()}
        for adapter in found.values():
            must_match(adapter, model)
        return found


def open_taught(folder: Path) -> Taught:
    """A folder of ``seal learn``, or any LoRA adapter in PEFT's format.

    Raises:
        SealError: it is neither.
    """
    if (folder / "learn.json").exists():
        try:
            passages = [
                json.loads(line)
                for line in (folder / "passages.jsonl").read_text("utf-8").split("\n")
                if line
            ]
        except (OSError, ValueError) as error:
            raise SealError(
                f"{folder} is not a whole folder of `seal learn`: passages.jsonl cannot be read: {error}"
            ) from error
        library, dropped = Library(folder), Stage(folder).read("dropped") or []
        adapters = {n: library.place(n) for n in library.names()} or {
            str(read_json(p)["document"]): p.parent for p in sorted(folder.glob("adapter*/**/seal.json"))
        }  # an earlier version kept no library
        if not adapters and not (folder / "card.json").exists():
            raise SealError(f"{folder} has no adapter yet: `seal learn` was cut off; run it again to go on")
        adapters = {n: p for n, p in adapters.items() if n not in dropped}
        settings = read_json(folder / "learn.json")
        talk = {k: settings[k] for k in ("chat", "system") if k in settings}
        return Taught(_text_of(folder / "learn.json", "model"), adapters, passages, library, talk)
    if (folder / "adapter_config.json").exists():
        return Taught(_text_of(folder / "adapter_config.json", "base_model_name_or_path"), {"": folder}, [])
    raise SealError(f"{folder} is neither a folder of `seal learn` nor an adapter in PEFT's format")


class Talk:
    """A model with what it was taught, to be asked one question after another.

    Args:
        folder: of ``seal learn``, or an adapter; ``None`` for the model alone.
        model: base model; ``None``: the one the adapter names.
        documents: passages to look into for open-book answers, besides those of the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        model: str | None = None,
        device: str = "cpu",
        documents: list[Passage] | None = None,
    ) -> None:
        taught = open_taught(folder) if folder else Taught("", {}, [])
        name = model or taught.model
        if not name:
            raise SealError(
                "say which model to ask: --model NAME, or --adapter FOLDER of one that was taught"
            )
        self.passages = [*taught.passages, *(documents or [])]
        self.policy = load_model(ModelSpec(name=name, device=device, bf16="auto", **taught.talk))
        self.adapters = taught.load(self.policy)
        titles, texts = ([str(p[k]) for p in self.passages] for k in ("title", "context"))
        self.router = Router(titles, texts) if self.passages else None

    def topic(self, question: str) -> str:
        """The longest title of the passages that the question names; empty if none."""
        named = [p["title"] for p in self.passages if p["title"].casefold() in question.casefold()]
        return max(named, key=len, default="")

    def passage(self, question: str, topic: str) -> Passage | None:
        """The passage that fits the question best."""
        return self.passages[self.router.best(f"{topic} {question}")] if self.router else None

    def answers(
        self, question: str, topic: str = "", compare: bool = False, open_book: bool = False
    ) -> Iterator[tuple[str, str]]:
        """(who, answer) for each way asked for: without the adapter, with it, with the passage in view.

        Raises:
            SealError: an open-book answer is wanted, and there is no passage.
        """
        topic = topic or self.topic(question)
        found = self.passage(question, topic)
        prompt = Prompt((ASK if topic else ASK_FREE).format(title=topic, question=question))
        if open_book and found is None:
            raise SealError(
                "there is no passage to look into: give --open-book a document, or --adapter a folder of "
                "`seal learn`"
            )
        if compare or not (self.adapters or open_book):
            yield "without adapter", self._one(None, prompt)
        if self.adapters and (compare or not open_book):
            yield "with adapter", self._one(self._adapter(question, topic), prompt)
        if open_book and found:
            shown = Prompt(
                ASK_OPEN.format(title=topic or found["title"], context=found["context"], question=question)
            )
            yield f"open book ({found['title']})", self._one(None, shown)

    def _adapter(self, question: str, topic: str) -> Adapter | None:
        """The one adapter, or that of the document the question is about: none where it is about nothing that
        was taught."""
        if "" in self.adapters or self.router is None:
            return next(iter(self.adapters.values()))
        place = self.router.pick(f"{topic} {question}")
        return None if place is None else self.adapters.get(str(self.passages[place]["source"]))

    def _one(self, adapter: Adapter | None, prompt: Prompt) -> str:
        return ask(self.policy, [adapter], [[prompt]], Sampling(ANSWER_TOKENS, stop="\n"))[0][0].strip()


def ask_taught(folder: str | Path, question: str, topic: str = "", model: str | None = None) -> str:
    """``seal.ask``: the answer of a taught model, without the documents.

    Args:
        folder: of ``seal.teach``, or an adapter in PEFT's format.
        topic: what the question is about; by default the title of a taught passage that it names.
        model: where the adapter does not name it.

    Raises:
        SealError: there is no such folder, or it does not go with the model.
    """
    ((_, answer),) = Talk(Path(folder), model).answers(question, topic)
    return answer
