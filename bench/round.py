"""One whole round of ReST-EM on random weights of a real shape: write, train, ask, imitate; against the FLOP
floor.

    python bench/round.py                                   # reduced: 30M weights, 10 passages x 3 edits x 1
    seed, on the CPU python bench/round.py --shape 7B --device cuda --passages 50 --edits 5 --seeds 3

The work is the paper's: passages of 170 tokens, edits of 7.9 rows of 46 tokens, 10 epochs at batch 1 with
rank 32 on q and v, 4.5 questions a passage; then the finetune on the kept edits, rank 64 on all linear
layers, 2 epochs, batch 10. The floor counts 2N FLOPs for every token read or written and 2N more for every
trained token's way back (N: weights in linear layers; no gradient of the frozen weights), against the rate of
a plain matrix product measured in this run.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from seal.lora.records import Example, Prompt, Recipe, Sampling
from seal.lora.sample import ask, generate
from seal.lora.train import Job, Tally, train_adapters

sys.path.insert(0, str(Path(__file__).parent))
from common import matmul_rate, parameters, record, timed, words
from workloads import passages

OUTER = Recipe(rank=64, alpha=128, targets="all-linear", learning_rate=3e-4, epochs=2, batch_size=10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="30M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--edits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--edit-tokens", type=int, default=363, help="7.9 rows of 46 tokens")
    parser.add_argument("--wave", type=int, default=128, help="inner loops between two askings")
    args = parser.parse_args()
    n = args.passages * args.edits
    work = passages(n, args.shape, args.device, all_linear=False)
    policy = work.policy
    rng = random.Random(1)
    vocabulary = policy.model.config.vocab_size
    prompts = [Prompt(words(rng, 220, vocabulary)) for _ in range(args.passages) for _ in range(args.edits)]
    jobs = [Job(j.examples, j.recipe, seed) for j in work.jobs for seed in range(args.seeds)]
    questions = [q[: 4 + i % 2] for i, q in enumerate(work.questions) for _ in range(args.seeds)]
    rate = matmul_rate(args.device, policy.runner.dtype, width=min(4096, policy.model.config.hidden_size))
    weights = parameters(policy)
    rows: list[dict[str, Any]] = []

    def phase(way: str, seconds: float, read: int, trained: int, share: float | None = None) -> None:
        floor = (2 * weights * (read + trained) + 2 * weights * trained) / rate
        rows.append(
            {
                "way": way,
                "K": None,
                "seconds": seconds,
                "seconds_per_edit": seconds / n,
                "tokens_per_second": (read + trained) / seconds,
                "real_token_share": share,
                "final_loss": None,
                "floor_seconds": floor,
                "share_of_floor": floor / seconds,
            }
        )
        print(
            f"{way:<10} {seconds:8.1f} s   floor {floor:7.1f} s   {floor / seconds:5.1%} of the matmul rate",
            flush=True,
        )

    sampling = Sampling(args.edit_tokens, 1.0, 0.95)
    seconds, texts = timed(
        lambda: generate(policy, prompts, sampling, list(range(len(prompts)))), args.device
    )
    written = sum(len(policy.tokenizer(t)["input_ids"]) for t in texts)
    phase("write", seconds, 220 * args.passages + written, 0)

    tally, train_seconds, ask_seconds, asked = Tally(), 0.0, 0.0, 0
    for start in range(0, len(jobs), args.wave):
        wave = slice(start, start + args.wave)
        took, trained = timed(lambda wave=wave: train_adapters(policy, jobs[wave], tally=tally), args.device)  # type: ignore[misc]
        train_seconds += took
        adapters = [t.adapter for t in trained]
        took, _ = timed(
            lambda wave=wave, adapters=adapters: ask(policy, adapters, questions[wave], Sampling(16)),
            args.device,
        )  # type: ignore[misc]
        ask_seconds += took
        asked += sum(len(q) for q in questions[wave]) * (20 + 16)
    phase("train", train_seconds, 0, tally.real, tally.real / (tally.real + tally.padded))
    phase("ask", ask_seconds, asked, 0)

    kept = tuple(
        Example(words(rng, args.edit_tokens, vocabulary), prompt=words(rng, 220, vocabulary) + " ")
        for _ in range(args.passages)
    )
    outer = Tally()
    seconds, _ = timed(lambda: train_adapters(policy, [Job(kept, OUTER, 0)], tally=outer), args.device)
    phase("imitate", seconds, 0, outer.real, outer.real / (outer.real + outer.padded))

    total, floor = sum(r["seconds"] for r in rows), sum(r["floor_seconds"] for r in rows)
    print(f"{'round':<10} {total:8.1f} s   floor {floor:7.1f} s   {floor / total:5.1%}")
    workload = {
        "shape": args.shape,
        "weights": weights,
        "dtype": str(policy.runner.dtype),
        "passages": args.passages,
        "edits": args.edits,
        "seeds": args.seeds,
        "matmul_flops_per_second": rate,
        "recipe": work.jobs[0].recipe.model_dump(),
    }
    ratios = {"share of the FLOP floor": floor / total, "round_seconds": total, "inner_loops": len(jobs)}
    record(f"round-{args.shape}", workload, rows, ratios)


if __name__ == "__main__":
    main()
