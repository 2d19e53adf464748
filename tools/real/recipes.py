"""How to train one passage's adapter on a real small model: one setting changed at a time, on real passages.

    python tools/real/recipes.py train --out runs/recipes            # some core hours; goes on where it stopped
    python tools/real/recipes.py table runs/recipes runs/confirm --json docs/results/recipes.json

The passages are of SEAL's released data (``passages_with_edits.json``), each of a title of its own and none of a
title that anything else here is measured on; what is taught is the passage and a self-edit that Qwen2.5-7B wrote of
it. Reported, over passages: the log-likelihood of gold answers without the passage in view, accuracy by the string
rule, and what is left of what the model knew (:mod:`seal.loop.retained`): each adapter is asked a part of the items.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from seal.domains.grading import best_over, string_rule
from seal.domains.knowledge import Knowledge
from seal.loop.exam import prompts_of
from seal.loop.inner import understand
from seal.loop.retained import items, known_items, perplexity, right_items
from seal.lora.files import load_many, save_many
from seal.lora.hardware import product_rate
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, ModelSpec, Recipe, Sampling
from seal.lora.sample import ask
from seal.lora.score import log_likelihood
from seal.lora.train import Job, train_adapters
from seal.machine import machine
from seal.progress import progress
from seal.records import Edit, Json, Task, record_text, seed_of
from seal.stats import difference, interval

DATA = Path(__file__).parents[3] / "shared/data/passages_with_edits.json"
CENTRE = Recipe(rank=8, alpha=16, targets="all-linear", learning_rate=1e-3, tokens=1500, batch_size=4)
GRID: dict[str, dict[str, Any]] = {
    "centre": {},
    "rank 4": {"rank": 4, "alpha": 8},
    "rank 16": {"rank": 16, "alpha": 32},
    "rank 32": {"rank": 32, "alpha": 64},
    "rate 3e-4": {"learning_rate": 3e-4},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 2e-3": {"learning_rate": 2e-3},
    "rate 4e-3": {"learning_rate": 4e-3},
    "500 tokens": {"tokens": 500},
    "3000 tokens": {"tokens": 3000},
    "batch 1": {"batch_size": 1},
    "batch 8": {"batch_size": 8},
    "q and v alone": {"targets": ("q_proj", "v_proj")},
    "chat rows": {},
    "chat rows, rate 2e-3": {"learning_rate": 2e-3},
    "rank 16, 2e-3": {"rank": 16, "alpha": 32, "learning_rate": 2e-3},
    "rank 16, 2e-3, 3000 tokens": {"rank": 16, "alpha": 32, "learning_rate": 2e-3, "tokens": 3000},
}
"""Name → what is changed of :data:`CENTRE`. "chat rows": each row as the answer to a question for the title. The last
three were put together from what helped by itself, and are tried on other passages."""
FIRST = list(GRID)[:-3]
PROSE = 4_000
"""Characters of prose that each adapter is measured on."""
PARTS = 4
"""Of the items that the model knows each adapter is asked one part in so many, another one each."""


def passages(data: Path, first: int, n: int) -> list[Json]:
    """So many passages, one a title, from the first so many titles on."""
    seen: dict[str, Json] = {}
    for record in json.loads(data.read_text("utf-8")):
        seen.setdefault(record["title"], record)
    return list(seen.values())[first : first + n]


def rows_of(domain: Knowledge, record: Json, task: Task, name: str) -> tuple[Example, ...]:
    edit, _ = understand(domain, task, record["completions"][0], CENTRE)
    rows = edit.examples if isinstance(edit, Edit) else ()
    if not name.startswith("chat rows"):
        return rows
    asked = f"What do you know about {record['title']}?"
    return tuple(Example(r.completion, prompt=asked, chat=True, answer=True) for r in rows)


def taught(
    model: Model, domain: Knowledge, tasks: Sequence[Task], records: Sequence[Json], name: str, seed: int
) -> Any:
    recipe = CENTRE.model_copy(update=GRID[name])
    jobs = [
        Job(rows_of(domain, r, t, name), recipe, seed_of("recipes", seed, t.id))
        for r, t in zip(records, tasks, strict=True)
    ]
    return train_adapters(model, jobs)


def measured(model: Model, domain: Knowledge, tasks: Sequence[Task], adapters: Sequence[Any]) -> Json:
    queries = [list(domain.queries(t)) for t in tasks]
    logs = log_likelihood(model, adapters, queries, 4)
    answers = ask(model, adapters, [prompts_of(q) for q in queries], Sampling(16, stop="\n"), 4)
    right = [
        [best_over(string_rule, q, a) for q, a in zip(t.data["questions"], row, strict=True)]
        for t, row in zip(tasks, answers, strict=True)
    ]
    return {
        "log-likelihood": [sum(x) / len(x) for x in logs],
        "accuracy": [sum(x) / len(x) for x in right],
    }


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model(ModelSpec(name=args.model, bf16="auto", threads=args.threads))
    domain = Knowledge(prompt="implications", grader="string")
    records = passages(args.data, args.first, args.passages)
    tasks = [Task(f"{i}", r) for i, r in enumerate(records)]
    names = args.only or FIRST
    untouched = args.out / "untouched.json"
    if not untouched.exists():
        untouched.write_text(json.dumps(measured(model, domain, tasks, [None] * len(tasks))))
    with progress("recipes", len(names) * args.seeds) as advance:
        for seed in range(args.seeds):
            for name in names:
                to = args.out / f"{name} {seed}.json"
                if not to.exists():
                    begin = time.monotonic()
                    outcomes = taught(model, domain, tasks, records, name, seed)
                    adapters = [o.adapter for o in outcomes]
                    save_many(adapters, args.out / f"{name} {seed}.safetensors")
                    told = measured(model, domain, tasks, adapters)
                    told |= {"tokens": sum(o.tokens for o in outcomes), "seconds": time.monotonic() - begin}
                    told["rate"] = product_rate("cpu", model.runner.dtype)
                    to.write_text(json.dumps(told))
                advance(1)
    if not (args.out / "retained.json").exists():
        retain(model, args.out, names)


def retain(model: Model, out: Path, names: Sequence[str]) -> None:
    """What is left of the model's knowledge, of every adapter of the first seed."""
    known = known_items(model)
    (before,) = perplexity(model, [None], PROSE)
    told: Json = {"items": len(items()), "known": len(known), "perplexity": before, "rows": {}}
    with progress("what is retained", len(names)) as advance:
        for name in names:
            adapters = load_many(out / f"{name} 0.safetensors")
            parts = [known[k % PARTS :: PARTS] for k in range(len(adapters))]
            kept = [sum(row) / len(row) for row in right_items(model, adapters, parts)]
            after = perplexity(model, adapters, PROSE)
            advance(1)
            told["rows"][name] = {"kept": kept, "perplexity": after}
    (out / "retained.json").write_text(json.dumps(told))


