"""A quiz for documents that come without questions: the model drafts it with the passage in view, and answers
it again to see which questions are sound.

A drafted question is kept if the model, shown the passage again and asked greedily, gives the drafted answer;
what it answers without the passage too is *known*, the rest *new*. Half of the answers (the *practice* half)
may serve as reward; the other half is the *proof*, and no edit is chosen by it. An answer stands in the same
half wherever it is asked for, whatever the passage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from seal.domains.grading import best_over, normalize, string_rule
from seal.domains.knowledge.prompts import ASK, ASK_OPEN, QUIZ, WRITE
from seal.lora.model import Model
from seal.lora.records import EMBEDDED, Sampling
from seal.lora.sample import ask, generate
from seal.records import Passage, Prompt, Question, Quiz, seed_of

MAX_ANSWER_WORDS = 12
MAX_QUESTION_CHARS = 300
MAX_DRAFT_TOKENS = 400
ANSWER_TOKENS = 32
DRAFTS = 10
"""Samples that the quiz of a passage is put together from."""


def draft_quiz(
    policy: Model, passages: Sequence[Passage], n: int, seed: object, drafts: int = DRAFTS
) -> list[Quiz]:
    """``n`` sound questions at most for each passage, from ``drafts`` samples of the model.

    Returns:
        a record per passage: ``questions`` (``{question, answer, kind, half}``), and how many were
        ``drafted`` and how many ``sound``.
    """
    prompts = [Prompt(_template(policy).format(title=p["title"], context=p["context"])) for p in passages]
    sampling = Sampling(MAX_DRAFT_TOKENS, temperature=1.0, top_p=0.95)
    seeds = [seed_of("quiz", seed, p["id"], d) for p in passages for d in range(drafts)]
    texts = generate(policy, [p for p in prompts for _ in range(drafts)], sampling, seeds)
    drafted = [_different(texts[i * drafts : (i + 1) * drafts], p["context"]) for i, p in enumerate(passages)]
    shown = _answers(policy, passages, drafted, ASK_OPEN)
    sound = [
        [q for q, a in zip(questions, answers, strict=True) if best_over(string_rule, q, a)][:n]
        for questions, answers in zip(drafted, shown, strict=True)
    ]
    blind = _answers(policy, passages, sound, ASK)
    found: list[Quiz] = []
    for passage, before, questions, answers in zip(passages, drafted, sound, blind, strict=True):
        for q, a in zip(questions, answers, strict=True):
            q["kind"] = "known" if best_over(string_rule, q, a) else "new"
            q["half"] = "proof" if seed_of("half", normalize(q["answer"])) % 2 == 0 else "practice"
        found.append(
            {"id": passage["id"], "drafted": len(before), "sound": len(questions), "questions": questions}
        )
    return found


def _template(policy: Model) -> str:
    """The embedded model knows one prompt alone; begun with a question, it goes on with question and
    answer."""
    if policy.name in EMBEDDED:
        return WRITE["implications"] + "Question:"
    return QUIZ if policy.chat else QUIZ + "\nQuestion:"


def _answers(
    policy: Model,
    passages: Sequence[Passage],
    quiz: Sequence[Sequence[Question]],
    template: str,
) -> list[list[str]]:
    prompts = [
        [
            Prompt(template.format(title=p["title"], context=p["context"], question=q["question"]))
            for q in questions
        ]
        for p, questions in zip(passages, quiz, strict=True)
    ]
    return ask(policy, [None] * len(prompts), prompts, Sampling(ANSWER_TOKENS, stop="\n"))


def _different(texts: Sequence[str], context: str) -> list[Question]:
    """The questions of several drafts, each once, without those that stand in the passage itself."""
    found: dict[str, Question] = {}
    context = normalize(context)
    for text in texts:
        for question, answer in parse_quiz(text):
            if normalize(question) not in context:
                found.setdefault(normalize(question), {"question": question, "answer": answer})
    return list(found.values())


PAIR = re.compile(
    r"(?:^|\n|\s)(?:\*\*)?(?:Question|Q)\s*\d*\s*[:.](?:\*\*)?\s*(?P<question>[^\n]{3,}?)\s*(?:\*\*)?(?:Answer|A)\s*\d*\s*[:.](?:\*\*)?\s*"
    r"(?P<answer>[^\n]+?)\s*(?=\n|$|\s(?:Question|Q)\s*\d*\s*:)"
)


def parse_quiz(text: str) -> list[tuple[str, str]]:
    """Questions and answers of a draft (on one line or two), without what is no question: too long, no
    answer, or one that gives its answer away. The text is a model's: nothing of it is trusted, and what does
    not fit is left out."""
    text = re.sub(r"[^\S\n]+", " ", text.strip()[:20_000])
    if not re.match(r"(?:\*\*)?(?:\d+\.\s*)?(?:Question|Q)\s*\d*\s*[:.]", text):
        text = f"Question: {text}"  # the prompt of a base model ends with the first label
    text = re.sub(r"\n\s*(?=(?:\*\*)?(?:Answer|A)\s*\d*\s*[:.])", " ", text)
    pairs = []
    for match in PAIR.finditer(text):
        question = " ".join(match["question"].split())
        answer = " ".join(match["answer"].split()).rstrip(".*").strip()
        words = normalize(answer).split()
        if (
            not words
            or len(words) > MAX_ANSWER_WORDS
            or len(question) > MAX_QUESTION_CHARS
            or not re.search("[?？]", question)
        ):
            continue
        if set(words) <= set(normalize(question).split()) or "\ufffd" in question + answer:
            continue
        pairs.append((question, answer))
    return pairs
