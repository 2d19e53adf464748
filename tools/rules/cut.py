"""What a policy is to imitate of an edit that the limit of tokens cut off: four ways, compared after one
round.

    python tools/rules/cut.py --json docs/results/cut-edits.json

One edit of each of 48 training passages, written under a limit that cuts nearly all of them off, is imitated
(which edits are kept is not the question, so none is tried)

*end*: as it broke off, with an end token after it; *open*: as it broke off, without one (what
:func:`seal.loop.selection.sft_examples` does); *whole*: its whole lines, and then the end; *whole, open*: its
whole lines, and nothing of where it ends.

The policy then writes one edit for each of 24 selection passages, with room to end by itself. Reported: the
share of edits that *break off* (their last line ends in no full stop, question or exclamation mark, and the
limit was not reached), their number of lines, and the accuracy and the likelihood of gold answers after
training on their whole lines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from seal.config import RunConfig, load_config
from seal.domains.base import Domain
from seal.loop.inner import InnerLoop, open_domain
from seal.loop.write import finished, from_policy
from seal.lora.load import load_model
from seal.lora.records import Example, ModelSpec, Written
from seal.lora.train import Job, train_adapters
from seal.machine import machine
from seal.records import Task, record_text, seed_of
from seal.report.memory import told
from seal.store import Stage

HERE = Path(__file__).parents[2]
WAYS = ("open", "whole, open", "whole", "end")
ROOM = 192
"""Tokens that the policy may write afterwards."""


def drawn_rows(
    domain: Domain, config: RunConfig, tasks: Sequence[Task], seed: int
) -> list[tuple[str, str, str, bool]]:
    """An edit of each task: its prompt, its text as it broke off, its whole lines, and whether it was cut."""
    policy = load_model(ModelSpec(name="atlas", bf16="auto", threads=None))
    prompts = [domain.prompt(t) for t in tasks]
    drawn = from_policy(policy, prompts, 1, config.write, seed_of("write", seed))
    texts, _ = finished(domain, drawn)
    return [(p.text, w[0].text, x[0], w[0].cut) for p, w, x in zip(prompts, drawn, texts, strict=True)]


def breaks_off(written: Written) -> bool:
    return not written.cut and written.text.rstrip()[-1:] not in (".", "!", "?")


def one_seed(config: RunConfig, seed: int) -> dict[str, Any]:
    domain = open_domain(config)
    tasks = list(domain.tasks("train"))[:48]
    asked = list(domain.tasks("select"))[:24]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = drawn_rows(domain, config, tasks, seed)
        found["cut"] = round(sum(row[3] for row in rows) / len(rows), 4)
        for way in WAYS:
            policy = load_model(ModelSpec(name="atlas", bf16="auto", threads=None))
            examples = tuple(
                Example(
                    whole if way.startswith("whole") else raw,
                    prompt=prompt,
                    chat=True,
                    ends=not (broken and way.endswith("open")),
                )
                for prompt, raw, whole, broken in rows
            )
            adapter = train_adapters(policy, [Job(examples, config.outer.recipe, seed_of("outer", seed))])[
                0
            ].adapter
            assert adapter is not None
            policy = policy.plus(adapter)
            room = config.write.model_copy(update={"max_tokens": ROOM})
            drawn = from_policy(policy, [domain.prompt(t) for t in asked], 1, room, seed_of("select", seed))
            texts, _ = finished(domain, drawn)
            attempts = InnerLoop(domain, config.inner).try_edits(
                policy, asked, texts, Stage(Path(folder) / way), seed
            )
            found[way] = {
                "breaks off": [float(breaks_off(row[0])) for row in drawn],
                "lines": [len(row[0].text.splitlines()) for row in drawn],
                "accuracy": [a.after for a in attempts],
                "likelihood": [a.reward for a in attempts],
            }
            print(
                seed,
                way,
                {k: round(sum(v) / len(v), 3) for k, v in found[way].items()},
                found["cut"],
                flush=True,
            )
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {}
    for way in WAYS:
        scores = {k: np.array([r[way][k] for r in runs], float) for k in runs[0][way]}
        rows[way] = {k: told(v, None if k == "lines" else (0.0, 1.0)) for k, v in scores.items()}
    gaps = {
        f"{WAYS[0]} - {way}": {
            k: told(
                np.array(rows[WAYS[0]][k]["scores"]) - np.array(rows[way][k]["scores"]),
                (-1.0, 1.0) if k != "lines" else None,
            )
            for k in rows[way]
        }
        for way in WAYS[1:]
    }
    return {"cut": [r["cut"] for r in runs], "rows": rows, "differences": gaps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limits", type=int, nargs="+", default=[24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "seeds": args.seeds,
        "limits": {},
    }
    for limit in args.limits:
        config = load_config(HERE / "configs/atlas.toml", [f"--write.max_tokens={limit}"])
        runs = [one_seed(config, seed) for seed in range(args.seeds)]
        record["limits"][str(limit)] = summary(runs)
    if args.json:
        args.json.write_text(record_text(record))


if __name__ == "__main__":
    main()
