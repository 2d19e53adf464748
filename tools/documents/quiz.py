"""How far a quiz that the model drafts itself can be trusted, measured where the right questions are known:
the embedded world.

``--part recipe`` compares learning rates and lengths of ``seal learn`` on pooled selection passages, by the
world's own questions. ``--part trust`` trains an adapter on each of several self-edits per passage and
compares its accuracy on the self-drafted quiz with that on the world's own questions: levels, and
correlations over all adapters and among siblings (intervals by bootstrap over passages).
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from seal.config import WriteConfig, load_config
from seal.domains.knowledge import Knowledge, atlas
from seal.loop.inner import understand
from seal.loop.write import finished, from_policy
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, ModelSpec, Recipe, Sampling
from seal.lora.sample import ask
from seal.lora.train import Job, train_adapters
from seal.machine import machine
from seal.records import Edit, Task, seed_of
from seal.teach.quiz import draft_quiz
from seal.teach.recipes import EMBEDDED_RECIPE

HERE = Path(__file__).resolve().parents[2]
GREEDY = Sampling(32, stop="\n")


def edits_of(policy: Model, domain: Knowledge, tasks: list[Task], n: int, seed: object) -> list[list[str]]:
    prompts = [domain.prompt(t) for t in tasks]
    return finished(
        domain, from_policy(policy, prompts, n, WriteConfig(max_tokens=192), seed_of("quiz tool", seed))
    )[0]


def rows_of(domain: Knowledge, task: Task, texts: list[str]) -> list[Example]:
    found: dict[Example, None] = {}
    for text in texts:
        edit, _ = understand(domain, task, text, Recipe())
        found |= dict.fromkeys(edit.examples if isinstance(edit, Edit) else ())
    return list(found)


def recipe(policy: Model, domain: Knowledge, groups: int, size: int) -> list[dict[str, Any]]:
    tasks = [Task(r["id"], r) for r in (atlas.record("select", 200 + i) for i in range(groups * size))]
    texts = edits_of(policy, domain, tasks, 5, 0)
    pooled = [
        tuple(
            x
            for t, e in zip(tasks[g * size : g * size + size], texts[g * size :], strict=False)
            for x in rows_of(domain, t, e)
        )
        for g in range(groups)
    ]
    found = []
    for rate in (1e-3, 2e-3, 4e-3, 8e-3):
        for epochs in (4, 8, 16):
            r = EMBEDDED_RECIPE.model_copy(update={"learning_rate": rate, "epochs": epochs})
            adapters = [
                t.adapter for t in train_adapters(policy, [Job(rows, r, g) for g, rows in enumerate(pooled)])
            ]
            prompts = [
                [q.prompt for t in tasks[g * size : g * size + size] for q in domain.queries(t)]
                for g in range(groups)
            ]
            answers = [iter(a) for a in ask(policy, adapters, prompts, GREEDY, 1)]
            scores = [
                domain.grade(t, [next(answers[i // size]) for _ in domain.queries(t)]).score
                for i, t in enumerate(tasks)
            ]
            found.append(
                {
                    "learning_rate": rate,
                    "epochs": epochs,
                    "gold": round(float(np.mean(scores)), 4),
                    "n_passages": len(tasks),
                }
            )
            print(found[-1], flush=True)
    return found


def trust(policy: Model, domain: Knowledge, n: int, n_edits: int, seed: int) -> dict[str, Any]:
    tasks = [Task(r["id"], r) for r in (atlas.record("select", 400 + i) for i in range(n))]
    quizzed = draft_quiz(policy, [{**t.data} for t in tasks], 8, seed, drafts=4)
    quiz = [Task(t.id, {**t.data, "questions": q["questions"]}) for t, q in zip(tasks, quizzed, strict=True)]
    texts = edits_of(policy, domain, tasks, n_edits, seed)
    config = load_config(HERE / "configs/atlas.toml")
    jobs = [
        Job(tuple(rows_of(domain, t, [e])), config.inner.recipe, seed_of(seed, i))
        for i, (t, row) in enumerate(zip(tasks, texts, strict=True))
        for e in row
    ]
    adapters = [t.adapter for t in train_adapters(policy, jobs)]

    def scores(of: list[Task]) -> np.ndarray:
        prompts = [[q.prompt for q in domain.queries(t)] for t in of for _ in range(n_edits)]
        answers = ask(policy, adapters, prompts, GREEDY)
        return np.array([domain.grade(of[i // n_edits], a).score for i, a in enumerate(answers)]).reshape(
            n, n_edits
        )

    gold, drafted = scores(tasks), scores(quiz)
    usable = np.array([len(t.data["questions"]) >= 2 for t in quiz])
    gold, drafted = gold[usable], drafted[usable]
    before = [
        domain.grade(t, a).score
        for t, a in zip(
            tasks,
            ask(policy, [None] * n, [[q.prompt for q in domain.queries(t)] for t in tasks], GREEDY),
            strict=True,
        )
    ]

    def of(pick: np.ndarray) -> dict[str, float]:
        g, d = gold[pick], drafted[pick]
        best = d.argmax(1)
        return {
            "gold": float(g.mean()),
            "quiz": float(d.mean()),
            "correlation": float(np.corrcoef(g.ravel(), d.ravel())[0, 1]),
            "correlation of passages": float(np.corrcoef(g.mean(1), d.mean(1))[0, 1]),
            "correlation of siblings": float(
                np.corrcoef((g - g.mean(1, keepdims=True)).ravel(), (d - d.mean(1, keepdims=True)).ravel())[
                    0, 1
                ]
            ),
            "gold of the sibling best by quiz": float(g[np.arange(len(g)), best].mean()),
            "gold of the sibling best by gold": float(g.max(1).mean()),
        }

    rng = np.random.default_rng(0)
    draws = [of(rng.integers(0, len(gold), len(gold))) for _ in range(2000)]
    whole = of(np.arange(len(gold)))
    return {
        "passages": int(usable.sum()),
        "edits": n_edits,
        "drafted": sum(q["drafted"] for q in quizzed),
        "sound": sum(q["sound"] for q in quizzed),
        "gold before": round(float(np.mean(before)), 4),
        "figures": {
            k: [
                round(v, 4),
                *(round(float(x), 4) for x in np.nanpercentile([d[k] for d in draws], [2.5, 97.5])),
            ]
            for k, v in whole.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["recipe", "trust"], required=True)
    parser.add_argument("--passages", type=int, default=96)
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    policy = load_model(ModelSpec(name="atlas", bf16="auto"))
    domain = Knowledge(prompt="implications", grader="string")
    if args.part == "recipe":
        recipe(policy, domain, groups=6, size=8)
        return
    seeds = [trust(policy, domain, args.passages, args.edits, s) for s in range(args.seeds)]
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "by_seed": seeds,
    }
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
