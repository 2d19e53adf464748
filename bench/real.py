"""Sampling on a real model (or random weights of its shape), as shares of what the machine can do.

    python bench/real.py                                   # a quarter of an hour of two cores
    python bench/real.py --model random                    # without the kept model

Rows of different prompts (48 tokens) are gone on with for 32 tokens, none of which ends a row. *Ours* is the
decoder's own batch; *usual products* is the same with torch's ``linear``; *copied cache* is the same with
transformers' growing cache; *generate* is ``transformers.generate`` in the same process and precision. All ways
take turns, three times. A share of the product rate counts two FLOPs per weight and token, the prompts' included;
a share of the bandwidth counts one reading of the weights per token. Rates are measured in the same run, before
and after, and the better one is taken.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import seal.lora.batch as engine
from seal.lora.batch import Batch
from seal.lora.kv import cache_of
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.nucleus import choose
from seal.lora.records import ModelSpec
from seal.lora.thin import thin_products

sys.path.insert(0, str(Path(__file__).parent))
from common import interval, matmul_rate, parameters, record
from policy import SMOL, random_model

ROWS = (1, 8, 32, 64)
PROMPT, NEW = 48, 32
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-q4", help="a kept model's name, or 'random'")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as folder:
        name = random_model(Path(folder) / "135M", SMOL) if args.model == "random" else args.model
        policy = load_model(ModelSpec(name=name, threads=None))
    rates = [speeds()]
    rows = []
    for repeat in range(REPEATS):
        for n in ROWS:
            prompts = texts(policy, n, repeat)
            for way, run in WAYS.items():
                seconds = run(policy, prompts)
                rows.append({"rows": n, "way": way, "repeat": repeat, "seconds": seconds})
                print(f"{n:3d} rows  {way:16s} {n * NEW / seconds:8.1f} tokens/s", flush=True)
    rates.append(speeds())
    best = {k: max(r[k] for r in rates) for k in rates[0]}
    weights, size = parameters(policy), policy.runner.dtype.itemsize
    rate = max(best["float32"], best["bfloat16"])
    shares, ratios = {}, {}
    for n in ROWS:
        for way in ("ours, greedy", "ours, nucleus", "generate"):
            took = of(rows, n, way)
            shares[f"{n} rows, {way}: product rate"] = interval(
                [2 * weights * n * (PROMPT + NEW) / s / rate for s in took]
            )
            if n == 1:
                shares[f"1 row, {way}: bandwidth"] = interval(
                    [weights * size * NEW / s / best["bandwidth"] for s in took]
                )
        for other in ("generate", "usual products", "copied cache", "ours, nucleus"):
            pairs = zip(of(rows, n, other), of(rows, n, "ours, greedy"), strict=True)
            ratios[f"{n} rows: {other} / ours, greedy (seconds)"] = interval([b / a for b, a in pairs])
    for name, found in {**shares, **ratios}.items():
        print(f"{name:60s} {found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    workload = {
        "model": args.model,
        "prompt": PROMPT,
        "new": NEW,
        "repeats": REPEATS,
        "dtype": str(policy.runner.dtype),
    }
    record("real-135M", workload, rows, ratios, shares=shares, product_rate=rate, rates=best)


def texts(policy: Model, n: int, seed: int) -> list[list[int]]:
    """Prompts that have nothing in common."""
    rng = random.Random(seed)
    return [[rng.randrange(100, policy.vocabulary) for _ in range(PROMPT)] for _ in range(n)]


@torch.no_grad()
def ours(policy: Model, prompts: list[list[int]], top_p: float | None = None) -> float:
    """Seconds of the decoder's batch, to the last token."""
    draws = torch.rand(NEW, len(prompts), generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    batch = Batch(policy, prompts, None)
    batch.attach()
    for step in range(NEW):
        logits = batch.forward()
        tokens = logits.argmax(-1) if top_p is None else choose(logits, 1.0, top_p, draws[step])
        if step + 1 < NEW:
            batch.take(tokens, set(range(len(prompts))))
    batch.adapters.close()
    return time.perf_counter() - begin


def usual_products(policy: Model, prompts: list[list[int]]) -> float:
    engine.thin_products = lambda model: nullcontext()  # type: ignore[assignment]
    try:
        return ours(policy, prompts)
    finally:
        engine.thin_products = thin_products


def copied_cache(policy: Model, prompts: list[list[int]]) -> float:
    engine.cache_of = lambda config: DynamicCache(config=config)
    try:
        return ours(policy, prompts)
    finally:
        engine.cache_of = cache_of


@torch.no_grad()
def generate(policy: Model, prompts: list[list[int]]) -> float:
    ids = torch.tensor(prompts)
    begin = time.perf_counter()
    out = policy.runner.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
        pad_token_id=0,
    )  # fmt: skip
    assert out.shape[1] == PROMPT + NEW
    return time.perf_counter() - begin


WAYS: dict[str, Any] = {
    "ours, greedy": ours,
    "ours, nucleus": lambda policy, prompts: ours(policy, prompts, 0.95),
    "usual products": usual_products,
    "copied cache": copied_cache,
    "generate": generate,
}


def of(rows: list[dict[str, Any]], n: int, way: str) -> list[float]:
    return [r["seconds"] for r in rows if r["rows"] == n and r["way"] == way]


def speeds() -> dict[str, float]:
    """FLOP/s of products in both precisions, and bytes/s of reading what no cache holds."""
    found = {d: max(matmul_rate("cpu", getattr(torch, d)) for _ in range(3)) for d in ("float32", "bfloat16")}
    x = torch.ones(1 << 27)
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        x.sum()
        took.append(time.perf_counter() - begin)
    return {**found, "bandwidth": x.numel() * 4 / min(took)}


if __name__ == "__main__":
    main()
