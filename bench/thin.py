"""Products of few rows in fp32: torch's ``linear`` against the turned product (seal.lora.thin).

    python bench/thin.py                      # half a minute of two cores

Layers of SmolLM2's widths, as many of each as no cache holds; both ways in turn, seven times. The ratio is
seconds of ``linear`` by seconds of the turned product, paired.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from seal.lora.thin import turned

sys.path.insert(0, str(Path(__file__).parent))
from common import interval, matmul_rate, record

ROWS = (4, 8, 16, 24, 32, 48)
SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576))
REPEATS = 7


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows: list[dict[str, Any]] = []
    ratios = {}
    for out, wide in SHAPES:
        layers = list(torch.randn(max(1, 40_000_000 // (out * wide)), out, wide))
        for n in ROWS:
            x = torch.randn(n, wide)
            pairs = [(took(linear, x, layers), took(turned, x, layers)) for _ in range(REPEATS + 1)][1:]
            name = f"{n} rows, {wide} to {out}"
            ratios[name] = interval([a / b for a, b in pairs])
            flops = 2 * n * out * wide * len(layers)
            rates = {"linear": flops / min(a for a, _ in pairs), "turned": flops / min(b for _, b in pairs)}
            rows.append({"rows": n, "in": wide, "out": out, "flops_per_second": rates})
            found = ratios[name]
            print(f"{name:24s} {found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]", flush=True)
    workload = {"dtype": "float32", "repeats": REPEATS}
    record("thin", workload, rows, ratios, product_rate=matmul_rate("cpu", torch.float32))


def took(product: Callable[..., Tensor], x: Tensor, layers: list[Tensor]) -> float:
    begin = time.perf_counter()
    for weight in layers:
        product(x, weight, None)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
