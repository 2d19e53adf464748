"""Pretraining from scratch, as both embedded models are trained: Muon for the matrices, AdamW for embeddings
and norms, bf16 autocast, a learning rate that decays to nothing over the last part (copying in context comes
abruptly, and sharpens in the decay)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface, LlamaForCausalLM

from seal.lora.attention import plain_causal


def _plain(
    module: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    """Causal attention in bf16 by plain products: (B, H, T, D) → (B, T, H, D); rows are padded at the right,
    so no mask is needed."""
    b, h, t, d = q.shape
    corner = torch.full(
        (1, min(t, 256), min(t, 256)), -torch.inf, dtype=torch.bfloat16, device=q.device
    ).triu_(1)
    flat = ((q * d**-0.5).bfloat16(), k.bfloat16(), v.bfloat16())
    out: Tensor = plain_causal(*(x.flatten(0, 1) for x in flat), corner)
    return out.view(b, h, t, d).transpose(1, 2), None


AttentionInterface.register(
    "plain", _plain
)  # torch's kernel takes several times as long for its backward pass on a CPU


def arguments(description: str, out: Path, steps: int, tokens: int) -> argparse.ArgumentParser:
    """The flags that both scripts share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.01, help="Muon's learning rate")
    parser.add_argument(
        "--embed-lr", type=float, default=2e-3, help="AdamW's learning rate: embeddings, head and norms"
    )
    parser.add_argument(
        "--embed-init", type=float, default=0.5, help="standard deviation of the initial embeddings"
    )
    parser.add_argument("--every", type=int, default=250, help="steps between examinations")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop the run after so long: decay follows the clock"
    )
    parser.add_argument("--start", type=Path, help="a model folder to go on from, instead of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
"""Under ``torchrun --nproc-per-node 2`` each process takes its share of the documents on a core of its own:
with a model this small, two processes of one thread train faster than one of two."""


def _average_gradients(parameters: list[Tensor]) -> None:
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(grads)
    dist.all_reduce(flat)
    flat /= WORLD
    for grad, mean in zip(grads, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
        grad.copy_(mean)


def _agree(value: float) -> float:
    """The first process's value, for all: they must stop, and let the learning rate fall, together."""
    tensor = torch.tensor([value])
    dist.broadcast(tensor, 0)
    return float(tensor)


def train(
    model: LlamaForCausalLM,
    stream: Iterator[tuple[Tensor, Tensor]],
    args: argparse.Namespace,
    examine: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """Train on ``(ids, labels)`` batches, each (B, T) with -100 where no loss falls; save the model in bf16
    under ``args.out``.

    Returns:
        the last entry of the log: steps, tokens that carried loss, seconds, loss, and what ``examine`` found.
    """
    # Embeddings that start far apart stay told apart: a value can be copied before it is known what kind of
    # value it is.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=args.embed_init)
    if args.start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
    inner = {n for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("model.layers")}
    matrices = [p for n, p in model.named_parameters() if n in inner]
    others = [p for n, p in model.named_parameters() if n not in inner]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    if args.device == "cpu":
        model.config._attn_implementation = "plain"
    if WORLD > 1:
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    start, seen, step, done, recent = time.time(), 0, 0, 0.0, []
    entry: dict[str, float] = {}
    with (args.out / "training_log.jsonl").open("w") if RANK == 0 else Path(os.devnull).open("w") as log:
        while done < 1.0:
            ids, labels = (x.to(args.device) for x in next(stream))
            done = max(step / args.steps, (time.time() - start) / (60 * args.minutes))
            done = _agree(done) if WORLD > 1 else done
            rate = min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - done) / 0.45))
            for optimizer, base in zip(optimizers, (args.lr, args.embed_lr), strict=True):
                optimizer.param_groups[0]["lr"] = base * rate
            with torch.autocast(args.device, torch.bfloat16):
                loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            if WORLD > 1:
                _average_gradients(list(model.parameters()))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seen += WORLD * int((labels != -100).sum())
            recent.append(float(loss.detach()))
            step += 1
            if (step % args.every == 0 or done >= 1.0) and RANK == 0:
                model.eval()
                entry = {
                    "step": step,
                    "tokens": seen,
                    "seconds": round(time.time() - start),
                    "rate": round(rate, 3),
                }
                with torch.autocast(args.device, torch.bfloat16):
                    entry |= {"loss": round(sum(recent) / len(recent), 4)} | examine()
                model.train()
                recent = []
                print(json.dumps(entry), flush=True)
                log.write(json.dumps(entry) + "\n")
                log.flush()
                model.save_pretrained(args.out / "last")  # to look at while it trains
    if RANK == 0:
        shutil.rmtree(args.out / "last")
        model.to(torch.bfloat16).save_pretrained(args.out)
    return entry
