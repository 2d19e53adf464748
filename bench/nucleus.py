"""How long the choice of the next token takes: by the likeliest few, by a full sort, and greedily.

    python bench/nucleus.py --json docs/results/nucleus.json

Logits of 64 rows over a vocabulary, peaked as a language model's are (a mixture of a Zipf-like slope and noise whose
nucleus at .95 has some dozens to thousands of tokens); fp32, one thread. Each way in turn, so many repeats; ratios are
of one repeat to the same repeat of the full sort.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seal.lora.hardware import product_rate
from seal.lora.nucleus import choose
from seal.machine import machine
from seal.records import record_text
from seal.stats import interval

ROWS, REPEATS, TOP_P = 64, 12, 0.95


def logits_of(vocabulary: int, slope: float) -> Tensor:
    """Rows whose likeliest tokens fall off by a power of their rank, in any order, with noise."""
    generator = torch.Generator().manual_seed(0)
    base = -slope * torch.arange(1, vocabulary + 1).float().log()
    rows = [base[torch.randperm(vocabulary, generator=generator)] for _ in range(ROWS)]
    return torch.stack(rows) + 0.5 * torch.randn(ROWS, vocabulary, generator=generator)


def by_sort(logits: Tensor, draw: Tensor) -> Tensor:
    return choose(logits, 1.0, TOP_P, draw, few=logits.shape[-1])


def seconds(way: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


def told(values: list[float]) -> dict[str, float]:
    found = interval([values], within=None)
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for vocabulary in (49_152, 151_936, 262_144):
        for slope in (2.0, 1.2):
            logits = logits_of(vocabulary, slope)
            probs = logits.softmax(-1).sort(-1, descending=True).values
            size = (probs.cumsum(-1) - probs < TOP_P).sum(-1).float()
            draw = torch.rand(ROWS, generator=torch.Generator().manual_seed(1))
            assert torch.equal(choose(logits, 1.0, TOP_P, draw), by_sort(logits, draw))
            ways = {
                "likeliest few": lambda x=logits, d=draw: choose(x, 1.0, TOP_P, d),
                "full sort": lambda x=logits, d=draw: by_sort(x, d),
                "greedy": lambda x=logits: x.argmax(-1),
            }
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(REPEATS):
                for name, way in ways.items():
                    taken[name].append(seconds(way))
            ratio = [a / b for a, b in zip(taken["full sort"], taken["likeliest few"], strict=True)]
            row = {
                "vocabulary": vocabulary,
                "nucleus": {"mean": round(float(size.mean())), "most": int(size.max())},
                "ms": {name: round(1e3 * sum(x) / len(x), 2) for name, x in taken.items()},
                "ratio": {**told(ratio), "scores": [ratio], "within": None},
            }
            rows.append(row)
            print({k: v if k != "ratio" else told(ratio) for k, v in row.items()})
    if args.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": str(date.today()),
            "machine": machine(),
            "GFLOP/s, fp32, one thread": round(product_rate("cpu", torch.float32, 1) / 1e9),
            "rows of logits": ROWS,
            "top_p": TOP_P,
            "repeats": REPEATS,
            "by vocabulary": rows,
        }
        args.json.write_text(record_text(record))


if __name__ == "__main__":
    main()
