"""A whole run on the tiny model, as a command, and what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLAGS = [
    "--rounds=2",
    "--tasks_per_round=3",
    "--edits_per_task=3",
    "--write.max_tokens=24",
    "--inner.answer_tokens=4",
    "--inner.wave=3",
    "--inner.slots=2",
    "--inner.recipe.rank=2",
    "--inner.recipe.tokens=600",
    "--inner.recipe.batch_size=2",
    "--inner.reward=likelihood",
    "--outer.recipe.rank=2",
    "--outer.recipe.epochs=1",
    "--eval.edits_per_task=1",
    "--eval.saturation_epochs=[1,2]",
    "--eval.saturation_tasks=1",
    "--model.threads=1",
    '--domain.options={"sizes": {"train": 4, "select": 1, "eval": 3}}',
]


def command(model: str, runs: Path, name: str, *more: str, verb: str = "demo") -> list[str]:
    """The command of a run; what it finds for the tasks of its rounds is the same for ``train``."""
    config = (
        [] if verb == "demo" else ["@", str(ROOT / "src/seal/configs/atlas.toml")]
    )  # which the demo takes by itself
    given = [f"--model.name={model}", f"--runs={runs}", f"--name={name}", *FLAGS, *more]
    return [sys.executable, "-m", "seal", verb, *config, *given]


def content(run: Path) -> dict[str, object]:
    """What a run found: every attempt and result, without clock times."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("attempts.jsonl")):
        rows = [json.loads(x) for x in path.read_text().split("\n")[:-1]]
        found[str(path.relative_to(run))] = [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    for path in sorted(run.rglob("*.safetensors")):
        found[str(path.relative_to(run))] = path.read_bytes()
    results = json.loads((run / "results.json").read_text())
    found["results"] = [{k: v for k, v in s.items() if k != "seconds"} for s in results["settings"]]
    return found
