"""What a policy is to imitate of an edit that the limit of tokens cut off: three ways, compared after one round.

    python tools/rules/cut.py --json docs/results/cut-edits.json

One round of 12 training passages × 5 edits, written under a limit that cuts many off; the best of each passage is imitated

*end*: as it broke off, with an end token after it; *open*: as it broke off, without one; *whole*: its whole lines, and then the end;
*whole, open*: its whole lines, and nothing of where it ends (what :func:`seal.restem.sft_examples` does).

The policy then writes one edit for each of 24 selection passages, with room to end by itself. Reported: the share of edits that *break off* (their last
line ends in no full stop, question or exclamation mark, and the limit was not reached), their number of lines, and the accuracy and the
likelihood of gold answers after training on their whole lines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from seal.attempts import finished, open_domain, try_edits
from seal.config import RunConfig, load_config
from seal.domains.base import Domain
from seal.models.policy import load_policy
from seal.models.train import Job, train_adapters
from seal.restem import best_of
from seal.results import machine, record_text
from seal.stats import difference, interval
from seal.store import Stage
from seal.types import Example, Task, Written, seed_of
from seal.writers import from_policy

HERE = Path(__file__).parents[2]
WAYS = ("end", "open", "whole", "whole, open")
ROOM = 192
"""Tokens that the policy may write afterwards."""


def kept_rows(
    domain: Domain, config: RunConfig, tasks: Sequence[Task], seed: int, folder: Path
) -> tuple[list[tuple[str, str, str, bool]], float]:
    """Of each kept edit its prompt, its text as it broke off, its whole lines, and whether it was cut; the share of all that were."""
    policy = load_policy("atlas", bf16="auto")
    drawn = from_policy(policy, [domain.prompt(t) for t in tasks], 5, config.write, seed_of("write", seed))
    texts, cut = finished(domain, drawn)
    attempts = try_edits(policy, domain, tasks, texts, config.inner, Stage(folder), seed)
    written = {(t.id, x): w for t, row, mine in zip(tasks, drawn, texts, strict=True) for w, x in zip(row, mine, strict=True)}
    prompts = {t.id: domain.prompt(t).text for t in tasks}
    rows = [(prompts[k.task], written[k.task, k.text].text, k.text, written[k.task, k.text].cut) for k in best_of(attempts)]
    flags = [c for row in cut for c in row]
    return rows, sum(flags) / len(flags)


def breaks_off(written: Written) -> bool:
    return not written.cut and written.text.rstrip()[-1:] not in (".", "!", "?")


def one_seed(config: RunConfig, seed: int) -> dict[str, Any]:
    domain = open_domain(config)
    tasks = list(domain.tasks("train"))[seed * 12 : seed * 12 + 12]
    asked = list(domain.tasks("select"))[:24]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows, share = kept_rows(domain, config, tasks, seed, Path(folder) / "round")
        found["cut"], found["cut, kept"] = round(share, 4), round(sum(row[3] for row in rows) / len(rows), 4)
        for way in WAYS:
            policy = load_policy("atlas", bf16="auto")
            examples = tuple(
                Example(
                    whole if way.startswith("whole") else raw,
                    prompt=prompt,
                    chat=True,
                    ends=not (broken and way.endswith("open")),
                )
                for prompt, raw, whole, broken in rows
            )
            adapter = train_adapters(policy, [Job(examples, config.outer.recipe, seed_of("outer", seed))])[0].adapter
            assert adapter is not None
            policy.merge(adapter)
            room = config.write.model_copy(update={"max_tokens": ROOM})
            drawn = from_policy(policy, [domain.prompt(t) for t in asked], 1, room, seed_of("select", seed))
            texts, _ = finished(domain, drawn)
            attempts = try_edits(policy, domain, asked, texts, config.inner, Stage(Path(folder) / way), seed)
            found[way] = {
                "breaks off": [float(breaks_off(row[0])) for row in drawn],
                "lines": [len(row[0].text.splitlines()) for row in drawn],
                "accuracy": [a.after for a in attempts],
                "likelihood": [a.reward for a in attempts],
            }
            print(seed, way, {k: round(sum(v) / len(v), 3) for k, v in found[way].items()}, found["cut"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=int, nargs="+", default=[24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "date": date.today().isoformat(), "machine": machine(), "seeds": args.seeds,
        "limits": {},
    }  # fmt: skip
    for limit in args.limits:
        config = load_config(HERE / "configs/atlas.toml", [f"--write.max_tokens={limit}"])
        runs = [one_seed(config, seed) for seed in range(args.seeds)]
        rows = {}
        for way in WAYS:
            scores = {k: [r[way][k] for r in runs] for k in runs[0][way]}
            rows[way] = {k: vars(interval(v, within=None if k == "lines" else (0, 1))) for k, v in scores.items()} | {
                "scores": scores
            }
        pairs = [("whole, open", way) for way in WAYS[:3]]
        record["limits"][str(limit)] = {
            "cut": [r["cut"] for r in runs],
            "cut, kept": [r["cut, kept"] for r in runs],
            "rows": rows,
            "differences": {
                f"{a} - {b}": {
                    k: vars(difference(rows[a]["scores"][k], rows[b]["scores"][k]))
                    for k in ("breaks off", "accuracy", "likelihood")
                }
                for a, b in pairs
            },
        }
    if args.json:
        args.json.write_text(record_text(record))


if __name__ == "__main__":
    main()
