"""Train the embedded model from scratch: ``make atlas`` (about an hour of two CPU cores, minutes on a GPU).

A Llama of 4 layers × 256 on documents of :mod:`corpus`. Writes the model folder, with tokenizer, model card
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
from seal.domains.knowledge import atlas, prompts

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE / "tools"))
from trainer import arguments, train  # noqa: E402


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, n_early: int) -> Iterator[Tensor]:
    """Rows of like length, about ``tokens`` a batch, padded with -100 at the right (ids, ready to be labels
    too)."""
    source = corpus.documents(seed, n_early)
    rng = random.Random(seed)
    end = tokenizer.eos_token_id
    read = 0
    while True:
        read += 1024
        rows = [[*ids, end] for ids in tokenizer(list(islice(source, 1024)))["input_ids"]]
        rows.sort(key=lambda r: (len(r), rng.random()))
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row) > (tokens // 2 if read <= n_early else tokens):
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = max(map(len, group))
            yield torch.tensor([r + [-100] * (width - len(r)) for r in group])


@torch.no_grad()
def examine(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 60) -> dict[str, float]:
    """Share of answers right by argmax: open book and closed book on fresh entities, closed book on known
    ones."""
    scores: dict[str, list[bool]] = {}
    items: list[tuple[str, str, str]] = []
    for i in range(n):
        fresh = atlas.record("select", 1000 + i)
        for q in fresh["questions"]:
            body = prompts.ASK_OPEN.format(
                title=fresh["title"], context=fresh["context"], question=q["question"]
            )
            items.append((f"open {q['kind']}", body, q["answer"]))
            body = prompts.ASK.format(title=fresh["title"], question=q["question"])
            items.append(("closed fresh", body, q["answer"]))
        who = atlas.entity("select", 1000 + i)
        said = (
            atlas.fill(atlas.phrases(who, who.facts[0].attribute, "say")[0], who, v="<>")
            .split("<>")[0]
            .rstrip()
        )
        items.append(
            ("copy", f"{atlas.state(who, who.facts[0], random.Random(i))}\n{said}", who.facts[0].value)
        )
        v = [atlas.values("goods")[(7 * i + j) % 16] for j in (0, 3, 5)]
        items.append(("list", f"{who.name}: {v[0]}, {v[1]}, {v[2]}.\n{who.name}: {v[0]},", v[1]))
        known = atlas.entity("known", i)
        for fact in known.facts:
            body = prompts.ASK.format(title=known.name, question=atlas.ask(known, fact, 0))
            items.append(("closed known", body, fact.value))
    for kind, body, answer in items:
        ids = tokenizer(f"{body} {answer}", return_tensors="pt")["input_ids"].to(model.device)
        logits = model(input_ids=ids).logits
        scores.setdefault(kind, []).append(bool(logits[0, -2].argmax() == ids[0, -1]))
    return {k: round(sum(v) / len(v), 3) for k, v in scores.items()}


def main() -> None:
    assert __doc__
    parser = arguments(__doc__, HERE / "src/seal/data/atlas", steps=2800, tokens=4096)
    parser.add_argument("--tied", action="store_true", help="one matrix for embeddings and head")
    parser.add_argument(
        "--early", type=int, default=15_000, help="documents of the first phase (drills, in half batches)"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = corpus.make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=args.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(args.device)
    stream = batches(tokenizer, args.seed, args.tokens, n_early=args.early)
    entry = train(model, ((ids.clamp(min=0), ids) for ids in stream), args, lambda: examine(model, tokenizer))
    tokenizer.save_pretrained(args.out)
    write_card(args, entry)


def write_card(args: argparse.Namespace, last: dict[str, float]) -> None:
    """The model card: what it is, how it was made, what it can do."""
    rows = "\n".join(f"| {k} | {v} |" for k, v in last.items() if k not in ("step", "seconds", "rate"))
    text = f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# atlas: the embedded model of SEAL

A Llama (4 layers × 256, 3.8M parameters, bf16) trained from scratch on an invented world, so that every fact it is later
asked about is provably new to it. It reads short encyclopedia passages, answers questions about them, and writes
self-edits of mixed quality. It knows 160 invented entities by heart, and nothing else: it is for experiments, not for use.

Made by `make atlas` (`tools/atlas/pretrain.py --steps {args.steps} --seed {args.seed}`) in {last["seconds"] / 60:.0f} minutes on
{platform.machine()} ({args.device}, {torch.get_num_threads()} threads), torch {torch.__version__}. The course of training is in `training_log.jsonl`.

| at the end of training | |
|---|---|
{rows}

*open*: the passage in view (fresh entities); *closed known*: the 160 entities, nothing in view; *closed fresh*: guessing.
"""
    (args.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
