"""What a rule does to the likelihood of the edits it learns from: of each puzzle's best and worst, before and
after the round.

python tools/rules/compare.py run --seeds 0 1 2           # first
python tools/rules/displacement.py --json docs/results/displacement.json
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from seal.config import RunConfig
from seal.loop.inner import open_domain
from seal.loop.selection import pairs_of
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Query
from seal.lora.score import log_likelihood
from seal.machine import machine
from seal.store import Stage, read_json, write_whole


def of_run(folder: Path) -> dict[str, list[float]]:
    """Mean log-likelihood per token of every pair's best and worst edit, by the model before the round and
    the one after it."""
    config = RunConfig.model_validate(read_json(folder / "config.json"))
    domain, stage = open_domain(config), Stage(folder / "seal/round-1")
    prompts = {t.id: domain.prompt(t) for t in domain.tasks("train")}
    pairs = pairs_of(stage.attempts())

    def likelihoods(policy: Model, place: int) -> list[float]:
        return log_likelihood(
            policy, [None], [[Query(prompts[p[place].task], p[place].text) for p in pairs]]
        )[0]

    found = {}
    for when, policy in (
        ("before", load_model(config.model)),
        ("after", load_model(config.model.at(stage.folder / "policy"))),
    ):
        found |= {f"best, {when}": likelihoods(policy, 0), f"worst, {when}": likelihoods(policy, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/rules"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    by_rule: dict[str, list[dict[str, list[float]]]] = {}
    for path in sorted(args.runs.glob("arc--*/rules.json")):
        rule = read_json(path)["variant"]
        if "likelihood" in rule:
            by_rule.setdefault(rule, []).append(of_run(path.parent))
    rows: dict[str, Any] = {}
    for rule, runs in by_rule.items():
        rows[rule] = {"runs": len(runs)}
        for key in runs[0]:
            n = [sum(r[key]) / len(r[key]) for r in runs]
            rows[rule][key] = {"mean": round(sum(n) / len(n), 3), "by seed": [round(x, 3) for x in n]}
        print(rule, json.dumps(rows[rule]))
    if args.json:
        command = "python tools/rules/displacement.py --json docs/results/displacement.json"
        summary = {
            "command": command,
            "date": date.today().isoformat(),
            "machine": machine(),
            "nats per token": rows,
        }
        write_whole(args.json, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
