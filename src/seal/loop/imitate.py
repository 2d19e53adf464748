"""How the policy learns from a round: imitate what was kept (ReST-EM), or through TRL prefer the best edit
(DPO, IPO) or weigh them all (GRPO)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from seal.config import RunConfig
from seal.loop.rooms import train_once
from seal.loop.selection import WORSE, nothing_kept, pairs_of, sft_examples
from seal.loop.write import cut_off
from seal.lora.adapter import Adapter, compress, join, no_change
from seal.lora.files import save_peft
from seal.lora.model import Model
from seal.lora.train import Job
from seal.records import Attempt, Prompt, Selected
from seal.store import Round

Outcome = tuple[Adapter | None, dict[str, Any]]
"""What is to come on top of the policy (``None``: nothing), and what is to be recorded of it."""


def imitate(
    policy: Model,
    prompts: Mapping[str, Prompt],
    kept: Sequence[Selected],
    attempts: Sequence[Attempt],
    config: RunConfig,
    round_: Round,
) -> None:
    """Finetune the policy by the round's outcome: one adapter more on its stack, which is saved under the
    round. With nothing learnt it stays as it is."""
    adapter, record = learn_from(policy, prompts, kept, attempts, config, round_)
    stack, most = policy.stack, config.outer.compress
    if adapter is not None:  # a finetune that diverged, or made it worse, is not taken up
        stack = join(stack, adapter)
        if most and stack.rank > most:
            stack, lost = compress(stack, most)
            record["lost"] = round(lost, 6)
    print(f"seal: {round_.stage.label}: {told(record, attempts, adapter is not None)}", file=sys.stderr)
    round_.stage.once("outer", lambda: record)
    whole = stack or no_change(policy.runner, config.outer.recipe)
    round_.stage.once_folder(
        "policy", lambda folder: save_peft(whole, folder, policy.base_name, policy.fingerprint())
    )


def told(record: Mapping[str, Any], attempts: Sequence[Attempt], moved: bool) -> str:
    """What a round came to, in one sentence."""
    tried = len({(a.task, a.edit) for a in attempts})
    n = record.get("kept", record.get("pairs", 0))
    if record.get("diverged"):
        return f"learning from {n} edits diverged; the policy stays as it was"
    first, last = record.get("loss") or (0.0, 0.0)
    if record.get("worse"):
        return f"learning from {n} edits made it worse (loss {first:.2f} → {last:.2f}); the policy stays as it was"
    if not n or not record.get("steps", 1) or not moved:
        return f"nothing was learnt, for {nothing_kept(attempts)}; the policy is as it was"
    what = f"{n} pairs" if "pairs" in record else f"{n} of {tried} edits" if tried else f"{n} edits"
    lost = f"; compressed, which lost {record['lost']:.1%} of the stack" if "lost" in record else ""
    return f"learnt from {what}, loss {first:.2f} → {last:.2f}{lost}"


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
        outcome = train_once(policy, Job(sft_examples(kept, prompts), outer.recipe, seed), round_.stage)
        diverged = outcome.adapter is None
        worse = not diverged and outcome.loss[1] > WORSE * outcome.loss[0]
        return None if worse else outcome.adapter, {
            "kept": len(kept),
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "loss": (0.0, 0.0) if diverged else outcome.loss,
            "diverged": diverged,
            "worse": worse,
        }
    from seal.loop import trl

    if outer.rule == "grpo":
        broken = cut_off(round_.stage, list(prompts))
        return trl.grpo(policy, prompts, attempts, outer, config.write.temperature, seed, broken)
    return trl.preference(policy, prompts, pairs_of(attempts), outer, seed)
