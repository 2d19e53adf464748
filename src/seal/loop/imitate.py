"""How the policy learns from a round: imitate what was kept (ReST-EM), or through TRL prefer the best edit
(DPO, IPO) or weigh them all (GRPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seal.config import RunConfig
from seal.loop.selection import pairs_of, sft_examples
from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.train import Job, train_adapters
from seal.records import Attempt, Prompt, Selected, seed_of

Outcome = tuple[Adapter | None, dict[str, Any]]
"""What is to be merged into the policy (``None``: nothing), and what is to be recorded of it."""


def learn_from(
    policy: Model,
    prompts: Mapping[str, Prompt],
    kept: Sequence[Selected],
    attempts: Sequence[Attempt],
    config: RunConfig,
    r: int,
    broken: Mapping[tuple[str, int], str] | None = None,
) -> Outcome:
    """An adapter by the config's rule. ``broken``: of edits that were cut off, task and number → what was
    written."""
    outer, seed = config.outer, seed_of("outer", config.seed, r)
    if outer.rule == "sft":
        outcome = train_adapters(policy, [Job(sft_examples(kept, dict(prompts)), outer.recipe, seed)])[0]
        diverged = outcome.adapter is None
        loss = (0.0, 0.0) if diverged else outcome.loss
        record = {
            "kept": len(kept),
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "loss": loss,
            "diverged": diverged,
        }
        return outcome.adapter, record
    from seal.loop import trl

    if outer.rule == "grpo":
        return trl.grpo(policy, prompts, attempts, outer, config.write.temperature, seed, broken or {})
    return trl.preference(policy, prompts, pairs_of(attempts), outer, seed)
