"""The weights in force: any Hugging Face causal LM, loaded, adapted, merged and saved."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from seal.models.lora import Adapter
from seal.models.memory import free_memory, must_fit, spread, weights_bytes
from seal.models.packing import Lines, chunked_loss, pack, rows_apart
from seal.models.tokens import Row
from seal.types import SealError

SHARE = 0.6
"""Of each device's free memory, what weights may take where a model is spread: adapters and activations need the rest (assumed)."""
EMBEDDED = ("atlas", "grids")
"""The models that ship with the package."""


class Policy:
    """A frozen model with its tokenizer. Training never touches ``model``; only :meth:`merge` changes its weights."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, bf16: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        for module in model.modules():  # evaluating on a CPU, bitsandbytes takes kernels that have no backward pass
            if type(module).__name__ == "Linear4bit":
                module.training = True
        self.tokenizer = tokenizer
        self.name = name
        self.runner = (
            copy.deepcopy(self.model).to(torch.bfloat16) if bf16 and self.model.dtype != torch.bfloat16 else self.model
        )
        """What computes: ``model`` itself, or its copy in bf16, so that merges add up in full precision."""
        self.served: Any = None
        """Who writes and answers in this process's place: something with ``complete(prompts, sampling, seeds, adapters)``, a :class:`~seal.types.Written` each; ``None``: nobody."""
        self.plain = True
        """Whether the model is a body with plain causal attention and then a linear head: then the fast path is right."""
        self.plain = self._is_plain()

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
        return self.tokenizer.chat_template is not None

    @property
    def context(self) -> int:
        """The longest row the model takes, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 2048))

    def clip_row(self, row: Row) -> Row:
        """A row cut to the model's context."""
        return Row(row.ids[: self.context], row.loss[: self.context])

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward, in the policy's precision."""
        return self.runner(**inputs)

    @contextmanager
    def losses(self, lines: Lines) -> Iterator[tuple[Tensor, Tensor]]:
        """The sum over lines of their mean loss, and the loss at every loss token: (K, T) lines → scalar, (M,).

        A context, within which gradients are to be taken: recomputed activations need the same attention again.
        """
        inputs = {"input_ids": lines.ids, "position_ids": lines.positions, "use_cache": False}
        if self.plain and max(stop - start for start, stop in lines.spans) <= self._window:
            with rows_apart(self.runner.config, lines):
                weight, bias = self._head
                there = weight.device
                hidden = self._body(**inputs).last_hidden_state.to(there)  # (K, T, H)
                at, targets, share = lines.at.to(there), lines.targets.to(there), lines.share.to(there)
                chunk = max(64, (1 << (20 if self.device.type == "cpu" else 27)) // len(weight))  # 4 MiB of logits, or 512
                total, each = chunked_loss(hidden.flatten(0, 1)[at], weight, bias, targets, share, chunk)
                yield total, each.to(self.device)
        else:
            logits = self.forward(**inputs).logits
            each = cross_entropy(logits.flatten(0, 1)[lines.at].float(), lines.targets, reduction="none")
            yield (each * lines.share).sum(), each.detach()

    @contextmanager
    def recomputing(self, on: bool = True) -> Iterator[None]:
        """While inside, activations are computed again in the backward pass instead of kept. For a training pass alone: a layer that
        recomputes ignores the KV cache, and what is generated meanwhile is garbage."""
        layers = [(m, m.gradient_checkpointing, m.training) for m in self._layers] if on else []
        try:
            for layer, _, _ in layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
                layer.training = True  # of the layer alone: transformers asks it, and no dropout inside follows
            yield
        finally:
            for layer, before, training in layers:
                layer.gradient_checkpointing, layer.training = before, training

    @property
    def _layers(self) -> list[GradientCheckpointingLayer]:
        return [m for m in self.runner.modules() if isinstance(m, GradientCheckpointingLayer)]

    @property
    def _body(self) -> Any:
        return self.runner.base_model

    @property
    def _head(self) -> tuple[Tensor, Tensor | None]:
        head: Any = self.runner.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    @property
    def _window(self) -> int:
        config = self.runner.config.get_text_config()
        sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min([int(s) for s in sizes if s] or [self.context])

    def _is_plain(self) -> bool:
        """Found out by trying: a few rows through the fast path, and each alone through the model's own forward. Models with
        capped scores, sinks or scaled logits take their own forward with a mask."""
        config = self.runner.config.get_text_config()
        if any(getattr(config, name, None) for name in ("final_logit_softcapping", "attn_logit_softcapping")):
            return False
        n = min(6, self.context)
        rows = [
            Row(tuple((7 * i + j) % config.vocab_size for j in range(n - i)), (False, *[True] * (n - i - 1))) for i in range(3)
        ]
        lines = pack([rows[:2], rows[2:]], self.device)
        with torch.no_grad():
            alone = [self.forward(input_ids=torch.tensor([r.ids], device=self.device)).logits[0, :-1] for r in rows]
            expected = cross_entropy(torch.cat(alone).float(), lines.targets, reduction="none")
            try:
                with self.losses(lines) as (_, found):
                    pass
            except (NotImplementedError, TypeError, AttributeError, ValueError):
                return False
        tolerance = 1e-3 if self.runner.dtype == torch.float32 else 0.1
        return bool(torch.allclose(expected, found, atol=tolerance, rtol=tolerance))

    @torch.no_grad()
    def merge(self, adapter: Adapter, weight: float = 1.0) -> None:
        """Add an adapter to the weights for good: W ← W + weight · scale · B A.

        Raises:
            SealError: the weights are quantised.
        """
        self.served = None  # who served these weights does not know the new ones
        for name, (a, b) in adapter.weights.items():
            w = self.model.get_submodule(name).weight
            if not w.is_floating_point():
                raise SealError("an adapter cannot be merged into 4-bit weights: load the model without quantize")
            update = weight * adapter.scale * (b @ a)
            w.copy_((w.float() + update.to(w.device)).to(w.dtype))
            self.runner.get_submodule(name).weight.copy_(w)

    def release(self) -> None:
        """Give the memory back, before another one is loaded. Nothing can be asked of it afterwards."""
        on_gpu = self.device.type == "cuda"
        self.model = self.runner = self.served = None
        gc.collect()  # what accelerate spread refers to itself
        if on_gpu:
            torch.cuda.empty_cache()

    def save(self, folder: Path) -> None:
        """Write a folder that :func:`load_policy`, and any ``from_pretrained``, reads."""
        try:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, most often
            raise OSError(str(error)) from error


def load_policy(
    name: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    bf16: bool | Literal["auto"] = False,
    threads: int | Literal["auto"] | None = None,
    quantize: str | None = None,
) -> Policy:
    """Load a causal LM by hub name or local folder; ``"atlas"`` is the embedded model.

    ``bf16="auto"`` computes in bf16 where the hardware multiplies it natively; ``threads="auto"`` takes the cores that this process
    may use, ``None`` leaves torch's choice. ``quantize="4bit"`` keeps the frozen weights in
    NF4 and computes in bf16. ``device="cuda*4"`` spreads the layers over four devices (accelerate's ``device_map``), for a model that one does not hold.

    Raises:
        SealError: there is no such model, or it cannot be read.
    """
    _check_device(device)
    if threads:
        torch.set_num_threads(usable_cores() if threads == "auto" else threads)
    where: str | Path = resources.files("seal.models") / str(name) if name in EMBEDDED else name  # type: ignore[assignment]
    if name in EMBEDDED and not Path(str(where)).is_dir():
        raise SealError(f"the model {name!r} is not in this package: run `make {name}` in the repository to train it")
    how: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantize:
        if find_spec("bitsandbytes") is None:
            raise SealError("4-bit weights need the package bitsandbytes: pip install 'seal-lm[4bit]'")
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        how = {"dtype": torch.bfloat16, "quantization_config": nf4, "device_map": {"": device}}
    kind, n_devices = spread(device)
    if n_devices > 1:
        if bf16 is True:
            raise SealError(
                f"bf16 over fp32 weights is a second copy, which {device} does not hold: take --model.dtype bfloat16"
            )
        if find_spec("accelerate") is None:
            raise SealError("a model over several devices needs the package accelerate: pip install accelerate")
        most = {i: int(SHARE * free_memory(torch.device(kind, i))) for i in range(n_devices)}
        how |= {"device_map": "auto", "max_memory": most}
    native = native_bf16(device) if bf16 == "auto" and n_devices == 1 else bool(bf16 is True)
    try:
        shape = AutoConfig.from_pretrained(where)
        must_fit(str(name), weights_bytes(shape, dtype, quantize, native and dtype == "float32"), device)
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, **how)
    except SealError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for what a folder can lack
        raise SealError(f"the model {str(name)!r} cannot be loaded: {_why(error, Path(where))}") from error
    if len(tokenizer) > (rows := model.get_input_embeddings().weight.shape[0]):
        raise SealError(
            f"the tokenizer of {str(name)!r} has {len(tokenizer)} tokens, its embedding only {rows}: they do not belong together"
        )
    elsewhere = {str(d) for d in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if n_devices > 1 and elsewhere:
        raise SealError(
            f"{str(name)!r} does not fit on {device} with room for training: part of it would lie on {elsewhere.pop()}"
        )
    if quantize or n_devices > 1:
        return Policy(model, tokenizer, str(name))
    return Policy(model.to(device), tokenizer, str(name), native)


def _why(error: BaseException, where: Path) -> str:
    """In words, from what the hub's client or transformers said."""
    first = " ".join(str(error).split())[:240]
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    kinds = {type(e).__name__ for e in chain}
    if where.is_dir():
        return f"it is a folder, but not a whole model: {first}"
    if "GatedRepoError" in kinds or "gated repo" in first:
        return "it is gated: accept its terms on its page of the hub, then log in with `hf auth login`"
    if "RepositoryNotFoundError" in kinds:
        return "the hub has no such model, or it is private and you are not logged in (`hf auth login`)"
    if "OfflineModeIsEnabled" in kinds:
        return "it is not in the local cache, and the hub may not be asked (HF_HUB_OFFLINE)"
    return f"neither a folder here nor reachable: {first}"


def must_match(adapter: Adapter, policy: Policy) -> None:
    """
    Raises:
        SealError: the adapter is of another model.
    """
    modules = dict(policy.runner.named_modules())
    for name, (a, b) in adapter.weights.items():
        module: Any = modules.get(name)
        wanted = (getattr(module, "in_features", 0), getattr(module, "out_features", 0))
        if wanted != (a.shape[1], len(b)):
            raise SealError(
                f"the adapter is not of the model {policy.name!r}: its layer {name} is {a.shape[1]} to {len(b)}, there {wanted[0]} to {wanted[1]}"
            )


def _check_device(name: str) -> None:
    """
    Raises:
        SealError: there is no such device on this machine.
    """
    whole, n_devices = spread(name)
    kind, _, number = whole.partition(":")
    if n_devices > 1 and whole != "cuda":
        raise SealError(f"only cuda can be spread (cuda*2), not {name!r}")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {
        "cpu": not number,
        "cuda": cuda >= n_devices and (not number or (number.isdigit() and int(number) < cuda)),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in there:
        raise SealError(f"no device is named {name!r}: say cpu, cuda, cuda:1, cuda*2 (over two) or mps")
    if not there[kind]:
        raise SealError(
            f"the device {name!r} is not on this machine" + (f" (it has {cuda} CUDA devices)" if kind == "cuda" else "")
        )


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity and its container's quota, without hyperthreads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for core in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        siblings.add(path.read_text("utf-8") if path.exists() else str(core))
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = (quota.read_text("utf-8").split() if quota.exists() else ("max", "1"))[:2]
    most = len(allowed) if limit == "max" else max(1, round(int(limit) / int(period)))
    return max(1, min(len(siblings), most))


def native_bf16(device: str) -> bool:
    """Whether a device multiplies bf16 matrices in hardware: elsewhere they are slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text("utf-8") if device == "cpu" and cpu.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
