"""Find the puzzles that the embedded grid model cannot answer in context and can after test-time training, as
the paper chose its
tasks: ``make grids`` runs it after the pretraining. Writes ``src/seal/domains/arc/curated.json``.

A puzzle is curated if the unadapted model's greedy answer is wrong, a first trial of test-time training
solves it, and so does one of two more with other seeds (the first is not counted: it may have been luck).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from seal.domains.arc import Arc
from seal.domains.arc.domain import GRIDS_ORACLE, ArcEdit
from seal.domains.arc.puzzles import CURATED, embedded_task
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec, Recipe, Sampling
from seal.lora.sample import ask
from seal.lora.train import Job, train_adapters
from seal.records import Edit, Task

BLOCK = 64
LIMIT, MAX_STEPS = 16, 40
RECIPE = Recipe(rank=16, alpha=16, targets="all-linear", schedule="cosine", batch_size=2)
"""As in configs/arc.toml."""


def solved(
    policy: Model,
    domain: Arc,
    tasks: list[Task],
    texts: str | list[str] | None,
    seed: int,
    recipe: Recipe = RECIPE,
) -> list[bool]:
    """Which tasks the model solves greedily, adapted by one edit for all, or one each, or (``None``) as it
    is."""
    adapters = [None] * len(tasks)
    if texts is not None:
        jobs = []
        for task, text in zip(tasks, [texts] * len(tasks) if isinstance(texts, str) else texts, strict=True):
            edit = domain.parse(task, text)
            assert isinstance(edit, Edit), edit
            jobs.append(
                Job(edit.examples, Recipe.model_validate({**recipe.model_dump(), **edit.directives}), seed)
            )
        adapters = [t.adapter for t in train_adapters(policy, jobs)]
    prompts = [[q.prompt for q in domain.queries(t)] for t in tasks]
    answers = ask(policy, adapters, prompts, Sampling(200, stop=domain.stop))
    return [domain.grade(t, a).score == 1 for t, a in zip(tasks, answers, strict=True)]


def configuration(basic: bool) -> str:
    """A good configuration: the hand-made one, with or without its tools."""
    tools = GRIDS_ORACLE.data_generation.model_copy(update={"use_basic_augmentations": basic})
    return ArcEdit(data_generation=tools, training=GRIDS_ORACLE.training).model_dump_json()


def search(
    policy: Model, domain: Arc, split: str, wanted: int, most: int
) -> tuple[list[int], dict[str, int]]:
    """Numbers of the first ``wanted`` curated puzzles of a split among ``most``, and what was counted on the
    way."""
    kept: list[int] = []
    counts = {"looked at": 0, "solved in context": 0, "solved once": 0}
    for start in range(0, most, BLOCK):
        if len(kept) >= wanted:
            break
        numbers = list(range(start, start + BLOCK))
        tasks = [embedded_task(split, i) for i in numbers]
        shown = solved(policy, domain, tasks, None, 0)
        counts["looked at"] += BLOCK
        counts["solved in context"] += sum(shown)
        left = [(i, t) for i, t, right in zip(numbers, tasks, shown, strict=True) if not right]
        for basic in (
            False,
            True,
        ):  # every other puzzle is tried with the tools first, so that neither way is preferred
            mine = [(i, t) for i, t in left if i % 2 == basic]
            once = solved(policy, domain, [t for _, t in mine], configuration(basic), 0)
            again = [x for x, right in zip(mine, once, strict=True) if right]
            counts["solved once"] += len(again)
            if again:
                trials = [
                    solved(policy, domain, [t for _, t in again], configuration(b), seed)
                    for b, seed in ((False, 1), (True, 2))
                ]
                kept += [i for n, (i, _) in enumerate(again) if any(t[n] for t in trials)]
        print(f"{split}: {len(kept)} curated, {counts}", flush=True)
    return sorted(kept)[:wanted], counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="grids")
    parser.add_argument("--wanted", type=int, nargs=3, default=(40, 8, 60), help="of train, select and eval")
    parser.add_argument("--most", type=int, default=3200, help="puzzles looked at for a split")
    parser.add_argument("--out", type=Path, default=CURATED)
    args = parser.parse_args()
    policy = load_model(ModelSpec(name=str(args.model), bf16="auto"))
    domain = Arc(source="grids", limit=LIMIT, max_steps=MAX_STEPS, batch_size=2)
    record: dict[str, Any] = {"counts": {}}
    for split, n in zip(("train", "select", "eval"), args.wanted, strict=True):
        record[split], record["counts"][split] = search(policy, domain, split, n, args.most)
    args.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
