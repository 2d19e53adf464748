"""What the inner loop is measured on: jobs, and the questions and prompts that go with them."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, ModelSpec, Prompt, Recipe
from seal.lora.train import Job
from seal.records import seed_of

sys.path.insert(0, str(Path(__file__).parent))
from common import random_policy, words

PAPER = Recipe()
"""The paper's inner loop: rank 32 on q and v, 1e-3, 10 epochs, batch 1."""


@dataclass(frozen=True)
class Work:
    """A workload: the model, the jobs, and the questions and prompts that go with them."""

    name: str
    policy: Model
    exact: Model
    """The same in fp32 (the policy itself where there is no memory for two)."""
    jobs: list[Job]
    questions: list[list[Prompt]]
    prompts: list[Prompt]
    answer: int
    """Tokens of an answer."""
    edit: int
    """Tokens of a self-edit."""


def atlas(n: int, recipe: Recipe | None, device: str) -> Work:
    """Untrained self-edits of the embedded model on passages of its world."""
    from seal.config import WriteConfig, load_config
    from seal.domains import load_domain
    from seal.loop.write import from_policy
    from seal.records import Edit

    config = load_config(Path(__file__).parents[1] / "configs" / "atlas.toml")
    domain = load_domain(config.domain.name, config.domain.options)
    policy = load_model(ModelSpec(name="atlas", device=device, bf16="auto", threads=torch.get_num_threads()))
    tasks = domain.tasks("train")[: -(-n // 5)]
    prompts = [domain.prompt(t) for t in tasks]
    texts = from_policy(policy, prompts, 5, WriteConfig(max_tokens=192), 0)
    pairs = [
        (t, domain.parse(t, written.text)) for t, row in zip(tasks, texts, strict=True) for written in row
    ]
    good = [(t, e) for t, e in pairs if isinstance(e, Edit)][:n]
    jobs = [Job(e.examples, recipe or config.inner.recipe, seed_of(i)) for i, (_, e) in enumerate(good)]
    questions = [[q.prompt for q in domain.queries(t)] for t, _ in good]
    return Work(
        "atlas",
        policy,
        load_model(ModelSpec(name="atlas", device=device, threads=torch.get_num_threads())),
        jobs,
        questions,
        prompts,
        8,
        192,
    )


def passages(n: int, shape: str, device: str, all_linear: bool) -> Work:
    """Random words with the lengths of SEAL's own data: a passage of 170 tokens and 7.9 rows of 46 on
    average, 5 questions."""
    policy = random_policy(shape, device)
    exact = policy if shape == "7B" else random_policy(shape, device, bf16=False)
    rng = random.Random(0)
    vocabulary = policy.model.config.vocab_size
    jobs, questions = [], []
    recipe = PAPER.model_copy(update={"targets": "all-linear"}) if all_linear else PAPER
    for i in range(n):
        lengths = [
            max(12, min(400, round(rng.lognormvariate(3.75, 0.4))))
            for _ in range(max(2, round(rng.gauss(7.9, 2))))
        ]
        rows = [*lengths, max(60, round(rng.gauss(170, 50)))]
        jobs.append(Job(tuple(Example(words(rng, m - 1, vocabulary)) for m in rows), recipe, i))
        questions.append([Prompt(words(rng, 20, vocabulary)) for _ in range(5)])
    prompts = [Prompt(words(rng, 220, vocabulary)) for _ in range(max(1, n // 5))]
    return Work(
        f"passages-{shape}" + ("-all-linear" if all_linear else ""),
        policy,
        exact,
        jobs,
        questions,
        prompts,
        16,
        128,
    )


def arc(n: int, device: str) -> Work:
    """Rows as of ARC grids: demonstrations and a test grid, 250 to 900 tokens, one token a cell; the paper's
    ARC recipe, 20 steps."""
    policy, exact = random_policy("1M", device), random_policy("1M", device, bf16=False)
    rng = random.Random(0)
    targets = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    recipe = Recipe(
        rank=128, alpha=16, targets=targets, learning_rate=1e-4, steps=20, batch_size=2, schedule="cosine"
    )
    jobs = []
    for i in range(n):
        size = rng.randrange(250, 900)
        rows = tuple(Example(words(rng, max(60, round(size * rng.uniform(0.8, 1.2))), 64)) for _ in range(30))
        jobs.append(Job(rows, recipe, i))
    questions = [[Prompt(words(rng, 400, 64))] for _ in range(n)]
    return Work(
        "arc", policy, exact, jobs, questions, [Prompt(words(rng, 400, 64)) for _ in range(n // 4)], 100, 64
    )


def embedded_grids(n: int, device: str) -> Work:
    """Untrained self-edits of the embedded grid model: every adapter with its own learning rate, epochs, loss
    and puzzles."""
    from seal.config import WriteConfig, load_config
    from seal.domains import load_domain
    from seal.loop.inner import understand
    from seal.loop.write import from_policy
    from seal.records import Edit

    config = load_config(Path(__file__).parents[1] / "configs" / "arc.toml")
    domain = load_domain("arc", config.domain.options)
    policy = load_model(ModelSpec(name="grids", device=device, bf16="auto", threads=torch.get_num_threads()))
    tasks = domain.tasks("train")[: -(-n // 4)]
    prompts = [domain.prompt(t) for t in tasks]
    texts = from_policy(policy, prompts, 5, WriteConfig(max_tokens=40, top_p=1.0), 0)
    found = [
        (t, *understand(domain, t, x.text, config.inner.recipe))
        for t, row in zip(tasks, texts, strict=True)
        for x in row
    ]
    good = [(t, e, recipe) for t, e, recipe in found if isinstance(e, Edit)][:n]
    jobs = [Job(e.examples, recipe, seed_of(i)) for i, (_, e, recipe) in enumerate(good)]
    questions = [[q.prompt for q in domain.queries(t)] for t, _, _ in good]
    return Work(
        "grids",
        policy,
        load_model(ModelSpec(name="grids", device=device, threads=torch.get_num_threads())),
        jobs,
        questions,
        prompts,
        60,
        40,
    )
