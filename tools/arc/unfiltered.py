"""The writers of finished runs on held-out puzzles that nobody filtered: a curated set flatters test-time
training by construction.

    PYTHONPATH=tools/arc python tools/arc/unfiltered.py runs/arc-seed-0 runs/arc-seed-1 runs/arc-seed-2 --json
    docs/results/arc-unfiltered.json

One edit each of the untrained model, of the control and of the trained policy, and the hand-made
configuration, all tried on the model that the runs say, on puzzles of the held-out families (other ones than
the runs were evaluated on); intervals over puzzles and seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

from curate import solved

from seal.config import RunConfig
from seal.domains import load_domain
from seal.domains.arc import Arc
from seal.domains.arc.puzzles import embedded_task
from seal.loop.write import from_policy
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec, Recipe
from seal.machine import machine
from seal.records import Edit, Task, record_text, seed_of
from seal.stats import difference, interval
from seal.store import Stage

FIRST = 83 * 3000
"""The first of 83 puzzle numbers that nobody looked at before, each of a family of its own: neither the
search for curated ones reaches them, nor has anything been chosen by them."""
PAIRS = (
    ("SEAL", "no RL"),
    ("SEAL", "random control"),
    ("SEAL", "in context"),
    ("no RL", "in context"),
    ("SEAL", "best fixed"),
    ("by hand", "in context"),
)


def tried(
    policy: Model, domain: Arc, tasks: list[Task], texts: list[str], recipe: Recipe, seed: int
) -> list[float]:
    """Score of each task with its own edit; an edit that cannot be used scores as the model alone."""
    alone = solved(policy, domain, tasks, None, seed)
    scores = [float(x) for x in alone]
    usable = [
        i for i, (t, x) in enumerate(zip(tasks, texts, strict=True)) if isinstance(domain.parse(t, x), Edit)
    ]
    found = solved(policy, domain, [tasks[i] for i in usable], [texts[i] for i in usable], seed, recipe)
    for i, right in zip(usable, found, strict=True):
        scores[i] = float(right)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--puzzles", type=int, default=48)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tasks = [embedded_task("eval", FIRST + i) for i in range(args.puzzles)]
    groups = [str(t.data["family"]) for t in tasks]
    scores: dict[str, list[list[float]]] = {
        "in context": [],
        "no RL": [],
        "random control": [],
        "SEAL": [],
        "best fixed": [],
        "by hand": [],
    }
    for run in args.runs:
        config = RunConfig.model_validate(json.loads((run / "config.json").read_text()))
        domain = load_domain(config.domain.name, config.domain.options)
        assert isinstance(domain, Arc)
        base = load_model(ModelSpec(name=str(config.model.name), bf16="auto"))
        trained, control = (
            load_model(ModelSpec(name=str(run / f"{branch}/round-{config.rounds}/policy"), bf16="auto"))
            for branch in ("seal", "control")
        )
        prompts = [domain.prompt(t) for t in tasks]
        scores["in context"].append([float(x) for x in solved(base, domain, tasks, None, config.seed)])
        for name, policy in (("no RL", base), ("random control", control), ("SEAL", trained)):
            texts = [
                x[0].text
                for x in from_policy(policy, prompts, 1, config.write, seed_of("unfiltered", config.seed))
            ]
            adapt = base if config.inner.start == "base" else policy
            scores[name].append(tried(adapt, domain, tasks, texts, config.inner.recipe, config.seed))
        fixed = domain.fixed(Stage(run / "seal/round-1").attempts())
        for name, choice in (("best fixed", fixed), ("by hand", domain.oracle(tasks[0]))):
            scores[name].append(
                tried(base, domain, tasks, [str(choice)] * len(tasks), config.inner.recipe, config.seed)
            )
        print(run, {k: sum(v[-1]) / len(tasks) for k, v in scores.items()}, flush=True)
    record = {
        "command": " ".join(["PYTHONPATH=tools/arc python", *sys.argv]), "date": date.today().isoformat(),
        "machine": machine(), "puzzles": args.puzzles, "seeds": len(args.runs),
        "tasks": [t.id for t in tasks], "groups": groups,
        "rows": {k: vars(interval(v, groups)) | {"scores": v} for k, v in scores.items()},
        "differences": {f"{a} - {b}": vars(difference(scores[a], scores[b], groups)) for a, b in PAIRS},
    }  # fmt: skip
    print(record_text({k: v for k, v in record.items() if k not in ("tasks", "groups")}))
    if args.json:
        args.json.write_text(record_text(record))


if __name__ == "__main__":
    main()
