"""How the policy learns from a round: imitate what was kept (ReST-EM), or through TRL prefer the best edit
(DPO, IPO) or weigh them all (GRPO)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from seal.config import RunConfig
from seal.loop.selection import pairs_of, sft_examples
from seal.loop.write import cut_off
from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.train import Job, train_adapters
from seal.records import Attempt, Prompt, Selected
from seal.store import Round

Outcome = tuple[Adapter | None, dict[str, Any]]
"""What is to be merged into the policy (``None``: nothing), and what is to be recorded of it."""


def imitate(
    policy: Model,
    prompts: Mapping[str, Prompt],
    kept: Sequence[Selected],
    attempts: Sequence[Attempt],
    config: RunConfig,
    round_: Round,
) -> None:
    """Finetune the policy by the round's outcome, merge, and save it under the round. With nothing learnt it
    stays as it is."""
    adapter, record = learn_from(policy, prompts, kept, attempts, config, round_)
    if adapter is not None:  # a finetune that diverged is not merged
        policy.merge(adapter)
    elif record["diverged"]:
        print(
            f"seal: learning from the edits of round {round_.number} diverged; the policy stays as it was",
            file=sys.stderr,
        )
    round_.stage.once("outer", lambda: record)
    round_.stage.once_folder("policy", policy.save)


def learn_from(
    policy: Model,
    prompts: Mapping[str, Prompt],
    kept: Sequence[Selected],
    attempts: Sequence[Attempt],
    config: RunConfig,
    round_: Round,
) -> Outcome:
    """An adapter by the config's rule; ``prompts`` are those of the round's tasks, in their order."""
    outer, seed = config.outer, round_.seed("outer")
    if outer.rule == "sft":
        outcome = train_adapters(policy, [Job(sft_examples(kept, prompts), outer.recipe, seed)])[0]
        diverged = outcome.adapter is None
        return outcome.adapter, {
            "kept": len(kept),
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "loss": (0.0, 0.0) if diverged else outcome.loss,
            "diverged": diverged,
        }
    from seal.loop import trl

    if outer.rule == "grpo":
        broken = cut_off(round_.stage, list(prompts))
        return trl.grpo(policy, prompts, attempts, outer, config.write.temperature, seed, broken)
    return trl.preference(policy, prompts, pairs_of(attempts), outer, seed)
