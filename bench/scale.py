"""Workers against one process: attempts per second on the same edits, what Ray costs per wave, and where a
round at 7B saturates, on paper.

    python bench/scale.py --edits 64 --workers 1 2 4

Every way tries the same self-edits of the embedded model (wave of 16, one thread a process), a fresh stage
each. *Alone* is one process of one thread. More workers than cores cannot be faster; the record says how many
cores there are. Start-up (Ray, and each worker's imports) is timed apart.

The paper estimate is arithmetic, not a measurement: FLOPs of a round of the original (50 passages x 5 edits x
3 seeds, Qwen2.5-7B) at --rate of bf16 (FLOP/s, sustained), divided over the GPUs; what stays with the driver
is writing 250 edits and imitating 50; the loading of 15 GB of weights per worker and round at --disk bytes/s;
and Ray's cost per wave as measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from seal.config import load_config
from seal.loop.inner import HERE as ALONE
from seal.loop.inner import InnerLoop, open_domain
from seal.loop.workers import RayWorkers
from seal.loop.write import write_edits
from seal.lora.load import load_model
from seal.lora.records import ModelSpec
from seal.machine import machine
from seal.store import Stage

sys.path.insert(0, str(Path(__file__).parent))
from common import interval

HERE = Path(__file__).resolve().parents[1]
N_7B, BYTES_7B = 7.1e9, 15.2e9
INNER_TOKENS, ASKED_TOKENS, WRITTEN_TOKENS = 5_300, 1_000, 580
"""Of the original, per inner loop: trained (ten epochs over a passage and 7.9 rows), read and answered; per
edit: prompt and edit."""


def estimate(gpus: int, rate: float, disk: float, per_wave: float) -> dict[str, Any]:
    """Seconds of one round, part by part."""
    loops, edits, wave = 750, 250, 64
    inner = loops * (4 * N_7B * INNER_TOKENS + 2 * N_7B * ASKED_TOKENS) / rate
    write = (
        edits * 2 * N_7B * WRITTEN_TOKENS / (rate * 0.1)
    )  # sampling is bound by memory: a tenth of the rate
    imitate = 50 * 2 * 4 * N_7B * WRITTEN_TOKENS / rate
    waves = -(-loops // wave)
    rounds = -(-waves // gpus)
    parts = {
        "inner loops": inner * rounds / waves,
        "writing": write,
        "imitating": imitate,
        "loading weights": BYTES_7B / disk,
        "Ray": per_wave * waves,
    }
    return {
        "gpus": gpus,
        "waves": waves,
        **{k: round(v, 1) for k, v in parts.items()},
        "total": round(sum(parts.values()), 1),
        "largest": max(parts, key=lambda k: parts[k]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=4e14, help="sustained bf16 FLOP/s of one GPU (assumed)")
    parser.add_argument("--disk", type=float, default=2e9, help="bytes/s a worker reads weights at (assumed)")
    parser.add_argument("--json", type=Path, default=HERE / "bench/results/scale.json")
    args = parser.parse_args()
    flags = ["--model.threads", "1", "--inner.wave", "16", "--inner.slots", "16"]
    config = load_config(HERE / "configs/atlas.toml", flags)
    domain, policy = open_domain(config), load_model(ModelSpec(name="atlas", bf16="auto", threads=1))
    tasks = list(domain.tasks("train"))[: args.edits // 4]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        texts = write_edits(policy, domain, tasks, 4, config.write, 0, Stage(Path(folder) / "write"))
        seconds: dict[int, list[float]] = {n: [] for n in (0, *args.workers)}
        starting: dict[int, float] = {0: 0.0}
        for n, times in seconds.items():
            began = time.monotonic()
            workers_ = RayWorkers(config.model_copy(update={"workers": n})) if n else ALONE
            warm = Stage(Path(folder) / f"warm-{n}")
            InnerLoop(domain, config.inner, workers_).try_edits(
                policy, tasks[: 4 * max(1, n)], texts[: 4 * max(1, n)], warm, 0
            )  # workers load the model
            starting[n] = time.monotonic() - began
            for repeat in range(args.repeats):
                began = time.monotonic()
                InnerLoop(domain, config.inner, workers_).try_edits(
                    policy, tasks, texts, Stage(Path(folder) / f"{n}-{repeat}"), 0
                )
                times.append(time.monotonic() - began)
            if isinstance(workers_, RayWorkers):
                workers_.__exit__()
            each = interval([args.edits / s for s in times])
            rows.append({"workers": n, "attempts_per_second": each, "start_seconds": round(starting[n], 1)})
            print(
                f"{n or 'no'} workers: {each['mean']:.2f} attempts/s [{each['low']:.2f}, "
                f"{each['high']:.2f}], {starting[n]:.0f} s to start",
                flush=True,
            )
    waves = -(-args.edits // 16)
    overhead = (
        (statistics.fmean(seconds[1]) - statistics.fmean(seconds[0])) / waves
        if 1 in seconds
        else float("nan")
    )
    ratios = {
        f"{n} workers / alone": interval([a / b for a, b in zip(seconds[0], seconds[n], strict=True)])
        for n in args.workers
    }
    paper = [estimate(g, args.rate, args.disk, max(0.0, overhead)) for g in (1, 8, 64)]
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "rows": rows,
        "ratios": ratios,
        "ray_seconds_per_wave": round(overhead, 3),
        "estimate": {"assumed": {"rate": args.rate, "disk": args.disk}, "rounds": paper},
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: record[k] for k in ("ratios", "ray_seconds_per_wave", "estimate")}, indent=1))


if __name__ == "__main__":
    main()
