"""Who writes the edit. Every baseline is the same pipeline with another writer: (prompts, n) → n texts per prompt.

The passage alone and the oracle are known to the domain (``domain.plain``, ``domain.oracle``); here are the policy and a
file of another model's edits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from seal.config import WriteConfig
from seal.domains.base import Domain
from seal.models.engine import Sampling, generate
from seal.models.policy import Policy
from seal.store import Stage
from seal.types import BadEdit, Prompt, SealError, Task, seed_of


def write_edits(
    policy: Policy, domain: Domain, tasks: Sequence[Task], n: int, config: WriteConfig, seed: object, stage: Stage
) -> list[list[str]]:
    """``n`` self-edits per task. With ``config.resample`` those that cannot be used are drawn again; the stage keeps the count."""
    prompts = [domain.prompt(t) for t in tasks]
    texts = from_policy(policy, prompts, n, config, seed)
    drawn = 0
    for again in range(1, config.resample + 1):
        places = range(len(tasks) * n)
        bad = [i for i in places if isinstance(domain.parse(tasks[i // n], texts[i // n][i % n]), BadEdit)]
        if not bad:
            break
        seeds = [seed_of(seed, prompts[i // n].text, i % n, again) for i in bad]
        sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
        for i, text in zip(bad, generate(policy, [prompts[i // n] for i in bad], sampling, seeds), strict=True):
            texts[i // n][i % n] = text
        drawn += len(bad)
    if config.resample:
        stage.once("resampled", lambda: drawn)
    return texts


def from_policy(policy: Policy, prompts: Sequence[Prompt], n: int, config: WriteConfig, seed: object) -> list[list[str]]:
    """``n`` self-edits per prompt, sampled from the policy; each sample has a seed of its own."""
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    seeds = [seed_of(seed, p.text, e) for p in prompts for e in range(n)]
    texts = generate(policy, [p for p in prompts for _ in range(n)], sampling, seeds)
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]


def from_file(path: Path, tasks: Sequence[Task], n: int) -> list[list[str]]:
    """Edits of another model: a JSON list of ``{title, context, completions: [text]}`` (SEAL's files), the first ``n`` each.

    Raises:
        SealError: the file cannot be read, or a task has too few edits in it.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        known = {(r["title"], r["context"]): list(r["completions"]) for r in rows}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise SealError(f"{path} is not a list of {{title, context, completions}}: {error}") from error
    texts = []
    for task in tasks:
        found = known.get((task.data["title"], task.data["context"]), [])
        if len(found) < n:
            raise SealError(f"{path} has {len(found)} edits for {task.data['title']!r}, {n} are wanted")
        texts.append(found[:n])
    return texts
