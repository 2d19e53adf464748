"""THE LOOP: rounds of write, try, select, imitate. Synchronous, and with no tensor in it.

P tasks, E edits of each. A control (:mod:`seal.loop.selection`) is the same loop on another branch of the
run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from seal.config import RunConfig
from seal.loop.imitate import imitate
from seal.loop.inner import HERE, InnerLoop, Workers, open_domain
from seal.loop.race import by_chance, try_siblings, untried
from seal.loop.results import fingerprints
from seal.loop.selection import SEAL, Branch, kept_in
from seal.loop.write import as_written, write_round
from seal.lora.load import load_model
from seal.lora.records import ModelSpec
from seal.records import SealError, Task
from seal.store import Store


def run(config: RunConfig, store: Store, branch: Branch = SEAL, workers: Workers = HERE) -> ModelSpec:
    """The outer loop of SEAL: write edits, try them, imitate those that helped. Continues where the store
    left off.

    Returns:
        the policy after the last round, to be loaded.
    """
    domain = open_domain(config)
    store.begun_with(fingerprints(domain))
    if config.rounds and not domain.tasks("train"):
        raise SealError(
            "there is no training task to learn from: give sizes.train a number, or take --rounds 0"
        )
    inner = InnerLoop(domain, config.inner, workers)
    for round_ in store.owed(branch.folder, config.rounds):
        with load_model(store.policy(branch.folder, round_.number - 1), config.inner.recipe.rank) as policy:
            tasks_P = pick(domain.tasks("train"), config.tasks_per_round, round_.seed())
            prompts = {t.id: domain.prompt(t) for t in tasks_P}
            texts_P_E = write_round(policy, domain, tasks_P, config, round_) if branch.writes else []
            if branch.looks:
                attempts = try_siblings(inner, policy, tasks_P, texts_P_E, config, round_)
            else:
                attempts = untried(inner, tasks_P, texts_P_E, by_chance(texts_P_E, round_.seed()))
            others = kept_in(store, SEAL, round_.number)
            kept = as_written(
                branch.select(attempts, others, config.outer, round_.seed()), round_.stage, tasks_P
            )
            round_.stage.once("kept", lambda kept=kept: [vars(k) for k in kept])  # type: ignore[misc]
            imitate(policy, prompts, kept, attempts, config, round_)
    return store.policy(branch.folder, config.rounds)


def pick(tasks: Sequence[Task], n: int, seed: int) -> list[Task]:
    """The tasks of a round: ``n`` of them, in the order of a seeded shuffle."""
    return random.Random(seed).sample(list(tasks), min(n, len(tasks)))
