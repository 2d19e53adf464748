"""Train the embedded grid model from scratch: ``make grids`` (an hour and a half of two CPU cores, minutes on
a GPU).

A Llama of 4 layers × 192 on documents of :mod:`corpus`. Writes the model folder, with tokenizer, model card
and training log.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import corpus
from seal.domains.arc.families import held_families, known_families, puzzle
from seal.domains.arc.grids import as_digits

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE / "tools"))
from trainer import RANK, WORLD, arguments, train  # noqa: E402

Row = list[tuple[int, bool]]


def encode(tokenizer: PreTrainedTokenizerFast, parts: list[tuple[str, bool]]) -> Row:
    """Token and whether loss falls on it; loss falls on the end."""
    ids = tokenizer([text for text, _ in parts])["input_ids"]
    row = [(i, loss) for piece, (_, loss) in zip(ids, parts, strict=True) for i in piece]
    return [*row, (tokenizer.eos_token_id, True)]


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) of rows of like length, about ``tokens`` a batch, from document number ``first`` on."""
    source = corpus.documents(seed, first + RANK, WORLD)
    rng = random.Random(seed)
    while True:
        rows = [encode(tokenizer, parts) for parts in islice(source, 1024)]
        rows.sort(key=lambda r: (len(r), rng.random()))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = max(map(len, group))
            ids = torch.full((len(group), width), tokenizer.pad_token_id)
            labels = torch.full((len(group), width), -100)
            for i, row in enumerate(group):
                ids[i, : len(row)] = torch.tensor([t for t, _ in row])
                labels[i, : len(row)] = torch.tensor([t if loss else -100 for t, loss in row])
            yield ids, labels


@torch.no_grad()
def examine(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 100) -> dict[str, float]:
    """Share of fresh puzzles answered exactly, in context, by teacher-forced argmax: single rules, known
    pairs, held-out pairs."""
    known = known_families()
    groups = {
        "single rules": [f for f in known if ", then " not in f.name],
        "known pairs": [f for f in known if ", then " in f.name],
        "held-out pairs": list(held_families()),
    }
    found = {}
    for name, families in groups.items():
        right = 0
        for i in range(n):
            made = puzzle(random.Random(i).choice(families), f"examine {i}")
            shown = [
                (f"Input:\n{as_digits(p.input)}\nOutput:\n{as_digits(p.output)}\n\n", False)
                for p in made.demonstrations
            ]
            asked = (f"Input:\n{as_digits(made.test.input)}\nOutput:\n", False)
            row = encode(tokenizer, [*shown, asked, (as_digits(made.test.output), True)])
            ids = torch.tensor([[t for t, _ in row]], device=model.device)
            loss = torch.tensor([x for _, x in row][1:], device=model.device)
            guess = model(input_ids=ids).logits[0, :-1].argmax(-1)
            right += bool(((guess == ids[0, 1:]) | ~loss).all())
        found[name] = right / n
    return found


def main() -> None:
    assert __doc__
    parser = arguments(__doc__, HERE / "src/seal/data/grids", steps=40_000, tokens=2048)
    parser.add_argument(
        "--first", type=int, default=0, help="document to begin with: past those already seen, with --start"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = corpus.make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(args.device)
    last = train(
        model, batches(tokenizer, args.seed, args.tokens, args.first), args, lambda: examine(model, tokenizer)
    )
    if RANK == 0:
        tokenizer.save_pretrained(args.out)
        write_card(args, last)


def write_card(args: argparse.Namespace, last: dict[str, float]) -> None:
    """The model card: what it is, how it was made, what it can do."""
    rows = "\n".join(f"| {k} | {v} |" for k, v in last.items() if k not in ("step", "seconds", "rate"))
    start = f" --start {args.start} --first {args.first}" if args.start else ""
    text = f"""---
license: apache-2.0
pipeline_tag: text-generation
---
# grids: the embedded ARC model of SEAL

A Llama (4 layers × 192, 1.9M parameters, bf16) trained from scratch on puzzles in ARC's format: {len(known_families())} families of rules on
grids (every single rule and pairs of two in a row); {len(held_families())} kins of pairs were held out whole. It also writes ARC self-edits in JSON, at random.
For experiments, not for use; what test-time training makes of it is in docs/LOG.md.

Made by `tools/arc/pretrain.py --steps {args.steps} --minutes {args.minutes:g} --seed {args.seed}{start}` in {last["seconds"] / 60:.0f} minutes on
{platform.machine()} ({args.device}, {WORLD} processes of {torch.get_num_threads()} threads), torch {torch.__version__}. The course of training is in `training_log.jsonl`.

| at the end of training | |
|---|---|
{rows}

Shares of 100 fresh puzzles answered exactly, three demonstrations in view. *tokens* are those that carried loss.
"""
    (args.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
