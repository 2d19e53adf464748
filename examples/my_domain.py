"""A domain of your own, whole: words of an invented language, learnt from a dictionary entry.

seal check examples/my_domain.py:Lexicon
seal train --domain.name examples/my_domain.py:Lexicon --rounds 1 --name lexicon
"""

from collections.abc import Sequence

from seal import BadEdit, Domain, Edit, Example, Grade, Prompt, Query, Task

SYLLABLES = [c + v for c in "bdfklmnrstvz" for v in "aeiou"]
MEANINGS = [
    "salt", "wool", "copper", "honey", "glass", "silk", "timber", "barley", "amber", "leather", "paper", "wine", "iron",
    "cheese", "candles", "rope",
]  # fmt: skip
SPLITS = {"train": range(0, 16), "select": range(16, 24), "eval": range(24, 40)}


class Lexicon(Domain):
    def tasks(self, split: str) -> Sequence[Task]:
        return [
            Task(
                f"word-{i}",
                {"word": (SYLLABLES[i] + SYLLABLES[-i - 1]).title(), "meaning": MEANINGS[i * 5 % 16]},
            )
            for i in SPLITS[split]
        ]

    def prompt(self, task: Task) -> Prompt:
        return Prompt(
            f"Say it again several times.\n{task.data['word']} is known for its {task.data['meaning']}.\n"
        )

    def parse(self, task: Task, text: str) -> Edit | BadEdit:
        lines = [line.strip() for line in text[:4000].split("\n") if line.strip()][:20]
        if not lines:
            return BadEdit(text[:4000], "empty")
        if not text.isprintable() and any(ord(c) < 32 and c != "\n" for c in text):
            return BadEdit(text[:4000], "control characters")
        return Edit(text, tuple(Example(f"{task.data['word']}\n{line}") for line in lines))

    def queries(self, task: Task) -> Sequence[Query]:
        question = f"Topic: {task.data['word']}\nQuestion: What is {task.data['word']} known for?\nAnswer:"
        return [Query(Prompt(question), task.data["meaning"])]

    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        scores = tuple(float(a.strip() == task.data["meaning"]) for a in answers)
        return Grade(sum(scores) / len(scores), scores, ("meaning",) * len(scores))
