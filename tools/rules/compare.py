"""Rules of the outer loop and estimators of its reward, at equal numbers of inner loops, on the embedded
models of both domains.

    python tools/rules/compare.py run --seeds 0 1 2            # resumable; --only sft-race … for some
    python tools/rules/compare.py choose                      # ways to spend 480 inner loops, on the
    selection passages python tools/rules/compare.py table --json docs/results/learning-rules.json --figure
    docs/learning-rules.png

Every variant goes through the same rounds on the same tasks: at most 15 inner loops a task and round, however
it spends them. Its policy after the last round then writes edits of the same held-out passages, which are
tried under the same seeds. *rounds* variants go on for six rounds (five inner loops a task) and are looked at
after each: does it go on learning, and what becomes of the diversity?

*budget* variants spend 240 inner loops a round, over many passages or over many edits of few: what a default
should do.

*arc* variants are one round on the embedded model's puzzles (eight edits each, one inner loop an edit).

Where two variants would write and try the same edits in their first round, that is done once per seed, and
the other is given the records, with its own reward.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from picture import draw

from seal.config import RunConfig, load_config
from seal.domains.knowledge.features import mean_features
from seal.loop.evaluate import Evaluation
from seal.loop.inner import open_domain
from seal.loop.outer import run
from seal.loop.race import proxy_scores, rank_correlation
from seal.loop.selection import SEAL, Branch, random_of
from seal.lora.load import load_model
from seal.machine import machine
from seal.records import NO_RL, record_text, seal_round
from seal.report.reliability import estimators, rewarded
from seal.stats import difference, interval
from seal.store import Store, read_json, write_whole

HERE = Path(__file__).resolve().parents[2]
COMMON = [
    "--tasks_per_round",
    "24",
    "--rounds",
    "2",
    "--model.threads",
    "1",
    "--eval.edits_per_task",
    "2",
    "--eval.siblings",
    "3",
]
FLAT = ["--edits_per_task", "5", "--inner.seeds", "3"]
SMALL = ["--tasks_per_round"]
LONG = ["--rounds", "6", "--edits_per_task", "5"]
VARIANTS: dict[str, list[str]] = {
    "no RL": ["--rounds", "0"],
    "sft accuracy 5x3": [*FLAT, "--inner.reward", "accuracy"],
    "sft likelihood 5x3": [*FLAT, "--inner.reward", "likelihood"],
    "sft mixed 5x3": [*FLAT, "--inner.reward", "mixed"],
    "sft likelihood race 8": ["--edits_per_task", "8", "--inner.reward", "likelihood", "--trial.race", "15"],
    "sft likelihood 15x1": ["--edits_per_task", "15", "--inner.reward", "likelihood"],
    "sft exposure alone 15": [
        "--edits_per_task",
        "15",
        "--trial.proxy",
        "exposure",
        "--outer.select",
        "proxy_of",
    ],
    "sft random": FLAT,
    "dpo likelihood 5x3": [
        *FLAT,
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "dpo",
        "--outer.recipe.epochs",
        "4",
    ],
    "dpo likelihood 5x3, imitating": [
        *FLAT,
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "dpo",
        "--outer.recipe.epochs",
        "4",
        "--outer.imitate",
        "1",
    ],
    "ipo likelihood 5x3": [
        *FLAT,
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "ipo",
        "--outer.recipe.epochs",
        "4",
    ],
    "grpo likelihood 15x1": [
        "--edits_per_task",
        "15",
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "grpo",
        "--outer.recipe.batch_size",
        "60",
        "--outer.beta",
        "0.02",
        "--outer.recipe.epochs",
        "2",
        "--outer.recipe.learning_rate",
        "3e-4",
    ],
    "grpo likelihood 15x1, rate 1e-3": [
        "--edits_per_task",
        "15",
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "grpo",
        "--outer.recipe.batch_size",
        "60",
        "--outer.beta",
        "0.02",
        "--outer.recipe.epochs",
        "4",
    ],
    "sft likelihood 5x3, directives": [*FLAT, "--inner.reward", "likelihood", "--write.explore", "true"],
    "budget: 48 x 5 accuracy": [*SMALL, "48", "--edits_per_task", "5", "--inner.reward", "accuracy"],
    "budget: 48 x 5 likelihood": [*SMALL, "48", "--edits_per_task", "5", "--inner.reward", "likelihood"],
    "budget: 24 x 10 likelihood": [*SMALL, "24", "--edits_per_task", "10", "--inner.reward", "likelihood"],
    "budget: 16 x 15 likelihood": [*SMALL, "16", "--edits_per_task", "15", "--inner.reward", "likelihood"],
    "rounds: sft likelihood": [*LONG, "--inner.reward", "likelihood"],
    "rounds: dpo likelihood": [
        *LONG,
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "dpo",
        "--outer.recipe.epochs",
        "4",
    ],
    "rounds: grpo likelihood": [
        *LONG,
        "--inner.reward",
        "likelihood",
        "--outer.rule",
        "grpo",
        "--outer.recipe.batch_size",
        "60",
        "--outer.beta",
        "0.02",
        "--outer.recipe.epochs",
        "4",
    ],
    "rounds: sft random": LONG,
    "arc: no RL": ["--rounds", "0"],
    "arc: sft solved": [],
    "arc: sft random": [],
    "arc: sft likelihood": ["--inner.reward", "likelihood", "--outer.select", "best_of"],
    "arc: dpo likelihood": [
        "--inner.reward",
        "likelihood",
        "--outer.select",
        "best_of",
        "--outer.rule",
        "dpo",
    ],
    "arc: dpo likelihood, imitating": [
        "--inner.reward",
        "likelihood",
        "--outer.select",
        "best_of",
        "--outer.rule",
        "dpo",
        "--outer.imitate",
        "1",
    ],
    "arc: dpo likelihood, rate / 10": [
        "--inner.reward",
        "likelihood",
        "--outer.select",
        "best_of",
        "--outer.rule",
        "dpo",
        "--outer.recipe.learning_rate",
        "1e-3",
    ],
    "arc: grpo likelihood, rate / 10": [
        "--inner.reward",
        "likelihood",
        "--outer.select",
        "best_of",
        "--outer.rule",
        "grpo",
        "--outer.recipe.learning_rate",
        "1e-3",
        "--outer.recipe.batch_size",
        "64",
        "--outer.beta",
        "0.02",
    ],
}
BY_CHANCE = Branch(
    "random", "seal", lambda attempts, _, outer, seed: random_of(attempts, outer.keep, seed), looks=False
)
"""The same loop without a look at rewards, as a run of its own."""
DONORS = {
    v: "arc: sft solved"
    for v in VARIANTS
    if (v.startswith("arc: ") and "--outer.rule" in VARIANTS[v]) or v == "arc: sft likelihood"
}
DONORS |= {
    v: "sft likelihood 5x3" for v in ("dpo likelihood 5x3, imitating", "ipo likelihood 5x3", "sft mixed 5x3")
}
DONORS |= {"grpo likelihood 15x1, rate 1e-3": "sft likelihood 15x1"}
"""Whose edits and trials of the first round a variant of the same seed takes over: they are the same, but for
how they are rewarded."""


PAIRS = [
    ("sft likelihood 5x3", "sft accuracy 5x3"),
    ("sft likelihood race 8", "sft likelihood 5x3"),
    ("sft likelihood 15x1", "sft likelihood 5x3"),
    ("dpo likelihood 5x3", "sft likelihood 5x3"),
    ("dpo likelihood 5x3", "sft likelihood 15x1"),
    ("sft exposure alone 15", "sft likelihood 15x1"),
    ("sft likelihood 5x3, directives", "sft likelihood 5x3"),
    ("ipo likelihood 5x3", "dpo likelihood 5x3"),
    ("dpo likelihood 5x3, imitating", "dpo likelihood 5x3"),
    ("arc: dpo likelihood, imitating", "arc: sft likelihood"),
    ("grpo likelihood 15x1, rate 1e-3", "sft likelihood 15x1"),
    ("budget: 48 x 5 likelihood", "budget: 48 x 5 accuracy"),
    ("budget: 48 x 5 likelihood", "budget: 24 x 10 likelihood"),
    ("budget: 48 x 5 likelihood", "budget: 16 x 15 likelihood"),
    ("rounds: sft likelihood, round 4", "budget: 48 x 5 likelihood"),
    ("rounds: sft likelihood, round 6", "sft likelihood 15x1"),
    ("rounds: dpo likelihood, round 6", "rounds: sft likelihood, round 6"),
    ("arc: sft likelihood", "arc: sft solved"),
    ("arc: grpo likelihood, rate / 10", "arc: sft solved"),
]
"""Variants that differ in one thing."""


def config_of(variant: str, seed: int, runs: str) -> RunConfig:
    name = "".join(c if c.isalnum() else "-" for c in variant)
    arc = variant.startswith("arc")
    common = ["--model.threads", "1"] if arc else COMMON
    flags = [*common, *VARIANTS[variant], "--seed", str(seed), "--runs", runs, "--name", f"{name}-{seed}"]
    config = load_config(HERE / f"configs/{'arc' if arc else 'atlas'}.toml", flags)
    if "directives" in variant:
        domain = config.domain.model_copy(update={"options": {**config.domain.options, "directives": True}})
        config = config.model_copy(update={"domain": domain})
    return config


def one(variant: str, seed: int, runs: str) -> None:
    """A variant's run and its scores on held-out tasks, as ``rules.json`` in the run folder."""
    config = config_of(variant, seed, runs)
    path = config.folder / "rules.json"
    if path.exists():
        return
    store = Store(config)
    spent_before = 0.0
    if variant in DONORS:
        one(DONORS[variant], seed, runs)
        spent_before = take_over(config_of(DONORS[variant], seed, runs), config)
    start = time.monotonic()
    run(config, store, BY_CHANCE if variant.endswith("sft random") else SEAL)
    trained = time.monotonic() - start + spent_before
    evaluation = Evaluation(config, store, "eval")
    rounds = range(1, config.rounds + 1) if variant.startswith("rounds") else [config.rounds]
    names = [(seal_round(r), load_model(store.policy("seal", r))) for r in rounds if r]
    names = names or [(NO_RL, evaluation.base)]
    scored = []
    for name, policy in names:
        result = evaluation.policy_edits(
            name, policy, policy if config.inner.start == "policy" else evaluation.base
        )
        texts = evaluation.stage(name).read("texts")
        features = mean_features(evaluation.tasks, texts, evaluation.domain.features)
        features.setdefault("likeness", sum(same_pairs(t) for t in texts) / len(texts))
        scored.append(
            {"setting": name.label, "scores": result.scores, "bad": result.bad, "features": features}
        )
    loops = sum(1 for f in config.folder.glob("seal/round-*/**/attempts.jsonl") for _ in f.open())
    spent = {"seconds": round(trained, 1), "inner_loops": loops}
    write_whole(path, json.dumps({"variant": variant, "seed": seed, **spent, "settings": scored}, indent=1))
    print(
        f"{variant} {seed}: {[round(sum(s['scores']) / len(s['scores']), 3) for s in scored]}, {trained:.0f} "
        "s",
        flush=True,
    )


