"""Find the puzzles that the embedded grid model cannot answer in context and can after test-time training, as the paper chose its
tasks: ``make grids`` runs it after the pretraining. Writes ``src/seal/domains/curated.json``.

A puzzle is curated if the unadapted model's greedy answer is wrong and at least a third of good configurations times seeds solve it.
"""

from __future__ import annotations

import argparse
import json

from seal.domains.arc import GRIDS_ORACLE, Arc, ArcEdit
from seal.domains.puzzles import CURATED, embedded_task
from seal.models.engine import Sampling, ask
from seal.models.policy import Policy, load_policy
from seal.models.train import Job, train_adapters
from seal.types import Edit, Recipe, Task

RECIPE = Recipe(rank=16, alpha=16, targets="all-linear", schedule="cosine", batch_size=2)
"""As in configs/arc.toml."""


def solved(policy: Policy, domain: Arc, tasks: list[Task], text: str | None, seed: int, recipe: Recipe = RECIPE) -> list[bool]:
    """Which tasks the model solves greedily, adapted by an edit or (``None``) as it is."""
    adapters = [None] * len(tasks)
    if text is not None:
        jobs = []
        for task in tasks:
            edit = domain.parse(task, text)
            assert isinstance(edit, Edit), edit
            jobs.append(Job(edit.examples, Recipe.model_validate({**recipe.model_dump(), **edit.directives}), seed))
        adapters = [t.adapter for t in train_adapters(policy, jobs)]
    prompts = [[q.prompt for q in domain.queries(t)] for t in tasks]
    answers = ask(policy, adapters, prompts, Sampling(200, stop=domain.stop))
    return [domain.grade(t, a).score == 1 for t, a in zip(tasks, answers, strict=True)]


def configurations() -> list[str]:
    """Good configurations: the hand-made one at three learning rates."""
    found = []
    for rate in (1e-3, 3e-3, 1e-2):
        training = GRIDS_ORACLE.training.model_copy(update={"learning_rate": rate})
        found.append(ArcEdit(data_generation=GRIDS_ORACLE.data_generation, training=training).model_dump_json())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="grids")
    parser.add_argument("--puzzles", type=int, nargs=3, default=(168, 84, 84), help="of train, select and eval")
    args = parser.parse_args()
    policy = load_policy(args.model, bf16="auto", threads="auto")
    domain = Arc(source="grids", limit=24, max_steps=60, batch_size=2)
    kept = {}
    for split, n in zip(("train", "select", "eval"), args.puzzles, strict=True):
        tasks = [embedded_task(split, i) for i in range(n)]
        shown = solved(policy, domain, tasks, None, 0)
        trials = [solved(policy, domain, tasks, text, seed) for text in configurations() for seed in range(2)]
        wins = [sum(t[i] for t in trials) for i in range(n)]
        kept[split] = [i for i in range(n) if not shown[i] and 3 * wins[i] >= len(trials)]
        share = [sum(t) / n for t in trials]
        print(f"{split}: in context {sum(shown) / n:.2f}, by configuration and seed {share}, curated {len(kept[split])} of {n}")
    CURATED.write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
