"""Who writes the edit. Every baseline is the same pipeline with another writer: (prompts, n) → n texts per prompt.

The passage alone and the oracle are known to the domain (``domain.plain``, ``domain.oracle``); here are the policy and another
model (its file of edits, or its endpoint).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seal.config import WriteConfig
from seal.endpoint import Endpoint, is_endpoint
from seal.models.engine import Sampling, complete
from seal.models.policy import Policy
from seal.types import Prompt, SealError, Task, Written, seed_of

MAX_TOKENS = 1024
"""Longest self-edit of a model behind an endpoint."""


def sampling_of(config: WriteConfig, schema: Mapping[str, Any] | None = None) -> Sampling:
    """How self-edits are drawn; ``schema`` is the domain's, for ``constrained``.

    Raises:
        SealError: the edits are to be constrained, and the domain has no schema for them.
    """
    if config.constrained and schema is None:
        raise SealError("write.constrained: the self-edits of this domain are no JSON, so there is no schema to keep to")
    return Sampling(
        config.max_tokens, config.temperature, config.top_p, schema=json.dumps(schema) if config.constrained else ""
    )


def from_policy(
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int,
    config: WriteConfig,
    seed: object,
    schema: Mapping[str, Any] | None = None,
) -> list[list[Written]]:
    """``n`` self-edits per prompt, sampled from the policy; each sample has a seed of its own."""
    sampling = sampling_of(config, schema)
    seeds = [seed_of(seed, p.text, e) for p in prompts for e in range(n)]
    texts = complete(policy, [p for p in prompts for _ in range(n)], sampling, seeds)
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]


def from_another(source: str, tasks: Sequence[Task], prompts: Sequence[Prompt], n: int) -> list[list[Written]]:
    """Edits of another model: one behind an endpoint (``http://host/v1#model``), asked for ``n`` per prompt, or a file of them.

    Raises:
        SealError: the file cannot be used, or the endpoint left an edit unwritten.
    """
    if not is_endpoint(source):
        return [[Written(text) for text in row] for row in from_file(Path(source), tasks, n)]
    endpoint = Endpoint(source)
    drawn = [endpoint.complete([p.text for p in prompts], MAX_TOKENS, 1.0, sample) for sample in range(n)]
    if failed := sum(t is None for texts in drawn for t in texts):
        raise SealError(f"{source} left {failed} edits unwritten; run the same command again to go on")
    return [[text for texts in drawn if (text := texts[i])] for i in range(len(tasks))]


def from_file(path: Path, tasks: Sequence[Task], n: int) -> list[list[str]]:
    """Edits of another model: a JSON list of ``{title, context, completions: [text]}`` (SEAL's files), the first ``n`` each.

    Raises:
        SealError: the file cannot be read, or a task has too few edits in it.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        known = {(r["title"], r["context"]): r["completions"] for r in rows}
        if not all(isinstance(c, list) and all(isinstance(t, str) and t.encode() for t in c) for c in known.values()):
            raise TypeError("completions must be lists of texts")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SealError(f"{path} is not a list of {{title, context, completions}}: {error}") from error
    texts = []
    for task in tasks:
        found = known.get((task.data.get("title"), task.data.get("context")), [])
        if len(found) < n:
            raise SealError(f"{path} has {len(found)} edits for {task.data.get('title', task.id)!r}, {n} are wanted")
        texts.append(found[:n])
    return texts
