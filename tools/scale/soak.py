"""Kill a run at random moments, again and again, and see whether anything is lost, repeated or changed.

    python tools/scale/soak.py --kills 50 --json docs/results/soak.json

A small run of the outer loop on a tiny random model (made here) is started, killed with SIGKILL at a random
moment, and started again until it has finished; then the next one, until there were enough kills. With
``--workers`` half of the kills hit a worker instead of the driver. *Lost*: attempts that were on disk whole
before a kill and are not there afterwards, byte for byte. *Repeated*: attempts that are on disk twice. *Same
table*: every finished run holds the attempts, weights and results of one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE))

from tests import tiny  # noqa: E402
from tests.runs import command, content  # noqa: E402

from seal.store import machine  # noqa: E402


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HERE)


def whole_lines(run: Path) -> dict[Path, bytes]:
    """The attempts that are on disk whole."""
    return {p: (b := p.read_bytes())[: b.rfind(b"\n") + 1] for p in run.rglob("attempts.jsonl")}


def repeated(run: Path) -> int:
    """Attempts that are on disk more than once."""
    found = 0
    for path in run.rglob("attempts.jsonl"):
        keys = [
            (a["task"], a["edit"], a["seed"]) for a in map(json.loads, path.read_text("utf-8").splitlines())
        ]
        found += len(keys) - len(set(keys))
    return found


def workers_of(pid: int) -> list[int]:
    """The processes of a driver's workers."""
    import psutil

    try:
        children = psutil.Process(pid).children(recursive=True)
        return [c.pid for c in children if c.cmdline() and c.cmdline()[0].startswith("ray::_Worker")]
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="through Ray; 0: one process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kills = on_workers = lost = runs = twice = 0
    same = True
    with tempfile.TemporaryDirectory() as folder:
        model, home = Path(folder) / "tiny", Path(folder) / "runs"
        tiny.save(model)
        began = time.monotonic()
        if start(command(str(model), home, "unbroken")).wait() != 0:
            sys.exit("the unbroken run failed")
        lasts = (time.monotonic() - began) * (3 if args.workers else 1)
        unbroken = content(home / "unbroken")
        while kills < args.kills:
            run = home / f"run-{runs}"
            crew = ["--workers", str(args.workers)] if args.workers else []
            while True:
                process = start(command(str(model), home, run.name, *crew))
                deadline = time.monotonic() + rng.uniform(0.3, 1.0) * lasts
                while process.poll() is None and time.monotonic() < deadline and kills < args.kills:
                    time.sleep(0.01)
                if process.poll() is None and kills < args.kills:
                    held = whole_lines(run) if run.exists() else {}
                    victims = workers_of(process.pid) if args.workers and rng.random() < 0.5 else []
                    if victims:
                        os.kill(rng.choice(victims), signal.SIGKILL)
                        on_workers += 1
                        process.wait()
                    else:
                        process.kill()
                        process.wait()
                    kills += 1
                    lost += sum(not p.read_bytes().startswith(b) for p, b in held.items())
                    if not victims:
                        continue
                if process.wait() == 0:
                    break
                sys.exit(f"{run.name} ended with {process.returncode}: run it by hand to see why")
            twice += repeated(run)
            same &= content(run) == unbroken
            runs += 1
            print(
                f"{kills} kills, {runs} runs finished, lost {lost}, repeated {twice}, the same table: {same}",
                flush=True,
            )
    record = {
        "kills": kills,
        "of workers": on_workers,
        "runs": runs,
        "lost": lost,
        "repeated": twice,
        "same_table": same,
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    print(json.dumps(record, indent=1))
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        both = known | {"with workers": record} if args.workers else known | record
        args.json.write_text(json.dumps(both, indent=1) + "\n")
    sys.exit(0 if same and not lost and not twice else 1)


if __name__ == "__main__":
    main()
