"""``seal try --passage``: one passage of your own, everything shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from seal.config import RunConfig
from seal.domains.knowledge import Knowledge
from seal.domains.knowledge.passages import read_passages
from seal.loop.show import show
from seal.lora.hardware import Shape
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import EMBEDDED, Recipe
from seal.records import Json, Passage, SealError, Task
from seal.teach.learn import passages_for
from seal.teach.quiz import draft_quiz
from seal.teach.recipes import TOKENS, default_for

PASSAGE_TOKENS = 512
QUESTIONS = 6


def show_passage(
    config: RunConfig, file: Path, number: int, asked: Sequence[str], policy_folder: str | None
) -> None:
    """Write, try and print the edits of one passage of a file: the text in view, closed book, and by an adapter.

    Args:
        file: a document, of which the passage is taken; or passages with their questions as JSON, in SEAL's form.
        number: which passage of it.
        asked: questions, each with its answer after the question mark; none: those of the file, or the model's.

    Raises:
        SealError: the file has no such passage, or there is nothing to ask.
    """
    spec = config.model.at(policy_folder) if policy_folder else config.model
    options = config.domain.options if config.domain.name == "knowledge" else {}
    prompt = str(options.get("prompt") or ("implications" if spec.name in EMBEDDED else "rewrite"))
    domain = Knowledge(prompt=prompt, grader=str(options.get("grader") or "string"))
    policy = load_model(spec, config.inner.recipe.rank)
    found, told = default_for(Shape(spec)), config.inner.recipe.model_dump(exclude_unset=True)
    budget = {} if told.keys() & {"tokens", "steps", "epochs"} else {"tokens": TOKENS}
    recipe = Recipe.model_validate({**found.recipe.model_dump(), **budget, **told})
    config = config.model_copy(update={"inner": config.inner.model_copy(update={"recipe": recipe})})
    print(
        f"seal: recipe   rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.learning_rate:g}: {found.why}"
        + (f"; as told: {', '.join(told)}" if told else ""),
        file=sys.stderr,
    )
    record = _passage(file, number, policy)
    questions = (
        [_question(q) for q in asked] or record.get("questions") or _drafted(policy, record, config.seed)
    )
    show(config, domain, Task(f"{file.name}, passage {number}", {**record, "questions": questions}), policy)


def _passage(file: Path, number: int, policy: Model) -> Json:
    if file.suffix in (".json", ".jsonl"):
        found: Sequence[Json] = read_passages(file)
    else:
        found = passages_for(policy, [str(file)], PASSAGE_TOKENS)  # type: ignore[assignment]
    if not 0 <= number < len(found):
        raise SealError(f"--task {number}: the passages of {file} are numbered 0 to {len(found) - 1}")
    return dict(found[number])


def _question(text: str) -> Json:
    question, mark, answer = text.partition("?")
    if not mark or not question.strip() or not answer.strip():
        raise SealError(f"--ask {text[:80]!r}: say the question, a question mark, and the answer after it")
    return {"question": question.strip() + "?", "answer": answer.strip()}


def _drafted(policy: Model, record: Json, seed: int) -> list[Json]:
    passage: Passage = {"id": "", "title": record["title"], "context": record["context"], "source": ""}
    (quiz,) = draft_quiz(policy, [passage], QUESTIONS, seed)
    if not quiz["questions"]:
        raise SealError(
            f"{policy.name} drafted {quiz['drafted']} questions for this passage, of which none is sound: ask your own "
            "(--ask 'When was it built? 1862'), or give a JSON file with questions"
        )
    return [{"question": q["question"], "answer": q["answer"]} for q in quiz["questions"]]
