"""Do the tests notice? Small faults put into the code one at a time, and the tests of the place run on each.

    python tools/mutants.py --json docs/results/mutants.json           # all of tools/mutants.json
    python tools/mutants.py --only stats-no-run-resampling arc-grade-first-only
    python tools/mutants.py --mutants OTHERS.json                      # {id: [{file, old, new}]}

A mutant is *killed* if a test fails on it. One that survives is a fault that nothing would notice: write the
invariant that it breaks. The ids stay when code moves; what is to be replaced moves with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
MUTANTS = Path(__file__).with_suffix(".json")
PLACES = {
    "lora/gguf/kinds.py": ["lora/test_gguf.py"],
    "lora/gguf/read.py": ["lora/test_gguf.py"],
    "lora/gguf/tokens.py": ["lora/test_gguf.py"],
    "lora/gguf/write.py": ["lora/test_gguf.py"],
    "lora/cache.py": ["lora/test_names.py"],
    "lora/nucleus.py": ["lora/test_nucleus.py"],
    "lora/names.py": ["lora/test_names.py"],
    "cli/models.py": ["lora/test_names.py"],
    "loop/retained.py": ["loop/test_retained.py"],
    "teach/recipes.py": ["teach/test_own_passage.py"],
    "stats.py": ["test_stats.py"],
    "config.py": ["test_store.py", "test_presets.py"],
    "records.py": ["loop/test_inner.py", "loop/test_restem.py", "loop/test_crash.py"],
    "store.py": ["loop/test_crash.py", "test_store.py"],
    "domains/arc/domain.py": ["domains/test_leaks.py", "domains/test_arc.py"],
    "domains/arc/grids.py": ["domains/test_grading.py", "domains/test_grids.py", "domains/test_leaks.py"],
    "domains/arc/puzzles.py": ["domains/test_leaks.py"],
    "domains/grading.py": ["domains/test_grading.py", "domains/test_judge.py", "domains/test_domain.py"],
    "domains/knowledge/atlas.py": ["domains/test_leaks.py", "domains/test_domain.py"],
    "domains/knowledge/passages.py": ["domains/test_grading.py", "domains/test_domain.py"],
    "domains/knowledge/division.py": ["domains/test_leaks.py"],
    "domains/knowledge/domain.py": ["domains/test_leaks.py", "domains/test_domain.py"],
    "loop/evaluate.py": ["loop/test_evaluate.py"],
    "loop/results.py": ["loop/test_evaluate.py"],
    "loop/cost.py": ["loop/test_cost.py"],
    "loop/imitate.py": ["loop/test_rounds.py", "lora/test_stack.py", "loop/test_policy.py"],
    "loop/inner.py": [
        "lora/test_conventions.py",
        "loop/test_inner.py",
        "loop/test_cut.py",
        "loop/test_seams.py",
    ],
    "loop/outer.py": ["loop/test_rounds.py", "loop/test_cut.py"],
    "loop/race.py": ["loop/test_inner.py", "loop/test_trials.py", "loop/test_rounds.py"],
    "loop/rooms.py": ["loop/test_inner.py"],
    "loop/selection.py": ["loop/test_restem.py", "loop/test_rounds.py", "loop/test_cut.py"],
    "loop/write.py": ["loop/test_rounds.py", "loop/test_inner.py", "loop/test_cut.py"],
    "lora/adapter.py": [
        "lora/test_architectures.py",
        "memory/test_continual.py",
        "lora/test_train.py",
        "lora/test_speed.py",
    ],
    "lora/attention.py": ["lora/test_masks.py"],
    "lora/batch.py": ["lora/test_decoder.py", "lora/test_train.py"],
    "lora/chat.py": ["lora/test_conventions.py"],
    "lora/files.py": ["lora/test_adapters_of_others.py", "lora/test_train.py", "lora/test_names.py"],
    "lora/probe.py": ["lora/test_architectures.py", "lora/test_speed.py"],
    "lora/records.py": ["lora/test_conventions.py"],
    "lora/slots.py": ["lora/test_architectures.py", "lora/test_train.py"],
    "lora/decoder.py": [
        "lora/test_conventions.py",
        "lora/test_decoder.py",
        "loop/test_inner.py",
        "loop/test_cut.py",
        "lora/test_train.py",
    ],
    "lora/load.py": [
        "lora/test_architectures.py",
        "lora/test_stack.py",
        "loop/test_models.py",
        "loop/test_policy.py",
    ],
    "lora/loss.py": ["lora/test_masks.py", "lora/test_teacher.py"],
    "lora/model.py": [
        "lora/test_architectures.py",
        "lora/test_adapters_of_others.py",
        "lora/test_masks.py",
        "lora/test_train.py",
    ],
    "lora/packing.py": ["lora/test_architectures.py", "lora/test_masks.py"],
    "lora/sample.py": ["loop/test_inner.py", "loop/test_cut.py", "lora/test_train.py"],
    "lora/score.py": ["loop/test_inner.py", "loop/test_cut.py", "lora/test_train.py"],
    "lora/stack.py": ["lora/test_stack.py"],
    "lora/teacher.py": ["lora/test_teacher.py"],
    "lora/tokens.py": ["lora/test_conventions.py", "lora/test_train.py"],
    "lora/train.py": [
        "lora/test_train.py",
        "lora/test_masks.py",
        "lora/test_speed.py",
        "lora/test_teacher.py",
    ],
    "lora/vllm.py": ["lora/test_engine_server.py"],
    "memory/strategies.py": ["memory/test_continual.py"],
    "memory/stream.py": ["memory/test_continual.py"],
    "report/memory.py": ["memory/test_continual.py"],
    "report/reliability.py": ["report/test_noise.py"],
    "report/tables.py": ["loop/test_evaluate.py"],
}
"""The tests of each file under src/seal; of any other file, all tests."""


def tests_of(changes: Sequence[dict[str, str]]) -> list[str]:
    names = [PLACES.get(c["file"].removeprefix("src/seal/")) for c in changes]
    if None in names:
        return ["tests"]
    return [f"tests/{t}" for t in dict.fromkeys(t for row in names for t in row or ())]


def is_there(change: dict[str, str]) -> bool:
    """Whether the code holds what is to be replaced, once."""
    path = HERE / change["file"]
    return path.is_file() and path.read_text("utf-8").count(change["old"]) == 1


@contextmanager
def mutated(changes: Sequence[dict[str, str]]) -> Iterator[Path]:
    """A copy of the repository with these changes in it."""
    with tempfile.TemporaryDirectory(prefix="seal-mutant-") as folder:
        root = Path(folder)
        for name in ("src", "tests", "tools", "examples", "bench", "docs"):
            shutil.copytree(HERE / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        for name in ("pyproject.toml", "README.md", "Makefile", "CONTRIBUTING.md"):
            shutil.copy(HERE / name, root / name)
        (root / "configs").symlink_to("src/seal/configs")
        for change in changes:
            path = root / change["file"]
            path.write_text(path.read_text("utf-8").replace(change["old"], change["new"]), "utf-8")
        yield root


def run(changes: Sequence[dict[str, str]], tests: Sequence[str]) -> tuple[bool, str]:
    """Whether all tests pass, and the first that does not."""
    with mutated(changes) as root:
        environment = os.environ | {
            "PYTHONPATH": str(root / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            *tests,
        ]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"the tests could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0].split(" - ")[0].split(" ")[1] if failed else ""


def again(whole: dict[str, Any], part: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """A record of all, with those of ``ids`` as a later run of these alone found them."""
    survived = [i for i in whole["survived"] if i not in ids] + part["survived"]
    killed = {i: t for i, t in whole["killed by"].items() if i not in ids} | part["killed by"]
    told = {k: part[k] for k in ("command", "date", "seconds")} | {"ids": list(ids)}
    figures = {"mutants": len(killed) + len(survived), "killed": len(killed), "survived": survived}
    return whole | figures | {"killed by": killed, "again": [*whole.get("again", ()), told]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=Path, default=MUTANTS)
    parser.add_argument("--only", nargs="+", help="ids")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    mutants: dict[str, Any] = json.loads(args.mutants.read_text("utf-8"))
    chosen = {i: m for i, m in mutants.items() if not args.only or i in args.only}
    equivalent = {i: m["equivalent"] for i, m in chosen.items() if isinstance(m, dict) and "equivalent" in m}
    absent = [i for i, m in chosen.items() if i not in equivalent and not all(is_there(c) for c in m)]
    real = {i: m for i, m in chosen.items() if i not in equivalent and i not in absent}
    start = time.monotonic()
    every = list(dict.fromkeys(t for m in real.values() for t in tests_of(m)))
    passed, test = run([], ["tests"] if "tests" in every else every) if real else (True, "")
    if not passed:  # what fails by itself kills nothing
        sys.exit(f"without any fault {test} fails already")

    def one(name: str) -> tuple[str, bool, str]:
        passed, test = run(real[name], tests_of(real[name]))
        print(f"{'SURVIVED' if passed else 'killed  '} {name:<32} {test}", flush=True)
        return name, passed, test

    with ThreadPoolExecutor(args.workers) as pool:
        found = list(pool.map(one, real))
    survived = [name for name, passed, _ in found if passed]
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - start),
        "mutants": len(real),
        "killed": len(real) - len(survived),
        "survived": survived,
        "equivalent": equivalent,
        "absent": absent,
        "killed by": {name: test for name, passed, test in found if not passed},
    }
    print(f"{record['killed']} of {record['mutants']} killed; survived: {', '.join(survived) or 'none'}")
    if absent:
        print(f"what these replace is not in the code (it has moved, or is gone): {', '.join(absent)}")
    if args.json and args.only and args.json.exists():
        record = again(json.loads(args.json.read_text("utf-8")), record, list(real))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
