"""Rows side by side, for models that cannot have them in one sequence, against rows packed: what it costs.

    python bench/beside.py --json docs/results/beside.json        # a quarter of an hour of one core

The same Llama of random weights trains the same jobs both ways, in turn, five times each: rows with the lengths
of SEAL's own data (a passage of 170 tokens, 7.9 rows of 46), sixteen adapters of rank 32, one row a step and
eight. Only how rows stand differs; that both learn the same is a test's matter. A hybrid (Qwen 3.5's kind, of
like size) stands beside it: what it takes per token where packing is not to be had.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from seal.lora.capacity import Room
from seal.lora.model import Model
from seal.lora.train import Job, Tally, train_adapters

sys.path.insert(0, str(Path(__file__).parent))
from common import SHAPES, interval, matmul_rate, random_policy, record, timed, word_tokenizer
from workloads import passages

REPEATS = 5
ROOM = Room(16, 2048)


def hybrid() -> Model:
    """Three layers of linear attention to one of full, of the 10M shape's width."""
    shape = SHAPES["10M"]
    torch.manual_seed(0)
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    config = Qwen3_5TextConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], intermediate_size=shape["intermediate_size"],
        num_hidden_layers=8, layer_types=kinds * 2, num_attention_heads=5, num_key_value_heads=5, head_dim=64,
        linear_num_key_heads=5, linear_num_value_heads=5, linear_key_head_dim=64, linear_value_head_dim=64,
        bos_token_id=None, eos_token_id=0, pad_token_id=1, max_position_embeddings=2048,
    )  # fmt: skip
    return Model(Qwen3_5ForCausalLM(config), word_tokenizer(shape["vocab_size"]), "hybrid")


def trained(model: Model, jobs: list[Job], packs: bool) -> dict[str, Any]:
    whole = model.nature
    model.nature = replace(whole, packs=packs)
    try:
        tally = Tally()
        seconds, _ = timed(lambda: train_adapters(model, jobs, ROOM, tally=tally), "cpu")
    finally:
        model.nature = whole
    return {"seconds": seconds, "tokens": tally.real, "padded": tally.padded, "passes": tally.passes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("docs/results/beside.json"))
    args = parser.parse_args()
    os.environ["OUT"] = str(args.json.parent)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, Any] = {}
    mixed = hybrid()
    assert not mixed.nature.packs
    for shape in ("1M", "10M"):
        model = random_policy(shape, bf16=False)
        jobs = passages(16, shape, "cpu", all_linear=False).jobs
        for batch in (1, 8):
            mine = [
                replace(
                    j, recipe=j.recipe.model_copy(update={"batch_size": batch, "steps": max(4, 16 // batch)})
                )
                for j in jobs
            ]
            trained(model, mine[:2], True)
            each = [(trained(model, mine, True), trained(model, mine, False)) for _ in range(REPEATS)]
            ratio = interval([b["seconds"] / a["seconds"] for a, b in each])
            padding = [x["padded"] / (x["padded"] + x["tokens"]) for x in each[0]]
            rows.append(
                {
                    "model": shape,
                    "batch": batch,
                    "packed": interval([a["seconds"] for a, _ in each]),
                    "side by side": interval([b["seconds"] for _, b in each]),
                    "padding": {"packed": round(padding[0], 3), "side by side": round(padding[1], 3)},
                }
            )
            ratios[f"{shape}, {batch} rows a step"] = ratio
            print(shape, batch, ratio, padding, flush=True)
            if shape == "10M":
                of_hybrid = [
                    replace(j, recipe=j.recipe.model_copy(update={"targets": ("q_proj", "v_proj")}))
                    for j in mine
                ]
                trained(mixed, of_hybrid[:2], False)
                found = [trained(mixed, of_hybrid, False) for _ in range(2)]
                per = [x["seconds"] / x["tokens"] for x in found]
                plain = [a["seconds"] / a["tokens"] for a, _ in each]
                rows.append({"model": "hybrid", "batch": batch, "seconds per token": interval(per)})
                ratios[f"a hybrid to a Llama, per token, {batch} rows a step"] = interval(
                    [x / (sum(plain) / len(plain)) for x in per]
                )
                print("hybrid", batch, per, plain, flush=True)
    rate = matmul_rate("cpu", torch.float32)
    record(args.json.stem, {"adapters": 16, "rank": 32, "room": vars(ROOM)}, rows, ratios, product_rate=rate)


if __name__ == "__main__":
    main()
