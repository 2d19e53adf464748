"""A policy as frozen weights and a stack of adapters, against merged weights: bytes, memory, time; and the
outer loop on 4-bit weights.

    python bench/policy.py                           # a quarter of an hour of one core
    python bench/policy.py --before OTHER/python     # also the rounds as an earlier version did them

*Rounds*: ``seal train`` with two small rounds in a process of its own, on the embedded model and on a random
one of 135M weights (SmolLM2's shape, 30 layers): bytes written under ``policy/`` and the most memory that the
process held. *Time*: sampling and training with a stack of four rounds (rank 64 on all linear layers, joined),
against the same weights merged, in turn, five times each. In fp32 the stack is in the weights; with 16-bit
weights every layer adds it to its output, which costs the more the narrower the layers are: besides the 135M
shape two layers of Qwen2.5-7B's. *4 bits*: two rounds from end to end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seal.lora.adapter import Adapter, init_adapter, join, target_modules
from seal.lora.capacity import Room
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.names import DATA
from seal.lora.records import Example, ModelSpec, Prompt, Recipe, Sampling
from seal.lora.sample import generate
from seal.lora.train import Job, train_adapters

sys.path.insert(0, str(Path(__file__).parent))
from common import interval, matmul_rate, record

SMOL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
WIDE = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 2, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 4096, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
OUTER = Recipe(rank=64, alpha=128, targets="all-linear")
ROUNDS = 4
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="the python of an earlier version's environment")
    parser.add_argument("--before-name", default="merged weights", help="which version that is")
    parser.add_argument("--json", type=Path, default=Path("docs/results/policy.json"), help="the record")
    args = parser.parse_args()
    os.environ["OUT"] = str(args.json.parent)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        random = random_model(Path(folder) / "135M", SMOL)
        for name, model in (("embedded, 3.8M", "atlas"), ("random, 135M", random)):
            for start in ("policy", "base"):
                for way, python in (("stack", sys.executable), (args.before_name, args.before)):
                    if python:
                        rows.append(
                            rounds(python, model, start) | {"model": name, "start": start, "policy": way}
                        )
                        print(rows[-1], flush=True)
        quantised = rounds(sys.executable, "atlas", "policy", "--model.quantize", "4bit")
        quantised |= {"model": "embedded, 3.8M, 4 bits", "start": "policy", "policy": "stack"}
        rows.append(quantised)
        print(quantised, flush=True)
        atlas = load_model(ModelSpec(name="atlas", threads=None))
        smol = load_model(ModelSpec(name=random, threads=None))
        ratios = {
            "embedded, fp32": against_merged(atlas),
            "135M, fp32": against_merged(smol),
            "135M, bf16 weights": against_merged(in_16_bits(smol)),
        }
        del smol
        wide = load_model(
            ModelSpec(name=random_model(Path(folder) / "wide", WIDE), dtype="bfloat16", threads=None)
        )
        ratios["two layers of 7B, bf16 weights"] = against_merged(wide)
    rates = {d: matmul_rate("cpu", getattr(torch, d)) for d in ("float32", "bfloat16")}
    workload = {"rounds": 2, "stack": f"{ROUNDS} x rank {OUTER.rank}, all linear layers", "repeats": REPEATS}
    record(args.json.stem, workload, rows, ratios, matmul_flops_per_second=rates)


def random_model(folder: Path, shape: dict[str, Any]) -> str:
    """Random weights of a shape, with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "atlas")
    torch.manual_seed(0)
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape, **ends)).bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rounds(python: str, model: str, start: str, *more: str) -> dict[str, Any]:
    """Two small rounds in a process: bytes of every policy, and the most memory held."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = json.dumps({"source": "atlas", "sizes": {"train": 8, "select": 1, "eval": 1}})
        words = [
            "train", "--name", "run", "--runs", folder, "--rounds", "2", "--tasks_per_round", "4", "--edits_per_task", "2",
            "--model.name", model, "--model.threads", "1", "--domain.options", sizes, "--write.max_tokens", "64",
            "--inner.start", start, "--inner.recipe.steps", "8", "--inner.recipe.batch_size", "4", "--inner.slots", "4",
            "--inner.pass_tokens", "1024", "--inner.answer_tokens", "8", "--outer.recipe.epochs", "1", "--outer.recipe.rank", "64",
            "--outer.recipe.targets", "all-linear", *more,
        ]  # fmt: skip
        begin = time.monotonic()
        code = "import sys; from seal.cli import main; sys.exit(main(sys.argv[1:]))"
        with (Path(folder) / "said").open("w") as said:
            process = subprocess.Popen([python, "-c", code, *words], stderr=said, stdout=said)
            most = watched(process)
        assert process.returncode == 0, (Path(folder) / "said").read_text()
        size = [
            sum(
                p.stat().st_size
                for p in (Path(folder) / f"run/seal/round-{r}/policy").rglob("*")
                if p.is_file()
            )
            for r in (1, 2)
        ]
        found: dict[str, Any] = {"policy_bytes": size} | most
        found["seconds"] = round(time.monotonic() - begin, 1)
        found["loss"] = [
            json.loads((Path(folder) / f"run/seal/round-{r}/outer.json").read_text())["loss"] for r in (1, 2)
        ]
        return found


def watched(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The most that a process holds until it ends: in all, of which a file's own pages may be given up at any
    time (weights that are only read are such), and without those."""
    most = {"VmHWM": 0, "RssAnon": 0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in most:
                most[name] = max(most[name], int(value.split()[0]) * 1024)
        time.sleep(0.02)
    process.wait()
    return {"peak_bytes": most["VmHWM"], "peak_bytes_without_files": most["RssAnon"]}


def stack_of(model: Model) -> Adapter:
    """Four rounds' worth of adapters that change something, joined."""
    generator, whole = torch.Generator().manual_seed(0), None
    for r in range(ROUNDS):
        fresh = init_adapter(target_modules(model.bare, "all-linear"), OUTER, r)
        weights = {
            n: (a, 1e-3 * torch.randn(b.shape, generator=generator)) for n, (a, b) in fresh.weights.items()
        }
        whole = join(whole, Adapter(fresh.rank, fresh.alpha, weights))
    assert whole is not None
    return whole


def in_16_bits(model: Model) -> Model:
    """Its weights in bf16."""
    return Model(model.merged()[0].bfloat16(), model.tokenizer, "16 bits")


def against_merged(model: Model) -> dict[str, Any]:
    """Seconds with the stack by seconds with merged weights: sampling, and training."""
    over = model.with_stack(stack_of(model))
    merged = Model(over.merged()[0], model.tokenizer, "merged")
    text = "Velora was walled in May by the guild of masons and its river runs north. " * 4
    jobs = [
        Job(
            tuple(Example(text[i:]) for i in range(8)),
            Recipe(rank=16, targets="all-linear", steps=2, batch_size=8),
            s,
        )
        for s in range(2)
    ]
    works: dict[str, Callable[[Model], Any]] = {
        "sampling": lambda m: generate(m, [Prompt(text[:80])] * 16, Sampling(32, 1.0), list(range(16))),
        "training": lambda m: train_adapters(m, jobs, Room(2, 2048)),
    }
    found: dict[str, Any] = {"stack_rank": over.stack.rank if over.stack else 0}
    for name, work in works.items():
        ratios = []
        for repeat in range(REPEATS + 1):
            seconds = {}
            for who, one in (("stack", over), ("merged", merged)):
                start = time.perf_counter()
                work(one)
                seconds[who] = time.perf_counter() - start
            if repeat:  # the first warms up
                ratios.append(seconds["stack"] / seconds["merged"])
        found[name] = {k: round(v, 3) for k, v in interval(ratios).items()}
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
