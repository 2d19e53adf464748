"""THE LOOP: rounds of write, try, select, imitate. Synchronous, and with no tensor in it."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

from seal.config import RunConfig
from seal.domains.base import Domain
from seal.loop.imitate import learn_from
from seal.loop.inner import Crew, fingerprints, open_domain
from seal.loop.race import try_siblings, untried
from seal.loop.selection import as_many, by_chance, exchanged, kept_in, select
from seal.loop.write import as_written, cut_off, write_edits
from seal.lora.load import load_policy
from seal.lora.model import Model
from seal.lora.vllm import served
from seal.records import Attempt, SealError, Selected, Task, seed_of
from seal.store import Stage, Store


def run(config: RunConfig, store: Store, branch: str = "seal", crew: Crew | None = None) -> Model:
    """The outer loop of SEAL: write edits, try them, imitate those that helped. Continues where the store
    left off.

    ``branch`` names this loop inside the run; a control is another branch with another way to select. A
    ``crew`` tries the edits elsewhere.
    """
    domain = open_domain(config)
    store.begun_with(fingerprints(domain))
    if config.rounds and not domain.tasks("train"):
        raise SealError(
            "there is no training task to learn from: give sizes.train a number, or take --rounds 0"
        )
    policy = load_base(config)
    for r in range(1, config.rounds + 1):
        stage = store.stage(f"{branch}/round-{r}")
        if not (stage.folder / "policy").exists():
            tasks_P = pick(domain.tasks("train"), config.tasks_per_round, seed_of(config.seed, r))
            rule, seed = config.outer.select, seed_of(config.seed, r)
            attempts: list[Attempt] = []
            if rule == "others_of":
                kept = exchanged(kept_in(store, "seal", r), seed)
            else:
                texts_P_E = write(policy, domain, tasks_P, config, stage, r)
                learner = policy if config.inner.start == "policy" else load_base(config)
                label = f"{branch}, round {r}: try edits"
                attempts = (
                    untried(domain, tasks_P, texts_P_E, config.inner, by_chance(texts_P_E, seed))
                    if rule == "random_of"
                    else try_siblings(learner, domain, tasks_P, texts_P_E, config, stage, seed, label, crew)
                )
                if learner is not policy:
                    learner.release()
                count = as_many(kept_in(store, "seal", r)) if branch != "seal" else None
                kept = select(attempts, rule, config.outer.keep, seed, count)
            kept = as_written(kept, stage, tasks_P)
            stage.once("kept", lambda kept=kept: [vars(k) for k in kept])  # type: ignore[misc]
            improve(policy, domain, tasks_P, kept, attempts, config, stage, r)
        policy.release()  # and only then the next one
        policy = load_round(config, stage)
    return policy


def pick(tasks: Sequence[Task], n: int, seed: int) -> list[Task]:
    """The tasks of a round: ``n`` of them, in the order of a seeded shuffle."""
    return random.Random(seed).sample(list(tasks), min(n, len(tasks)))


def write(
    policy: Model, domain: Domain, tasks: Sequence[Task], config: RunConfig, stage: Stage, r: int
) -> list[list[str]]:
    """The self-edits of a round: sampled once, kept in the stage."""
    seed = seed_of("write", config.seed, r)

    def compute() -> list[list[str]]:
        texts = write_edits(policy, domain, tasks, config.edits_per_task, config.write, seed, stage)
        rng = random.Random(seed_of("explore", seed))
        if r == 1 and config.write.explore:
            texts = [
                [f"{text.rstrip()}\n{domain.explore(rng) or ''}".rstrip() for text in row] for row in texts
            ]
            stage.put(
                "cut", [[None for _ in row] for row in texts]
            )  # with its directives after its whole lines an edit ends
        return texts

    texts: list[list[str]] = stage.once("texts", compute)
    return texts


def improve(
    policy: Model,
    domain: Domain,
    tasks: Sequence[Task],
    kept: Sequence[Selected],
    attempts: Sequence[Attempt],
    config: RunConfig,
    stage: Stage,
    r: int,
) -> None:
    """Finetune the policy by the round's outcome, merge, and save it under the round. With nothing learnt it
    stays as it is."""
    prompts = {t.id: domain.prompt(t) for t in domain.tasks("train")}
    adapter, record = learn_from(policy, prompts, kept, attempts, config, r, cut_off(stage, tasks))
    if adapter is not None:  # a finetune that diverged is not merged
        policy.merge(adapter)
    elif record["diverged"]:
        print(
            f"seal: learning from the edits of round {r} diverged; the policy stays as it was",
            file=sys.stderr,
        )
    stage.once("outer", lambda: record)
    stage.once_folder("policy", policy.save)


def load_base(config: RunConfig) -> Model:
    """The model before any round."""
    m, rank = config.model, config.inner.recipe.rank
    return served(
        load_policy(m.name, m.device, m.dtype, m.bf16, m.threads, m.quantize), m.engine, m.name, rank
    )


def load_round(config: RunConfig, stage: Stage) -> Model:
    """The policy that a round saved."""
    m, rank = config.model, config.inner.recipe.rank
    return served(
        load_policy(stage.folder / "policy", m.device, m.dtype, m.bf16, m.threads), m.engine, m.name, rank
    )
