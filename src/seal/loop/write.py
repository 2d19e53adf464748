"""Who writes the edit. Every baseline is the same pipeline with another writer: (prompts, n) → n texts per
prompt.

The passage alone and the oracle are known to the domain (``domain.plain``, ``domain.oracle``); here are the
policy and another model (its file of edits, or its endpoint).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal.config import RunConfig, WriteConfig
from seal.domains.base import Domain
from seal.endpoint import Endpoint, is_endpoint
from seal.loop.inner import understand
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import complete
from seal.records import BadEdit, Prompt, Recipe, SealError, Selected, Task, Written, seed_of
from seal.store import Round, Stage

MAX_TOKENS = 1024
"""Longest self-edit of a model behind an endpoint."""


def sampling_of(config: WriteConfig, schema: Mapping[str, Any] | None = None) -> Sampling:
    """How self-edits are drawn; ``schema`` is the domain's, for ``constrained``.

    Raises:
        SealError: the edits are to be constrained, and the domain has no schema for them.
    """
    if config.constrained and schema is None:
        raise SealError(
            "write.constrained: the self-edits of this domain are no JSON, so there is no schema to keep to"
        )
    return Sampling(
        config.max_tokens,
        config.temperature,
        config.top_p,
        schema=json.dumps(schema) if config.constrained else "",
    )


def from_policy(
    policy: Model,
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


def from_another(
    source: str, tasks: Sequence[Task], prompts: Sequence[Prompt], n: int, seed: int = 0
) -> list[list[Written]]:
    """Edits of another model: one behind an endpoint (``http://host/v1#model``), asked for ``n`` per prompt,
    or a file of them. A prompt that the endpoint refuses has an empty edit, which is a bad one. Other seeds
    are other draws.

    Raises:
        SealError: the file cannot be used, or the endpoint is gone.
    """
    if not is_endpoint(source):
        return [[Written(text) for text in row] for row in from_file(Path(source), tasks, n)]
    endpoint = Endpoint(source)
    asked = [f"{p.system}\n\n{p.text}" if p.system else p.text for p in prompts]
    drawn = [endpoint.complete(asked, MAX_TOKENS, 1.0, seed * n + sample) for sample in range(n)]
    if failed := sum(t is None for texts in drawn for t in texts):
        print(
            f"seal: {source} refused {failed} of {n * len(prompts)} edits, which stay empty; the first, of "
            f"{_which(tasks, drawn)}: {endpoint.refused[0]}",
            file=sys.stderr,
        )
    return [[texts[i] or Written("") for texts in drawn] for i in range(len(tasks))]


def _which(tasks: Sequence[Task], drawn: Sequence[Sequence[Written | None]]) -> str:
    """The first task that an edit is missing of."""
    place = next(i for i in range(len(tasks)) if any(texts[i] is None for texts in drawn))
    return repr(str(tasks[place].data.get("title", tasks[place].id)))


def from_file(path: Path, tasks: Sequence[Task], n: int) -> list[list[str]]:
    """Edits of another model: a JSON list of ``{title, context, completions: [text]}`` (SEAL's files), the
    first ``n`` each.

    Raises:
        SealError: the file cannot be read, or a task has too few edits in it.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        known = {(r["title"], r["context"]): r["completions"] for r in rows}
        if not all(
            isinstance(c, list) and all(isinstance(t, str) and t.encode() for t in c) for c in known.values()
        ):
            raise TypeError("completions must be lists of texts")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SealError(f"{path} is not a list of {{title, context, completions}}: {error}") from error
    texts = []
    for task in tasks:
        found = known.get((task.data.get("title"), task.data.get("context")), [])
        if len(found) < n:
            raise SealError(
                f"{path} has {len(found)} edits for {task.data.get('title', task.id)!r}, {n} are wanted"
            )
        texts.append(found[:n])
    return texts


PART = 256
"""Edits written, and kept, together: what a stop can lose of the writing."""


def write_edits(
    policy: Model,
    domain: Domain,
    tasks: Sequence[Task],
    n: int,
    config: WriteConfig,
    seed: object,
    stage: Stage,
) -> list[list[str]]:
    """``n`` self-edits per task. Of one that ``config.max_tokens`` cut off, what is whole of it; the stage's
    ``cut.json`` holds what was written there (``null`` for the others). With ``config.resample`` those that
    cannot be used are drawn again; the stage keeps the count. What is more than :data:`PART` edits is written
    part by part, each on disk (``written/``) until the caller has it all."""
    size = max(1, PART // n)
    parts = [tasks[i : i + size] for i in range(0, len(tasks), size)]

    def write(part: Sequence[Task]) -> dict[str, Any]:
        return _write_part(policy, domain, part, n, config, seed)

    if len(parts) == 1:
        found = [write(parts[0])]
    else:
        found = [
            stage.once(f"{WRITTEN}/{i:05d}", lambda part=part: write(part))  # type: ignore[misc]
            for i, part in enumerate(parts)
        ]
    if config.resample:
        stage.put("resampled", sum(f["resampled"] for f in found))
    stage.put("cut", [row for f in found for row in f["cut"]])
    return [row for f in found for row in f["texts"]]


WRITTEN = "written"
"""Where the parts of a stage's writing wait until all are there."""


def _write_part(
    policy: Model, domain: Domain, tasks: Sequence[Task], n: int, config: WriteConfig, seed: object
) -> dict[str, Any]:
    prompts = [domain.prompt(t) for t in tasks]
    texts, cut = finished(domain, from_policy(policy, prompts, n, config, seed, domain.schema()))
    drawn = 0
    for again in range(1, config.resample + 1):
        places = [(t, task, e) for t, task in enumerate(tasks) for e in range(n)]
        bad = [
            t * n + e
            for t, task, e in places
            if isinstance(understand(domain, task, texts[t][e], Recipe())[0], BadEdit)
        ]
        if not bad:
            break
        seeds = [seed_of(seed, prompts[i // n].text, i % n, again) for i in bad]
        again_texts = complete(
            policy, [prompts[i // n] for i in bad], sampling_of(config, domain.schema()), seeds
        )
        (again_finished,), (again_cut,) = finished(domain, [again_texts])
        for i, text, broken in zip(bad, again_finished, again_cut, strict=True):
            texts[i // n][i % n], cut[i // n][i % n] = text, broken
        drawn += len(bad)
    return {"texts": texts, "cut": cut, "resampled": drawn}


def finished(
    domain: Domain, written_P_E: Sequence[Sequence[Written]]
) -> tuple[list[list[str]], list[list[str | None]]]:
    """What is whole of every edit, to be tried (half a line teaches half a fact); and of those that were cut
    off all that was written, to be imitated, without an end (:func:`seal.loop.selection.sft_examples`)."""
    texts = [[domain.finished(w.text) if w.cut else w.text for w in row] for row in written_P_E]
    return texts, [[w.text if w.cut else None for w in row] for row in written_P_E]


def cut_off(stage: Stage, tasks: Sequence[str]) -> dict[tuple[str, int], str]:
    """Of a stage's edits that the limit of tokens cut off: task and number → all that was written. ``tasks``
    are the ids, in the order of the stage."""
    rows = zip(tasks, stage.read("cut") or (), strict=False)
    return {(t, e): whole for t, row in rows for e, whole in enumerate(row) if whole is not None}


def as_written(kept: Sequence[Selected], stage: Stage, tasks: Sequence[Task]) -> list[Selected]:
    """What was kept, as it is imitated: of an edit that was cut off all that was written."""
    broken = cut_off(stage, [t.id for t in tasks])
    return [
        replace(k, text=broken[k.task, k.edit], cut=True) if (k.task, k.edit) in broken else k for k in kept
    ]


def write_round(
    policy: Model, domain: Domain, tasks: Sequence[Task], config: RunConfig, round_: Round
) -> list[list[str]]:
    """The self-edits of a round: sampled once, kept in the stage."""
    seed = round_.seed("write")

    def compute() -> list[list[str]]:
        texts = write_edits(policy, domain, tasks, config.edits_per_task, config.write, seed, round_.stage)
        rng = random.Random(seed_of("explore", seed))
        if round_.number == 1 and config.write.explore:
            texts = [
                [f"{text.rstrip()}\n{domain.explore(rng) or ''}".rstrip() for text in row] for row in texts
            ]
            # with its directives after its whole lines an edit ends
            round_.stage.put("cut", [[None for _ in row] for row in texts])
        return texts

    texts: list[list[str]] = round_.stage.once("texts", compute)
    round_.stage.drop(WRITTEN)
    return texts
