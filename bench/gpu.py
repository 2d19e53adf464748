"""Every GPU test and benchmark, one after another: each within ten minutes, and what has its result is not
run again.

    make gpu            # or: PYTHONPATH=src python bench/gpu.py [NAME ...]

Results go under ``$OUT`` if that is set, else under bench/results/; a log of each beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
INNER = ["bench/inner_loop.py", "--device", "cuda"]
SEVEN = [
    *INNER,
    "--workload",
    "passages",
    "--shape",
    "7B",
    "--single",
    "2",
    "--trainer-steps",
    "4",
    "--repeats",
    "3",
]
ITEMS: dict[str, list[str]] = {
    "tests": ["-m", "pytest", "-m", "cuda", "tests/lora/test_cuda.py"],
    "inner_loop-passages-7B": [*SEVEN, "--edits", "64", "--slots", "1", "16", "64"],
    "round-7B": [
        "bench/round.py",
        "--shape",
        "7B",
        "--device",
        "cuda",
        "--passages",
        "50",
        "--edits",
        "5",
        "--seeds",
        "3",
    ],
    "inner_loop-passages-7B-all-linear": [*SEVEN, "--all-linear", "--edits", "32", "--slots", "1", "8", "32"],
    "inner_loop-passages-100M": [
        *INNER,
        "--workload",
        "passages",
        "--shape",
        "100M",
        "--edits",
        "64",
        "--trainer-steps",
        "20",
    ],
    "inner_loop-atlas": [*INNER, "--workload", "atlas", "--edits", "128", "--trainer-steps", "20"],
    "inner_loop-arc": [*INNER, "--workload", "arc", "--edits", "64", "--trainer-steps", "20"],
}


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing was run", file=sys.stderr)
        return 2
    out = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OUT": str(out)}
    failed = 0
    for name in sys.argv[1:] or ITEMS:
        done = out / ("cuda-tests.log" if name == "tests" else f"{name}.json")
        if done.exists():
            print(f"{name}: {done} is there")
            continue
        log = out / f"{name}.part.log"
        start = time.monotonic()
        with log.open("w") as file:
            try:
                code = subprocess.run(
                    [sys.executable, *ITEMS[name]],
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=590,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        print(f"{name}: exit code {code} after {time.monotonic() - start:.0f} s", flush=True)
        print("".join(log.read_text().splitlines(keepends=True)[-12:]), flush=True)
        if code:
            failed += 1
        elif name == "tests":
            log.rename(done)
        else:
            log.rename(out / f"{name}.log")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