def told_of(scores: Sequence[Sequence[float]], within: tuple[float, float] | None) -> Json:
    found = interval(scores, within=within)
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def part(folder: Path) -> Json:
    """The rows of one folder: all settings on the same passages."""
    names = [n for n in GRID if list(folder.glob(f"{n} [0-9].json"))]
    untouched = json.loads((folder / "untouched.json").read_text())
    retained = json.loads((folder / "retained.json").read_text())
    runs = {n: [json.loads(p.read_text()) for p in sorted(folder.glob(f"{n} [0-9].json"))] for n in names}
    rows: list[Json] = []
    for name in names:
        logs = [r["log-likelihood"] for r in runs[name]]
        row: Json = {
            "setting": name,
            "recipe": CENTRE.model_copy(update=GRID[name]).model_dump(mode="json"),
            "scores": logs,
            **told_of(logs, None),
            "within": None,
            "accuracy": told_of([r["accuracy"] for r in runs[name]], (0, 1)),
            "kept": told_of([retained["rows"][name]["kept"]], (0, 1)),
            "perplexity": told_of([retained["rows"][name]["perplexity"]], None),
            "tokens": sum(r["tokens"] for r in runs[name]) / len(logs) / len(logs[0]),
            "seconds per adapter": round(sum(r["seconds"] for r in runs[name]) / len(logs) / len(logs[0]), 2),
            "GFLOP/s": round(sum(r["rate"] for r in runs[name]) / len(logs) / 1e9),
        }
        for kind in ("log-likelihood", "accuracy"):
            if name != "centre":
                gap = difference([r[kind] for r in runs[name]], [r[kind] for r in runs["centre"]])
                row[f"{kind} minus centre"] = {
                    "mean": round(gap.mean, 4),
                    "low": round(gap.low, 4),
                    "high": round(gap.high, 4),
                }
        rows.append(row)
    return {
        "passages": len(untouched["accuracy"]),
        "seeds": len(runs["centre"]),
        "untouched": {
            "log-likelihood": told_of([untouched["log-likelihood"]], None),
            "accuracy": told_of([untouched["accuracy"]], (0, 1)),
            "items": retained["items"],
            "known": retained["known"],
            "perplexity": round(retained["perplexity"], 3),
        },
        "rows": rows,
    }


def table(args: argparse.Namespace) -> None:
    parts = {folder.name: part(folder) for folder in args.folders}
    for told in parts.values():
        print(f"{told['passages']} passages, {told['seeds']} seeds; untouched: {told['untouched']}")
        for row in told["rows"]:
            print_row(row)
    if args.json:
        record = {
            "what": "log-likelihood of gold answers per token, closed book, after teaching one passage and an edit of it",
            "command": " ".join(["python", *sys.argv]),
            "date": str(date.today()),
            "machine": machine(),
            "parts": parts,
        }
        Path(args.json).write_text(record_text(record))


def print_row(row: Json) -> None:
    none = {"mean": math.nan, "low": math.nan, "high": math.nan}
    gap, more = (row.get(f"{kind} minus centre", none) for kind in ("log-likelihood", "accuracy"))
    print(
        f"{row['setting']:<28} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  minus centre {gap['mean']:+.3f} "
        f"[{gap['low']:+.3f}, {gap['high']:+.3f}]  right {row['accuracy']['mean']:.3f} ({more['mean']:+.3f} "
        f"[{more['low']:+.3f}, {more['high']:+.3f}])  kept {row['kept']['mean']:.3f} perplexity "
        f"{row['perplexity']['mean']:.2f}  {row['tokens']:.0f} tokens {row['seconds per adapter']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    train = parts.add_parser("train")
    train.add_argument("--model", default="smollm2-135m-q4")
    train.add_argument("--data", type=Path, default=DATA)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--first", type=int, default=0)
    train.add_argument("--passages", type=int, default=12)
    train.add_argument("--seeds", type=int, default=1)
    train.add_argument("--threads", type=int)
    train.add_argument("--only", nargs="*")
    train.set_defaults(do=run)
    made = parts.add_parser("table")
    made.add_argument("folders", type=Path, nargs="+")
    made.add_argument("--json")
    made.set_defaults(do=table)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
