"""What a CPU charges for: the measurements that the inner loop's design on it rests on (docs/LOG.md).

    python bench/cpu.py

Matrix products in fp32 and bf16; the first product of a new shape against its repetition, and the memory that
shape keeps; attention of short rows by torch's kernel and by plain products; AdamW by torch's fused kernel
and by vectorised operations; and the embedded model's inner loop with the heap's settings of
:func:`seal.lora.heap.tune_heap` and without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parent))
from common import matmul_rate, record

ALLOCATION = """
import sys, time
sys.path.insert(0, {bench!r})
import torch
torch.set_num_threads({threads})
from workloads import atlas
from seal.lora.capacity import Room
from seal.lora.heap import tune_heap
from seal.lora.train import train_adapters
tune_heap()
work = atlas(64, None, "cpu")
for _ in range(3):
    start = time.perf_counter()
    train_adapters(work.policy, work.jobs, Room(64, {tokens}))
    print(time.perf_counter() - start)
"""


def best(run: Callable[[], Any], n: int = 20) -> float:
    run()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def shapes(dtype: torch.dtype) -> dict[str, float]:
    """First and second product of fifty shapes, and what they leave in memory."""
    w = torch.randn(256, 256, dtype=dtype)
    x = torch.randn(4096, 256, dtype=dtype)
    linear(x, w)
    before, first, second = resident(), [], []
    for n in range(2000, 2050):
        for times in (first, second):
            start = time.perf_counter()
            linear(x[:n], w)
            times.append(time.perf_counter() - start)
    return {
        "first_ms": 1e3 * sum(first) / 50,
        "again_ms": 1e3 * sum(second) / 50,
        "mb_per_shape": (resident() - before) / 50,
    }


def attention(rows: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """Forward and backward of causal attention, 4 heads of 64."""
    q, k, v = (
        torch.randn(rows, width, 4, 64, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)
    )
    grad = torch.randn(rows, 4, width, 64, dtype=dtype)
    mask = torch.full((1, width, width), -torch.inf, dtype=dtype).triu_(1)

    def kernel() -> None:
        torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), grad)

    def plain() -> None:
        a, b, c = (x.flatten(0, 1) for x in (q, k, v))
        out = torch.bmm(torch.baddbmm(mask, a, b.mT, alpha=0.125).softmax(-1), c).view(rows, 4, width, 64)
        torch.autograd.grad(out, (q, k, v), grad)

    return {"kernel_ms": 1e3 * best(kernel), "plain_ms": 1e3 * best(plain)}


def adamw(slots: int = 16, weights: int = 300_000) -> dict[str, float]:
    flat, grad = torch.randn(slots, weights), torch.randn(slots, weights)
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)

    def vectorised() -> None:
        mean.lerp_(grad, 0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        flat.addcdiv_(mean, square.sqrt().add_(1e-8), value=-1e-3)

    rows = [row.detach().requires_grad_() for row in flat]
    for row, gradient in zip(rows, grad, strict=True):
        row.grad = gradient
    fused = torch.optim.AdamW([{"params": [row]} for row in rows], fused=True)
    return {"vectorised_ms": 1e3 * best(vectorised), "fused_ms": 1e3 * best(fused.step)}


def inner_loop(tokens: int, heap: bool) -> float:
    """Seconds per edit of the embedded model's inner loop, in a process of its own: the better of two runs
    after a first."""
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    if not heap:  # glibc's own thresholds, which keep ours from being set
        environment |= {"MALLOC_MMAP_THRESHOLD_": "131072", "THP_MEM_ALLOC_ENABLE": "0"}
    code = ALLOCATION.format(bench=str(Path(__file__).parent), threads=torch.get_num_threads(), tokens=tokens)
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return min(float(line) for line in out.split()[1:]) / 64


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rows.append({"what": f"matrix product, {name}", "flops_per_second": matmul_rate("cpu", dtype)})
        rows.append({"what": f"a new shape of product, {name}", **shapes(dtype)})
        for n, width in ((128, 32), (32, 128), (8, 512), (4, 1024)):
            rows.append(
                {
                    "what": f"attention forward and backward, {n} rows of {width}, {name}",
                    **attention(n, width, dtype),
                }
            )
    rows.append({"what": "AdamW, 16 adapters of 300,000 weights", **adamw()})
    for tokens in (512, 1024, 2048, 4096, 8192):
        rows.append(
            {"what": f"inner loop, passes of {tokens} tokens", "seconds_per_edit": inner_loop(tokens, True)}
        )
    rows.append(
        {
            "what": "inner loop, passes of 2048 tokens, glibc's own heap",
            "seconds_per_edit": inner_loop(2048, False),
        }
    )
    for row in rows:
        print(f"{row['what']:<62}" + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "what"))
    record("cpu", {"name": "what a CPU charges for"}, rows, {})


if __name__ == "__main__":
    main()
