"""When to adapt: what is saved, and what is lost, if a model is quizzed before it is edited and after. In the
embedded world, where half of the passages are of entities that the model knows by heart, and half are new.

Every passage gets a quiz that the model drafts itself, one self-edit and one adapter. *Never* edits nothing;
*always* keeps every adapter; *skip* trains none where the practice half of the quiz is answered without the
passage (:func:`seal.teach.learn.is_known`); *skip and drop* also drops an adapter after which no more
practice questions are right than before, or which costs a tenth of some other known entities (not those that
measure harm). Accuracy is on the world's own questions.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quiz import GREEDY, HERE, edits_of, rows_of

from seal.config import load_config
from seal.domains.knowledge import Knowledge, atlas
from seal.lora.adapter import Adapter
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.lora.sample import ask
from seal.lora.train import Job, train_adapters
from seal.machine import machine
from seal.records import Task, record_text, seed_of
from seal.report.memory import told
from seal.teach.learn import is_known
from seal.teach.quiz import draft_quiz

Floats = NDArray[np.float64]
HARM = 0.1


def tasks_of(split: str, first: int, n: int) -> list[Task]:
    return [Task(r["id"], r) for r in (atlas.record(split, first + i) for i in range(n))]


def scores(policy: Model, domain: Knowledge, adapters: list[Adapter | None], tasks: list[Task]) -> Floats:
    """Of each adapter on its own task."""
    answers = ask(policy, adapters, [[q.prompt for q in domain.queries(t)] for t in tasks], GREEDY)
    return np.array([domain.grade(t, a).score for t, a in zip(tasks, answers, strict=True)])


def over(policy: Model, domain: Knowledge, adapters: list[Adapter | None], tasks: list[Task]) -> Floats:
    """Of each adapter over all these tasks."""
    queries = [q.prompt for t in tasks for q in domain.queries(t)]
    found = []
    for answers in ask(policy, adapters, [queries] * len(adapters), GREEDY, 16):
        flat = iter(answers)
        found.append(np.mean([domain.grade(t, [next(flat) for _ in domain.queries(t)]).score for t in tasks]))
    return np.array(found)


def practice(tasks: list[Task], quiz: list[dict[str, Any]]) -> list[Task]:
    return [
        Task(t.id, {**t.data, "questions": [x for x in q["questions"] if x["half"] == "practice"]})
        for t, q in zip(tasks, quiz, strict=True)
    ]


def one_seed(policy: Model, domain: Knowledge, n: int, seed: int) -> dict[str, dict[str, Floats]]:
    """For each way: per passage whether it was trained, its score, and what was lost of known entities."""
    tasks = [*tasks_of("known", 48, n), *tasks_of("select", 600, n)]
    gate, probes = tasks_of("known", 100, 24), tasks_of("known", 130, 24)
    quiz = draft_quiz(policy, [{**t.data} for t in tasks], 8, seed)
    recipe = load_config(HERE / "configs/atlas.toml").inner.recipe
    texts = edits_of(policy, domain, tasks, 1, seed)
    jobs = [
        Job(tuple(rows_of(domain, t, e)), recipe, seed_of(seed, i))
        for i, (t, e) in enumerate(zip(tasks, texts, strict=True))
    ]
    adapters = [t.adapter for t in train_adapters(policy, jobs)]
    nobody: list[Adapter | None] = [None] * len(tasks)
    before, after = (scores(policy, domain, a, tasks) for a in (nobody, adapters))
    asked = practice(tasks, quiz)
    some = np.array([bool(t.data["questions"]) for t in asked])
    tried = [t for t, x in zip(asked, some, strict=True) if x]
    gain = np.full(len(tasks), np.inf)  # without a practice question there is no evidence against an adapter
    gain[some] = scores(
        policy, domain, [a for a, x in zip(adapters, some, strict=True) if x], tried
    ) - scores(policy, domain, nobody[: len(tried)], tried)
    lost = over(policy, domain, [None], probes)[0] - over(policy, domain, adapters, probes)
    cost = over(policy, domain, [None], gate)[0] - over(policy, domain, adapters, gate)
    new = ~np.array([is_known(q, 1.0) for q in quiz])
    kept = new & (gain > 0) & (cost <= HARM)
    ways = {
        "never": (new & False, new & False),
        "always": (new | True, new | True),
        "skip": (new, new),
        "skip and drop": (new, kept),
    }
    return {
        name: {
            "trained": trained.astype(float),
            "score": np.where(used, after, before),
            "lost": np.where(used, lost, 0.0),
        }
        for name, (trained, used) in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=32, help="of each kind, known and new")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    policy = load_model(ModelSpec(name="atlas", bf16="auto"))
    domain = Knowledge(prompt="implications", grader="string")
    runs = [one_seed(policy, domain, args.passages, s) for s in range(args.seeds)]
    rows = []
    for name in runs[0]:
        row: dict[str, Any] = {"setting": name}
        for key, part in (("known", slice(0, args.passages)), ("new", slice(args.passages, None))):
            row[f"trained, {key}"] = round(float(np.mean([r[name]["trained"][part] for r in runs])), 4)
            for what in ("score", "lost"):
                scores = np.array([r[name][what][part] for r in runs])
                row[f"{what}, {key}"] = told(scores, (0.0, 1.0) if what == "score" else (-1.0, 1.0))
        rows.append(row)
        print(
            name,
            {k: v if isinstance(v, float) else v["mean"] for k, v in row.items() if k != "setting"},
            flush=True,
        )
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "passages": args.passages,
        "seeds": args.seeds,
        "rows": rows,
    }
    if args.json:
        args.json.write_text(record_text(record))


if __name__ == "__main__":
    main()
