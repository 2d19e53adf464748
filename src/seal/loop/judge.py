"""A judge that is a local model: yes or no, whichever it finds likelier as the reply."""

from __future__ import annotations

from collections.abc import Sequence

from seal.domains.judges import Item, judge_prompt
from seal.lora.model import Model
from seal.lora.score import log_likelihood
from seal.records import Prompt, Query

WAVE = 256
"""Items judged in one go."""


class LocalJudge:
    """Any causal LM as a judge (see :data:`seal.domains.judges.Judge`). Always a verdict; silence is
    wrong."""

    def __init__(self, policy: Model) -> None:
        self.policy = policy

    def __call__(self, items: Sequence[Item]) -> list[bool | None]:
        verdicts: list[bool | None] = []
        for start in range(0, len(items), WAVE):
            wave = items[start : start + WAVE]
            prompts = [Prompt(judge_prompt(i) + ("" if self.policy.chat else "\nVerdict:")) for i in wave]
            queries = [[Query(p, "yes"), Query(p, "no")] for p in prompts]
            likely = log_likelihood(self.policy, [None], [[q for pair in queries for q in pair]])[0]
            verdicts += [
                bool(i.answer.strip()) and likely[2 * n] > likely[2 * n + 1] for n, i in enumerate(wave)
            ]
        return verdicts
