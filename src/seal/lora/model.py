"""The frozen weights in force, and what can be computed on them: any Hugging Face causal LM."""

from __future__ import annotations

import copy
import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from seal.lora.adapter import Adapter, join
from seal.lora.attention import rows_apart
from seal.lora.chat import conventions_of, ends_of
from seal.lora.loss import chunked_loss, divergence_from
from seal.lora.packing import Lines, beside, pack
from seal.lora.probe import Nature, must_compute, nature_of, windows
from seal.lora.records import LoraError, ModelSpec
from seal.lora.stack import laid_over, merge_into
from seal.lora.tokens import Row


class Model:
    """Frozen weights with their tokenizer, and a stack of adapters over them (or none).

    Nothing ever changes the weights. A policy is the same weights under another stack (:meth:`with_stack`):
    it shares them, and costs what its stack does.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, bf16: bool = False
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        for (
            module
        ) in model.modules():  # evaluating on a CPU, bitsandbytes takes kernels that have no backward pass
            if type(module).__name__ == "Linear4bit":
                module.training = True
        self.tokenizer = tokenizer
        self.conventions = conventions_of(tokenizer, ends_of(model))
        """How it is asked, and how what it writes begins and ends."""
        self.name = name
        """What it was asked for by."""
        self.base_name = name
        """Which weights these are, without their stack."""
        self.bare: Any = (
            copy.deepcopy(self.model).to(torch.bfloat16)
            if bf16 and self.model.dtype != torch.bfloat16
            else self.model
        )
        """What computes without a stack: ``model`` itself, or its copy in bf16."""
        self.stack: Adapter | None = None
        """What lies over the weights, joined into one adapter."""
        self.runner: Any = self.bare
        """What computes: the weights and the stack."""
        self.spec: ModelSpec | None = None
        """What it was loaded from; ``None``: it lies nowhere on disk as it is."""
        self.served: Any = None
        """Who writes and answers in this process's place: something with ``complete(prompts, sampling, seeds,
        adapters, beneath)``, a :class:`~seal.lora.records.Written` each; ``None``: nobody."""
        self._fingerprint: dict[str, str] = {}
        self.nature = Nature()
        """How it may be computed with, found out by trying."""
        self.runner = self.model  # in the weights' own precision, where rounding hides least
        self.nature = nature_of(self)
        self.runner = self.bare
        if self.bare is not self.model:
            must_compute(self)

    @property
    def device(self) -> torch.device:
        """Where what goes in is put; of several devices, that of the embedding."""
        return torch.device(self.runner.get_input_embeddings().weight.device)

    @property
    def devices(self) -> list[torch.device]:
        """All that hold a part of the model."""
        return list(dict.fromkeys(p.device for p in self.runner.parameters()))

    @property
    def chat(self) -> bool:
        """Whether prompts go through a chat template."""
        return self.conventions.chat

    @property
    def context(self) -> int:
        """The longest row the model takes, in tokens."""
        return context_of(self.model.config)

    @property
    def vocabulary(self) -> int:
        """Tokens there are."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def window(self) -> int:
        """The longest row that every layer sees all of: longer ones are not packed."""
        return min([self.context, *windows(self.model.config)])

    def pack(self, batches: Sequence[Sequence[Row]]) -> Lines:
        """Rows on the device, a line for each batch: in one sequence where the model computes them rightly
        so, else side by side.

        Raises:
            LoraError: a row is longer than the model's context.
        """
        longest = max(len(row.ids) for batch in batches for row in batch)
        if longest > self.context:
            raise LoraError(
                f"a row of {longest} tokens does not fit the {self.context} positions of {self.name!r}"
            )
        if self.nature.packs and longest <= self.window:
            return pack(batches, self.device)
        return beside(batches, self.device, self.context)

    def tokens_of(self, batches: Sequence[Sequence[Row]]) -> int:
        """Tokens that :meth:`pack` makes of these rows: theirs, or as many as the longest has for each."""
        lengths = [len(row.ids) for batch in batches for row in batch]
        if self.nature.packs and max(lengths) <= self.window:
            return sum(lengths)
        return len(batches) * max(map(len, batches)) * max(lengths)

    def fingerprint(self) -> dict[str, str]:
        """A hash of the frozen weights, without reading them all: some numbers of each, rounded to bf16.
        ``outside``: of what no quantisation touches; ``weights``: of everything, where nothing is
        quantised."""
        if not self._fingerprint:
            self._fingerprint.update(fingerprint_of(self.model))
        return dict(self._fingerprint)

    def clip_row(self, row: Row) -> Row:
        """A row cut to the model's context."""
        return Row(row.ids[: self.context], row.loss[: self.context])

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward, in the policy's precision."""
        return self.runner(**inputs)

    @contextmanager
    def losses(self, lines: Lines) -> Iterator[tuple[Tensor, Tensor]]:
        """The sum over lines of their mean loss, and the loss at every loss token: (K, T) lines → scalar,
        (M,).

        A context, within which gradients are to be taken: recomputed activations need the same attention
        again.
        """
        with self._in_force(lines) as inputs:
            if self._plain_head:
                weight, bias = self._head
                there = weight.device
                hidden = self._body(**inputs).last_hidden_state.to(weight)  # (b, n, H)
                at, targets, share = lines.at.to(there), lines.targets.to(there), lines.share.to(there)
                chunk = max(
                    64, (1 << (20 if self.device.type == "cpu" else 27)) // len(weight)
                )  # 4 MiB of logits, or 512
                soft = lines.soft and lines.soft.on(there)
                total, each = chunked_loss(
                    hidden.flatten(0, 1)[at], weight, bias, targets, share, chunk, soft
                )
                yield total, each.to(self.device)
                return
            logits = self.forward(**inputs).logits.flatten(0, 1)[lines.at].float()
            each = cross_entropy(logits, lines.targets, reduction="none")
            if lines.soft:
                mine = logits.log_softmax(-1).gather(1, lines.soft.ids)
                kl, _, _ = divergence_from(lines.soft.logs, mine)
                each = lines.soft.ordinary * each + lines.soft.weight * kl
            yield (each * lines.share).sum(), each.detach()

    @contextmanager
    def _in_force(self, lines: Lines) -> Iterator[dict[str, Any]]:
        """What goes into the model; meanwhile its attention keeps the rows of one sequence apart."""
        inputs = {"input_ids": lines.ids, "use_cache": False}
        if lines.beside:  # as it would read each alone: positions are its own matter
            yield inputs
        elif not self.nature.packs:
            raise ValueError(f"rows of {self.name!r} cannot stand in one sequence: pack them by Model.pack")
        else:
            with rows_apart(self.runner.config, lines):
                yield {**inputs, "position_ids": lines.positions}

    @torch.no_grad()
    def likeliest(self, lines: Lines, top: int) -> tuple[Tensor, Tensor]:
        """The likeliest tokens at the M places of some lines, and their log-probabilities: (M, top) each."""
        found = []
        with self._in_force(lines) as inputs:
            if self._plain_head:
                weight, bias = self._head
                hidden = self._body(**inputs).last_hidden_state.to(weight).flatten(0, 1)
                for at in torch.split(lines.at.to(weight.device), 256):
                    logs = linear(hidden[at], weight, bias).float().log_softmax(-1)
                    found.append(logs.topk(top))
            else:
                logs = self.forward(**inputs).logits.flatten(0, 1)[lines.at].float().log_softmax(-1)
                found.append(logs.topk(top))
        return torch.cat([x.indices for x in found]), torch.cat([x.values for x in found])

    @contextmanager
    def recomputing(self, on: bool = True) -> Iterator[None]:
        """While inside, activations are computed again in the backward pass instead of kept. For a training
        pass alone: a layer that recomputes ignores the KV cache, and what is generated meanwhile is
        garbage."""
        # not by transformers' own switch: that asks for the training mode, and with it comes dropout
        layers = [(m.__dict__, m.__dict__.get("forward"), m.forward) for m in self._layers] if on else []
        try:
            for own, _, forward in layers:
                own["forward"] = partial(checkpoint, forward, use_reentrant=False)
            yield
        finally:
            for own, before, _ in layers:
                own.pop("forward")
                if before is not None:  # what accelerate put there
                    own["forward"] = before

    @property
    def _layers(self) -> list[GradientCheckpointingLayer]:
        return [m for m in self.runner.modules() if isinstance(m, GradientCheckpointingLayer)]

    @property
    def _body(self) -> Any:
        return self.runner.base_model

    @property
    def _plain_head(self) -> bool:
        """Whether logits may be taken from the head's weight: not where an adapter lies on the head itself."""
        head: Any = self.runner.get_output_embeddings()
        return self.nature.linear_head and "forward" not in head.__dict__ and not head._forward_hooks

    @property
    def _head(self) -> tuple[Tensor, Tensor | None]:
        head: Any = self.runner.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def with_stack(self, stack: Adapter | None) -> Model:
        """The same weights under another stack, or bare. Weights and engine are shared, and neither notices.

        Raises:
            LoraError: the stack is of another model.
        """
        other = copy.copy(self)
        other.stack, other.runner, other.spec = stack, self.bare, None
        if stack is None:
            other.spec = self.spec and self.spec.model_copy(update={"adapter": None})
        else:
            must_match(stack, self)
            heard = {n: ab for n, ab in stack.weights.items() if n not in self.nature.unheard}
            other.runner = laid_over(self.bare, self.model, replace(stack, weights=heard))
        return other

    def plus(self, adapter: Adapter) -> Model:
        """The same with one adapter more on the stack."""
        return self.with_stack(join(self.stack, adapter))

    def merged(self) -> tuple[PreTrainedModel, float]:
        """Whole weights of their own, with the stack merged in: W + scale · B A.

        Returns:
            the weights, and the share of the stack that arrived in them: 1 in fp32; 16-bit weights round most
            of a small update away.

        Raises:
            LoraError: the weights are quantised.
        """
        whole = copy.deepcopy(self.model)
        if self.stack is None:
            return whole, 1.0
        heard = {n: ab for n, ab in self.stack.weights.items() if n not in self.nature.unheard}
        must_not_share_head(self.stack, self.model)
        return whole, merge_into(whole, replace(self.stack, weights=heard))

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back, before another one is loaded. Nothing can be asked of it afterwards."""
        if self.runner is None:
            return
        on_gpu = self.device.type == "cuda"
        self.model = self.bare = self.runner = self.served = None
        gc.collect()  # what accelerate spread refers to itself
        if on_gpu:
            torch.cuda.empty_cache()

    def save(self, folder: Path) -> float:
        """Write whole weights, with the stack merged in: a folder that :func:`~seal.lora.load.load_model`,
        and any ``from_pretrained``, reads. The share of the stack that arrived (:meth:`merged`)."""
        whole, arrived = self.merged() if self.stack else (self.model, 1.0)
        try:
            whole.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, most often
            raise OSError(str(error)) from error
        return arrived


@torch.no_grad()
def fingerprint_of(weights: Any) -> dict[str, str]:
    """A hash of a model's parameters: their names, shapes, and up to 64 numbers of each in bf16 (two loadings
    of one checkpoint agree in any precision)."""
    whole, outside = hashlib.sha256(), hashlib.sha256()
    linear = {f"{n}.weight" for n, m in weights.named_modules() if isinstance(m, torch.nn.Linear)}
    quantised = False
    for name, p in weights.named_parameters():
        if not p.is_floating_point():
            quantised = True
            continue
        flat = p.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 64)][:64].to("cpu", torch.bfloat16).float()
        for hashed in (whole,) if name in linear else (whole, outside):
            hashed.update(f"{name} {tuple(p.shape)} ".encode() + some.numpy().tobytes())
    found = {"outside": outside.hexdigest()[:16]}
    return found if quantised else {**found, "weights": whole.hexdigest()[:16]}


def context_of(config: PretrainedConfig) -> int:
    """The longest row that a model of this config takes, in tokens. Where positions mean something else from
    some length on, that length: "longrope" changes those that came before, and a row in the making with them.
    """
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or 2048)
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
        longest = min(longest, int(rope.get("original_max_position_embeddings") or longest))
    return longest


def must_not_share_head(adapter: Adapter, weights: Any) -> None:
    """
    Raises:
        LoraError: the adapter lies on the output head, and its weight is the embedding's too: merged, it would change
            what goes in.
    """
    head, embedding = weights.get_output_embeddings(), weights.get_input_embeddings()
    named = {n for n, m in weights.named_modules() if m is head}
    if named & adapter.weights.keys() and head.weight is embedding.weight:
        raise LoraError(
            "the adapter changes the output head, whose weight is the embedding's too: merged it would change both; keep "
            "it as an adapter in PEFT's format"
        )


def must_match(adapter: Adapter, model: Model) -> None:
    """
    Raises:
        LoraError: the adapter is of another model.
    """
    if adapter.base:
        mine = model.fingerprint()
        both = next((k for k in ("weights", "outside") if k in adapter.base and k in mine), None)
        if both and adapter.base[both] != mine[both]:
            raise LoraError(
                f"the adapter is of other weights (hash {adapter.base[both]}) than those of {model.name!r} "
                f"({mine[both]}): ask the model that it was trained on"
            )
    modules = dict(model.bare.named_modules())
    for name, (a, b) in adapter.weights.items():
        module: Any = modules.get(name)
        wanted = (getattr(module, "in_features", 0), getattr(module, "out_features", 0))
        if wanted != (a.shape[1], len(b)):
            raise LoraError(
                f"the adapter is not of the model {model.name!r}: its layer {name} is {a.shape[1]} to "
                f"{len(b)}, there {wanted[0]} to {wanted[1]}"
            )