CANDIDATES = [("rounds: sft likelihood", 4), *((v, 2) for v in VARIANTS if v.startswith("budget"))]
"""Ways to spend 480 inner loops on passages, and the round after which they have."""


def choose(seed: int, runs: str) -> None:
    """Score the candidates for a default on the selection passages, which no table reports on, as
    ``choose.json`` in the run folder."""
    for variant, r in CANDIDATES:
        config = config_of(variant, seed, runs)
        path = config.folder / "choose.json"
        if path.exists():
            continue
        config = RunConfig.model_validate(read_json(config.folder / "config.json"))  # as it was begun
        store = Store(config)
        evaluation = Evaluation(config, store, "select")
        result = evaluation.policy_edits(seal_round(r), load_model(store.policy("seal", r)))
        write_whole(path, json.dumps({"variant": variant, "after": r, "seed": seed, "scores": result.scores}))
        print(
            f"{variant} {seed}, selection passages: {sum(result.scores) / len(result.scores):.3f}", flush=True
        )


def take_over(donor: RunConfig, config: RunConfig) -> float:
    """Give a run the edits and trials of another's first round, rewarded its own way. Returns the seconds
    they took."""
    source, target = (c.folder / "seal/round-1" for c in (donor, config))
    rows = [json.loads(line) for line in (source / "attempts.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        if row["status"] == "ok":
            row["reward"] = sum(rewarded(row, config.inner.reward)) / len(row["scores"])
    if not (target / "attempts.jsonl").exists():
        for file in source.glob("*.json"):
            if file.name not in ("kept.json", "outer.json"):
                write_whole(target / file.name, file.read_text("utf-8"))
        write_whole(
            target / "attempts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    return float(sum(row["seconds"] for row in rows))


def tried_for(folder: Path) -> float:
    """Seconds of all inner loops of a run's rounds."""
    files = folder.glob("seal/round-*/**/attempts.jsonl")
    return sum(json.loads(line)["seconds"] for f in files for line in f.read_text("utf-8").splitlines())


def same_pairs(texts: list[str]) -> float:
    """Share of pairs of siblings that are the same: likeness where an edit is a set of choices."""
    pairs = list(combinations(texts, 2))
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def table(runs: str) -> dict[str, Any]:
    """A row per variant, over its seeds."""
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        paths = [p for p in sorted(Path(runs).glob("*/rules.json")) if read_json(p)["variant"] == variant]
        found = [read_json(p) | {"tried for": tried_for(p.parent)} for p in paths]
        if not found:
            continue
        found.sort(key=lambda f: f["seed"])
        for f in found:
            f["settings"] = [
                s for s in f["settings"] if s["setting"] != NO_RL.label or variant.endswith("no RL")
            ]
        for place in range(len(found[0]["settings"])):
            after = [f["settings"][place]["scores"] for f in found]
            features = [f["settings"][place]["features"] for f in found]
            row: dict[str, Any] = {
                "variant": variant,
                "after": found[0]["settings"][place]["setting"],
                "seeds": [f["seed"] for f in found],
            }
            row["accuracy"] = _numbers(interval(after, groups_of(variant, len(after[0]))))
            row["likeness of siblings"] = round(
                sum(f.get("likeness", 0) for f in features) / len(features), 3
            )
            row["cannot be used"] = round(sum(f["settings"][place]["bad"] for f in found) / len(found), 3)
            row["words"] = round(sum(f.get("words", 0) for f in features) / len(features), 1)
            row["inner loops"] = round(sum(f["inner_loops"] for f in found) / len(found))
            row["seconds"] = round(
                sum(max(f["seconds"], f["tried for"]) for f in found) / len(found)
            )  # a run may have been resumed
            row["scores"] = after
            rows.append(row)
    for name, variant in (("minus no RL", "no RL"), ("minus random control", "sft random")):
        for row in rows:
            domain = "arc: " if row["variant"].startswith("arc: ") else ""
            other = next((r for r in rows if r["variant"] == domain + variant), None)
            if variant == "sft random" and row["variant"].startswith(
                "rounds"
            ):  # the control of as many rounds
                other = next(
                    (r for r in rows if r["variant"] == "rounds: sft random" and r["after"] == row["after"]),
                    None,
                )
            if other and row is not other and row["seeds"] == other["seeds"]:
                groups = groups_of(row["variant"], len(row["scores"][0]))
                row[name] = _numbers(difference(row["scores"], other["scores"], groups))
    by_name = {r["variant"]: r for r in rows if not r["variant"].startswith("rounds")}
    by_name |= {f"{r['variant']}, {r['after'][5:]}": r for r in rows if r["variant"].startswith("rounds")}
    differences = [
        {
            "a": a,
            "b": b,
            **_numbers(
                difference(
                    by_name[a]["scores"], by_name[b]["scores"], groups_of(a, len(by_name[a]["scores"][0]))
                )
            ),
        }
        for a, b in PAIRS
        if a in by_name and b in by_name and by_name[a]["seeds"] == by_name[b]["seeds"]
    ]
    return {
        "command": "python tools/rules/compare.py run --seeds 0 1 2; python tools/rules/compare.py choose; python tools/rules/compare.py table",
        "date": date.today().isoformat(),
        "machine": f"{machine()}, one thread a run",
        "rows": rows,
        "differences": differences,
        "chosen": chosen(runs),
        "reliability": reliabilities(runs),
        "proxies": proxy(runs),
    }


@cache
def groups_of(variant: str, n: int) -> tuple[str, ...] | None:
    """Of puzzles the families: puzzles of one rule are alike. Passages are each their own."""
    if not variant.startswith("arc: "):
        return None
    domain = open_domain(load_config(HERE / "configs/arc.toml"))
    return tuple(domain.group(t) for t in domain.tasks("eval")[:n])


def chosen(runs: str) -> list[dict[str, Any]]:
    """The candidates for a default on the selection passages, and what the first has over each other."""
    scores: dict[str, list[list[float]]] = {}
    for path in sorted(Path(runs).glob("*/choose.json")):
        found = read_json(path)
        scores.setdefault(f"{found['variant']}, round {found['after']}", []).append(found["scores"])
    best = max(scores, key=lambda name: float(np.mean(scores[name])), default="")
    return [
        {"variant": name, "seeds": len(mine), "accuracy": _numbers(interval(mine))}
        | (
            {"below the best by": _numbers(difference(scores[best], mine))}
            if name != best and len(mine) == len(scores[best])
            else {}
        )
        for name, mine in scores.items()
    ]


def reliabilities(runs: str) -> dict[str, Any]:
    """Of every estimator, over the first rounds of all runs that tried their edits under three seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for folder in sorted(Path(runs).glob("sft-likelihood-5x3-[0-9]")):
        for kind, row in estimators(folder).items():
            found.setdefault(kind, []).append(row)
    return {
        kind: {"runs": len(rows)} | {k: round(sum(r[k] for r in rows) / len(rows), 3) for k in rows[0]}
        for kind, rows in found.items()
    }


def proxy(runs: str) -> dict[str, Any]:
    """Rank correlation of *exposure* with the measured reward, among the siblings of the first round (five
    edits, three seeds each)."""
    found: list[float] = []
    for folder in sorted(Path(runs).glob("sft-likelihood-5x3-[0-9]")):
        config = RunConfig.model_validate(read_json(folder / "config.json"))
        domain = open_domain(config)
        tasks = {t.id: t for t in domain.tasks("train")}
        rewards: dict[str, dict[int, list[float]]] = {}
        texts: dict[str, dict[int, str]] = {}
        for line in (folder / "seal/round-1/attempts.jsonl").read_text("utf-8").splitlines():
            a = json.loads(line)
            rewards.setdefault(a["task"], {}).setdefault(a["edit"], []).append(a["reward"])
            texts.setdefault(a["task"], {})[a["edit"]] = a["text"]
        mine = [tasks[t] for t in texts]
        rows = [list(texts[t.id].values()) for t in mine]
        earned = [[sum(r) / len(r) for r in rewards[t.id].values()] for t in mine]
        found.append(rank_correlation(proxy_scores("exposure", mine, rows), earned)[0])
    mean = round(sum(found) / len(found), 3) if found else None
    return {"exposure": {"runs": len(found), "rank correlation": mean, "each": [round(x, 3) for x in found]}}


def _numbers(found: Any) -> dict[str, float]:
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "choose", "table"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", default="runs/rules")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.action == "run":
        for seed in args.seeds:
            for variant in args.only:
                one(variant, seed, args.runs)
        return
    if args.action == "choose":
        for seed in args.seeds:
            choose(seed, args.runs)
        return
    summary = table(args.runs)
    if not summary["rows"]:
        sys.exit("there is no finished run")
    for row in summary["rows"]:
        print(
            f"{row['variant']:<36} {row['after']:<13} {row['accuracy']['mean']:.3f}  "
            f"{row['likeness of siblings']:.3f}  {row['seconds']} s"
        )
    print(json.dumps({k: summary[k] for k in ("reliability", "proxies")}, indent=1))
    if args.json:
        write_whole(args.json, record_text(summary))
    if args.figure:
        draw(summary, args.figure)


if __name__ == "__main__":
    main()
