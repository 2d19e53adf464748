"""Teach a model documents: read them, let it draft a quiz and write self-edits, train an adapter, and prove
what it knows now.

::

    OUT/learn.json            the settings, and what the documents were
        passages.jsonl        what was read
        chunks/0000/          quiz and self-edits of so many passages at a time
        library/              what the adapters are made of: rows, recipe, seed
        adapter/              PEFT's folder (or ``adapters/NAME``, one per document)
        dropped.json          documents whose adapter is not used, because it did not help
        README.md card.json   what was read and written, what it knows now, what got worse, what it cost

What is on disk is done: the same command goes on where it was cut off.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seal.config import InnerConfig, LearnConfig, WriteConfig
from seal.domains.grading import best_over, normalize, string_rule
from seal.domains.knowledge import Knowledge
from seal.domains.knowledge.prompts import ASK, ASK_OPEN
from seal.endpoint import Endpoint, is_endpoint
from seal.loop.inner import InnerLoop, understand
from seal.loop.retained import retained
from seal.loop.write import finished, from_another, from_policy
from seal.lora.adapter import Adapter
from seal.lora.files import copy_adapter, load_peft
from seal.lora.hardware import Shape
from seal.lora.load import load_model
from seal.lora.model import Model, must_match
from seal.lora.records import Sampling
from seal.lora.sample import ask
from seal.memory.library import Lesson, Library
from seal.progress import progress
from seal.records import (
    Answers,
    BadEdit,
    Card,
    Edit,
    Example,
    Passage,
    Prompt,
    Quiz,
    Recipe,
    SealError,
    Task,
    seed_of,
)
from seal.store import Stage, claim, read_json, write_whole
from seal.teach.card import card_of, write_card
from seal.teach.documents import read_documents
from seal.teach.quiz import ANSWER_TOKENS, draft_quiz

CHUNK = 16
"""Passages worked on at a time: what a kill can lose."""
ASKED = 8
"""Adapters, at most, that are asked what the model knew before."""
SURE = 3
"""Practice questions below which no passage counts as known."""


def learn(config: LearnConfig, documents: Sequence[str], out: Path) -> Card:
    """Teach ``config.model`` the documents; everything is written under ``out``. Returns the card.

    Raises:
        SealError: documents that cannot be read, a folder made with other settings, a model that does not
            load.
    """
    Knowledge(prompt=config.prompt, grader="string")  # is there such a prompt
    if config.keep is not None and not config.questions:
        raise SealError("--keep chooses edits by the quiz, and --questions 0 asks for none")
    if config.writer and is_endpoint(config.writer):
        Endpoint(config.writer)  # is it an address at all
    elif config.writer and not Path(config.writer).is_file():
        raise SealError(
            f"--writer: there is no file {config.writer}, and it is no address (http://host/v1#model)"
        )
    policy = load_model(config.spec)
    writer = load_model(config.spec.at(config.policy), loaded=policy) if config.policy else policy
    if config.policy and len(writer.tokenizer) != len(policy.tokenizer):
        raise SealError(
            f"the policy {config.policy} is not of the same kind as the model {config.model}: their "
            "tokenizers differ"
        )
    passages = passages_for(policy, documents, config.passage_tokens)
    if out.exists() and not out.is_dir():
        raise SealError(f"--out {out} is a file: give a new folder")
    with claim(out):
        settle(config, passages, out)
        return teach(config, policy, writer, passages, out)


def teach(config: LearnConfig, policy: Model, writer: Model, passages: Sequence[Passage], out: Path) -> Card:
    """The work on a folder that is settled: quiz, edits, adapters, answers, card, each only where it is not
    on disk yet."""
    start = time.monotonic()
    domain = Knowledge(prompt=config.prompt, grader="string")
    parts = [passages[i : i + CHUNK] for i in range(0, len(passages), CHUNK)]
    chunks = [Stage(out / f"chunks/{n:04d}") for n in range(len(parts))]
    rows: dict[str, list[Example]] = {}
    asked: set[str] = set()
    texts: list[list[str]] = []
    skipped: set[str] = set()
    counts = {"edits": 0, "bad edits": 0, "rows": 0, "rows left out": 0}
    with progress("write a quiz and edits", len(passages)) as advance:
        for stage, some in zip(chunks, parts, strict=True):
            quiz = _quiz(policy, some, config, stage)
            asked |= {normalize(q["question"]) for record in quiz for q in record["questions"]}
            skipped |= {p["id"] for p, q in zip(some, quiz, strict=True) if is_known(q, config.skip_known)}
            texts += _edits(policy, writer, domain, some, quiz, config, stage)
            advance(len(some))
    for passage, mine in zip(
        passages, texts, strict=True
    ):  # rows are made when every question is known, of whichever passage
        if passage["id"] not in skipped:
            document = passage["source"] if config.per_document else ""
            rows.setdefault(document, []).extend(_rows(domain, passage, asked, mine, counts))
    library = Library(out)
    beginning = ""
    if config.start:  # a copy: what was taught can be made again without the original
        beginning = "start"
        if not (out / beginning).exists():
            must_match(load_peft(config.start), policy)
        Stage(out).once_folder(beginning, partial(copy_adapter, Path(config.start)))
    for name, examples in rows.items():
        library.add(
            Lesson(name, tuple(examples), config.recipe, seed_of("learn", config.seed, name), beginning)
        )
    adapters = library.adapters(policy, rows)
    trained = {name: library.told(name) for name in rows}
    answers = [
        _answers(policy, adapters, some, stage, config) for stage, some in zip(chunks, parts, strict=True)
    ]
    quiz = [
        record for s, some in zip(chunks, parts, strict=True) for record in _quiz(policy, some, config, s)
    ]
    flat = [a for some in answers for a in some]
    dropped = Stage(out).once(
        "dropped", lambda: unhelpful(passages, quiz, flat) if config.per_document else []
    )
    card = card_of(config.model_dump(mode="json"), passages, quiz, flat, counts, trained, skipped, dropped)
    used = [adapter for name, adapter in sorted(adapters.items()) if name not in dropped]
    kept = Stage(out).once("retained", lambda: retained(policy, used[:ASKED]))
    if kept:
        card["retained"] = kept
    card["seconds"] = round(time.monotonic() - start, 1)
    return write_card(out, card)


def is_known(quiz: Quiz, share: float) -> bool:
    """Whether a passage need not be taught: so many of its practice questions are answered without it. The
    proof has no say."""
    practice = [q["kind"] == "known" for q in quiz["questions"] if q["half"] == "practice"]
    return len(practice) >= SURE and sum(practice) / len(practice) >= share


def unhelpful(passages: Sequence[Passage], quiz: Sequence[Quiz], answers: Sequence[Answers]) -> list[str]:
    """Documents after whose adapter no more practice questions are answered rightly than before it."""
    gain: dict[str, int] = {}
    for passage, record, answer in zip(passages, quiz, answers, strict=False):
        for i, q in enumerate(record["questions"]):
            if q["half"] == "practice":
                right = answer["right"]
                gain[passage["source"]] = (
                    gain.get(passage["source"], 0) + right["after"][i] - right["before"][i]
                )
    return sorted(name for name, n in gain.items() if n <= 0)


def passages_for(reader: Model | Shape, documents: Sequence[str], most_tokens: int) -> list[Passage]:
    """The passages of documents, each as many tokens at most, and no more than a third of what the model can
    read at once."""
    budget = min(most_tokens, reader.context // 3)
    return list(
        read_documents(documents, budget, lambda text: len(reader.conventions.tokenizer(text)["input_ids"]))
    )


def settle(config: LearnConfig, passages: Sequence[Passage], out: Path) -> None:
    """Write down what the folder is made of; it is never continued with other settings or other documents."""
    text = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in passages)
    passed = hashlib.sha256(" ".join(p["id"] for p in passages).encode()).hexdigest()[:16]
    wanted = {**config.model_dump(mode="json"), "passages": passed}
    if not (out / "learn.json").exists():
        if any(not p.name.startswith(".") for p in out.iterdir()):
            raise SealError(f"{out} holds other things: give --out a new folder")
        write_whole(out / "learn.json", json.dumps(wanted, indent=1))
    if not (out / "passages.jsonl").exists():
        write_whole(out / "passages.jsonl", text)
    found = read_json(out / "learn.json")
    if not isinstance(found, dict):
        raise SealError(f"{out / 'learn.json'} is damaged: it holds no settings")
    found = {
        "chat": "auto",
        "system": None,
        "start": None,
        **found,
    }  # an earlier version had no such settings
    if (
        found | {"recipe": wanted["recipe"]} == wanted
        and config.keep is None
        and not list(out.glob("adapter*"))
    ):
        write_whole(
            out / "learn.json", json.dumps(wanted, indent=1)
        )  # nothing has been trained by the old recipe
        found = wanted
    if changed := next((k for k in wanted if found.get(k) != wanted[k]), None):
        raise SealError(
            f"{out} was begun with other {changed.replace('_', ' ')}: give --out a new folder, or run it as "
            "it was"
        )


def _quiz(policy: Model, passages: Sequence[Passage], config: LearnConfig, stage: Stage) -> list[Quiz]:
    if not config.questions:
        return [{"id": p["id"], "drafted": 0, "sound": 0, "questions": []} for p in passages]
    found: list[Quiz] = stage.once(
        "quiz", lambda: draft_quiz(policy, passages, config.questions, config.seed)
    )
    return found


def _edits(
    policy: Model,
    writer: Model,
    domain: Knowledge,
    passages: Sequence[Passage],
    quiz: Sequence[Quiz],
    config: LearnConfig,
    stage: Stage,
) -> list[list[str]]:
    """The self-edits of each passage (none where it is known); with ``config.keep``, those that did best on
    the practice half of its quiz."""
    tasks = [
        Task(p["id"], {**p, "questions": [x for x in q["questions"] if x["half"] == "practice"]})
        for p, q in zip(passages, quiz, strict=True)
        if not is_known(q, config.skip_known)
    ]
    prompts = [domain.prompt(t) for t in tasks]

    def write() -> list[list[str]]:
        if config.writer is None:
            limit = WriteConfig(max_tokens=512)
            texts, cut = finished(
                domain, from_policy(writer, prompts, config.edits, limit, seed_of("learn", config.seed))
            )
        else:
            texts, cut = finished(
                domain, from_another(config.writer, tasks, prompts, config.edits, config.seed)
            )
        stage.put("cut", of_all(cut))
        return texts

    def of_all(texts: Sequence[list[Any]]) -> list[list[Any]]:
        mine = dict(zip((t.id for t in tasks), texts, strict=True))
        return [mine.get(p["id"], []) for p in passages]

    written: list[list[str]] = stage.once("edits", lambda: of_all(write()))
    if config.keep is None:
        return written
    taught = {t.id for t in tasks}
    mine = [texts for p, texts in zip(passages, written, strict=True) if p["id"] in taught]
    return list(stage.once("kept", lambda: of_all(_best(policy, domain, tasks, mine, config, stage))))


def _best(
    policy: Model,
    domain: Knowledge,
    tasks: Sequence[Task],
    texts: Sequence[list[str]],
    config: LearnConfig,
    stage: Stage,
) -> list[list[str]]:
    """The ``config.keep`` edits of each passage that do best by themselves."""
    asked = [i for i, t in enumerate(tasks) if t.data["questions"]]
    inner = InnerConfig(recipe=config.recipe, answer_tokens=ANSWER_TOKENS, reward="likelihood")
    loop = InnerLoop(domain, inner)
    quizzed, theirs = [tasks[i] for i in asked], [texts[i] for i in asked]
    attempts = loop.try_edits(policy, quizzed, theirs, stage, seed_of("learn", config.seed))
    reward = {(a.task, a.edit): a.reward or 0.0 for a in attempts}
    best = []
    for task, row in zip(tasks, texts, strict=True):
        earned = [reward.get((task.id, e), 0.0) for e in range(len(row))]
        order = sorted(range(len(row)), key=lambda e, earned=earned: -earned[e])  # type: ignore[misc]
        best.append([row[e] for e in order[: config.keep]])
    return best


def _rows(
    domain: Knowledge, passage: Passage, asked: set[str], texts: Sequence[str], counts: dict[str, int]
) -> Iterator[Example]:
    """The training rows of a passage, each once: the passage, and what its edits say. A row of an edit that
    holds a question of the quiz, of this passage or any other, is left out: the quiz would prove nothing."""
    seen = set()
    for number, text in enumerate([passage["context"], *texts]):
        edit, _ = understand(domain, Task(passage["id"], passage), text, Recipe())
        counts["edits"] += number > 0
        if isinstance(edit, BadEdit):
            counts["bad edits"] += 1
            continue
        for example in edit.examples if isinstance(edit, Edit) else ():
            if example.completion in seen:
                continue
            seen.add(example.completion)
            if number and _asks(example.completion, asked):
                counts["rows left out"] += 1
                continue
            counts["rows"] += 1
            yield example


def _asks(row: str, asked: set[str]) -> bool:
    """Whether a row holds one of these questions (normalised): some run of words up to a question mark is
    one."""
    for piece in re.split(r"[?？]", row)[:-1]:
        words = normalize(piece).split()[-100:]
        if any(" ".join(words[i:]) in asked for i in range(len(words))):
            return True
    return False


def _answers(
    policy: Model,
    adapters: dict[str, Adapter],
    passages: Sequence[Passage],
    stage: Stage,
    config: LearnConfig,
) -> list[Answers]:
    """What the model answers to each passage's quiz: without the passage before and after, and with it in
    view; and the verdicts."""
    quiz = stage.read("quiz") if config.questions else []
    if not quiz:
        return []
    mine = [adapters.get(p["source"] if config.per_document else "") for p in passages]

    def compute() -> list[Answers]:
        sampling = Sampling(ANSWER_TOKENS, stop="\n")
        closed, shown = (
            [_asked(p, q, template) for p, q in zip(passages, quiz, strict=True)]
            for template in (ASK, ASK_OPEN)
        )
        nobody: list[Adapter | None] = [None] * len(passages)
        before, after = ask(policy, nobody, closed, sampling), ask(policy, mine, closed, sampling, 4)
        reading = ask(policy, nobody, shown, sampling)
        return [
            {
                "before": b,
                "after": a,
                "open book": r,
                "right": {
                    n: _right(q, x) for n, x in zip(("before", "after", "open book"), (b, a, r), strict=True)
                },
            }
            for q, b, a, r in zip(quiz, before, after, reading, strict=True)
        ]

    found: list[Answers] = stage.once("answers", compute)
    return found


def _asked(passage: Passage, quiz: Quiz, template: str) -> list[Prompt]:
    slots = {"title": passage["title"], "context": passage["context"]}
    return [Prompt(template.format(**slots, question=q["question"])) for q in quiz["questions"]]


def _right(quiz: Quiz, answers: Sequence[str]) -> list[bool]:
    return [best_over(string_rule, q, a) for q, a in zip(quiz["questions"], answers, strict=True)]
