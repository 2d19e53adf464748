"""K LoRA adapters on one frozen model, side by side in one forward and backward.

The model's weights are not changed: while slots are attached, every target ``nn.Linear`` adds each row's own low-rank
update.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seal.models.packing import Rectangle
from seal.types import Recipe, SealError


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter: for each adapted module's path, A (R, in) and B (out, R), in fp32 on the CPU."""

    rank: int
    alpha: float
    weights: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_modules(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Path → linear layer, in the model's order. ``all-linear`` is every ``nn.Linear`` but the output head.

    Raises:
        SealError: a name matches no ``nn.Linear`` of this model.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == "all-linear":
        if not linears:
            raise SealError(f"{type(model).__name__} has no nn.Linear layer to adapt (GPT-2's Conv1D is not supported)")
        return linears
    wanted = {targets} if isinstance(targets, str) else set(targets)
    found = {n: m for n, m in linears.items() if n in wanted or n.rsplit(".", 1)[-1] in wanted}
    missing = wanted - {n.rsplit(".", 1)[-1] for n in found} - set(found)
    if missing:
        known = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
        raise SealError(f"no linear layer is named {', '.join(sorted(missing))} in this model; it has: {known}")
    return found


def adapted_modules(model: nn.Module, recipe: Recipe) -> dict[str, nn.Linear]:
    """The layers that a recipe adapts: its targets, of its last layers where it says so (those whose path holds the highest numbers).

    Raises:
        SealError: a name matches no ``nn.Linear`` of this model.
    """
    found = target_modules(model, recipe.targets)
    if recipe.last_layers is None:
        return found
    numbers = {name: next((int(x) for x in name.split(".") if x.isdigit()), -1) for name in found}
    last = sorted({n for n in numbers.values() if n >= 0})[-recipe.last_layers :]
    return {name: module for name, module in found.items() if numbers[name] in last}


def init_adapter(modules: dict[str, nn.Linear], recipe: Recipe, seed: int) -> Adapter:
    """A fresh adapter, PEFT's way: A uniform in ±1/sqrt(in) (Kaiming with a = √5), B zero, so that nothing changes yet.

    Drawn on the CPU from the seed alone: the same on every device and whatever is trained beside it.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in modules.items():
        bound = 1 / math.sqrt(module.in_features)
        a = torch.empty(recipe.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        weights[name] = (a, torch.zeros(module.out_features, recipe.rank))
    return Adapter(recipe.rank, recipe.alpha, weights)


class Slots:
    """Room for K adapters of rank up to R on the same modules, stored flat: one fp32 row of ``flat`` (K, P) per adapter.

    Every A (R, in) and B (out, R) is a piece of that row, so optimiser, clipping and gradients see one vector per adapter
    whatever the number of modules. A smaller rank is padded with zeros, which stay zero: the gradient of a padded row of A
    is proportional to the zero column of B, and the other way round.
    """

    def __init__(self, modules: dict[str, nn.Linear], n_slots: int, rank: int, device: torch.device | str) -> None:
        self.modules = modules
        self.rank = rank
        self.scale = torch.zeros(n_slots, 1, 1, device=device)
        self.shapes = [((rank, m.in_features), (m.out_features, rank)) for m in modules.values()]
        self.sizes = [math.prod(shape) for pair in self.shapes for shape in pair]
        self.flat = torch.zeros(n_slots, sum(self.sizes), device=device)

    def __len__(self) -> int:
        return len(self.flat)

    def pieces(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(K', P) cut into each module's A (K', R, in) and B (K', out, R), without copying."""
        cut = iter(torch.split(flat, self.sizes, dim=1))
        return {
            n: (next(cut).view(-1, *a), next(cut).view(-1, *b)) for n, (a, b) in zip(self.modules, self.shapes, strict=True)
        }

    def flatten(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Gradients of what :meth:`attached` gave, as one fp32 (K', P); zero where there is none."""
        n_slots = next(len(g) for g in gradients if g is not None)
        flat = torch.empty(n_slots, self.flat.shape[1], device=self.flat.device)
        rows = [row for pair in self.pieces(flat).values() for row in pair]
        for row, gradient in zip(rows, gradients, strict=True):
            row.copy_(gradient) if gradient is not None else row.zero_()
        return flat

    @torch.no_grad()
    def put(self, slot: int, adapter: Adapter) -> None:
        """Place an adapter in a slot, over whatever was there. Modules that it does not adapt are left unchanged by it."""
        self.flat[slot] = 0
        self.scale[slot] = adapter.scale
        pieces = self.pieces(self.flat[slot : slot + 1])
        for name, (a, b) in adapter.weights.items():
            pieces[name][0][0, : adapter.rank] = a.to(self.flat.device)
            pieces[name][1][0, :, : adapter.rank] = b.to(self.flat.device)

    def trainable(self, adapter: Adapter, first: int, only_b: bool) -> Tensor:
        """Which numbers of a slot's row training may change, (P,): not those of the first ranks; with ``only_b`` of B alone."""
        flat = torch.zeros(1, self.flat.shape[1], device=self.flat.device)
        pieces = self.pieces(flat)
        for name in adapter.weights:
            pieces[name][0][0, first : adapter.rank] = 0.0 if only_b else 1.0
            pieces[name][1][0, :, first : adapter.rank] = 1.0
        return flat[0]

    @torch.no_grad()
    def take(self, slot: int, like: Adapter) -> Adapter:
        """A copy of a slot's adapter, of the rank and on the modules of ``like``."""
        pieces = self.pieces(self.flat[slot : slot + 1].cpu())
        weights = {
            n: (pieces[n][0][0, : like.rank].clone(), pieces[n][1][0, :, : like.rank].contiguous().clone())
            for n in like.weights
        }
        return Adapter(like.rank, like.alpha, weights)

    @contextmanager
    def attached(
        self,
        dtype: torch.dtype,
        chosen: Sequence[int] | None = None,
        rectangle: Rectangle | None = None,
        grad: bool = False,
    ) -> Iterator[list[Tensor]]:
        """While inside, every token that goes through the model meets the adapter of its slot.

        The tokens stand slot by slot, for the K' ``chosen`` slots (all, unless said): in the lines of ``rectangle``, or as many
        for each. Gives the chosen weights, in the precision of the computation, that gradients are taken of: A and B of each
        module in turn.
        """
        chosen = range(len(self)) if chosen is None else chosen
        work = torch.empty(len(chosen), self.flat.shape[1], dtype=dtype, device=self.flat.device)
        torch._foreach_copy_(list(work.unbind()), [self.flat[slot] for slot in chosen])
        scale = torch.stack([self.scale[slot] for slot in chosen]).to(dtype)
        pieces = {  # each where its module is, which for a model on several devices is not where the slots are
            n: (_leaf(a, self.modules[n], grad), _leaf(b, self.modules[n], grad)) for n, (a, b) in self.pieces(work).items()
        }
        inputs = _Inputs(len(chosen), rectangle)
        undo = [_adapt(module, *pieces[name], scale.to(module.weight.device), inputs) for name, module in self.modules.items()]
        try:
            yield [weight for pair in pieces.values() for weight in pair]
        finally:
            for restore in undo:
                restore()


def _leaf(weight: Tensor, module: nn.Linear, grad: bool) -> Tensor:
    return weight.to(module.weight.device).contiguous().requires_grad_(grad)


class _Inputs:
    """What goes into the adapted layers, slot by slot: (…, in) → (K, T, in). Layers with one input (q, k, v) share the copy."""

    def __init__(self, n_slots: int, rectangle: Rectangle | None) -> None:
        self.n_slots, self.rectangle = n_slots, rectangle
        self._last: tuple[Tensor, Tensor] | None = None

    def on(self, device: torch.device) -> Rectangle | None:
        """The rectangle, there."""
        if self.rectangle is not None:
            self.rectangle = self.rectangle.on(device)  # layers of one device follow each other
        return self.rectangle

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rectangle = self.on(x.device)
        if rectangle is None:
            return flat.view(self.n_slots, -1, x.shape[-1])
        if self._last is None or self._last[0] is not x:
            padded = flat.index_select(0, rectangle.index).index_fill_(0, rectangle.holes, 0)
            self._last = x, padded.view(*rectangle.shape, -1)
        return self._last[1]


def _adapt(module: nn.Linear, a: Tensor, b: Tensor, scale: Tensor, inputs: _Inputs) -> Callable[[], None]:
    """Make a linear layer add each token's own update; the returned function makes it what it was."""
    if type(module) is nn.Linear and "forward" not in module.__dict__:

        def forward(x: Tensor) -> Any:
            return _adapted(x, inputs.of(x), module.weight, module.bias, a, b, scale, inputs.on(x.device))

        module.__dict__["forward"] = forward
        return lambda: module.__dict__.pop("forward") and None

    def add_update(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """For a quantised layer, or one that something else has wrapped: the update alone, on top of its output."""
        x = args[0].to(a.dtype)
        update: Tensor = _adapted(x, inputs.of(x), None, None, a, b, scale, inputs.on(x.device))
        return out + update.to(out.dtype)

    return module.register_forward_hook(add_update).remove


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + bias + scale · (x A^T) B^T with W frozen, or without the first two: x (…, in), A (K, R, in), B (K, out, R).

    ``side`` (K, T, in) is x slot by slot, with zeros where a slot has no token: nothing that is padded reaches a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, side: Tensor, weight: Tensor | None, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor,
        rectangle: Rectangle | None,
    ) -> Tensor:  # fmt: skip
        tokens = x.reshape(-1, a.shape[2])  # (N, in)
        low = torch.bmm(side, a.mT).mul_(scale)  # (K, T, R)
        out = nn.functional.linear(tokens, weight, bias) if weight is not None else tokens.new_zeros(len(tokens), b.shape[1])
        _add(out, low, b.mT, rectangle)
        ctx.rectangle, ctx.shape = rectangle, x.shape
        ctx.save_for_backward(side, weight, a, b, scale, low)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        side, weight, a, b, scale, low = ctx.saved_tensors
        grad = grad.reshape(-1, b.shape[1])  # (N, out)
        mine = grad if ctx.rectangle is None else grad.index_select(0, ctx.rectangle.index)
        mine = mine.view(*side.shape[:2], -1)  # (K, T, out); what stands in holes meets the zeros of ``side``
        low_grad = torch.bmm(mine, b).mul_(scale)  # (K, T, R)
        grad_b = torch.bmm(mine.mT, low)
        grad_a = torch.bmm(low_grad.mT, side)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.mm(weight) if weight is not None else grad.new_zeros(len(grad), a.shape[2])
            _add(grad_x, low_grad, a, ctx.rectangle)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, None, grad_a, grad_b, None, None


def _add(out: Tensor, low: Tensor, factor: Tensor, rectangle: Rectangle | None) -> None:
    """out (N, …) += low (K, T, R) · factor (K, R, …), each token's own."""
    update = torch.bmm(low, factor).flatten(0, 1)
    if rectangle is None:
        out += update
    else:
        out[: len(rectangle.back)] += update.index_select(0, rectangle.back)


_adapted: Any = _AdaptedLinear.apply


# ------------------------------------------------------------------------------------------------------- PEFT's folder


def save_peft(adapter: Adapter, folder: Path, base_model: str) -> None:
    """Write PEFT's folder (``adapter_config.json``, ``adapter_model.safetensors``)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    try:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, most often
        raise OSError(str(error)) from error
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({n.rsplit(".", 1)[-1] for n in adapter.weights}),
    }
    numbers = {int(x) for n in adapter.weights for x in n.split(".") if x.isdigit()}
    if numbers and min(numbers) > 0:  # the last layers alone
        config["layers_to_transform"] = sorted(numbers)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_many(adapters: Sequence[Adapter], path: Path) -> None:
    """Several adapters in one file, for ourselves."""
    tensors = {
        f"{k}/{n}/{'AB'[i]}": t.contiguous()
        for k, x in enumerate(adapters)
        for n, pair in x.weights.items()
        for i, t in enumerate(pair)
    }
    save_file(tensors, path, metadata={"adapters": json.dumps([[x.rank, x.alpha] for x in adapters])})


def load_many(path: Path) -> list[Adapter]:
    """What :func:`save_many` wrote, to the bit."""
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["adapters"])
        weights: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in shapes]
        for key in file.keys():  # noqa: SIM118
            k, name, part = key.split("/")
            if part == "A":
                weights[int(k)][name] = (file.get_tensor(key), file.get_tensor(f"{k}/{name}/B"))
    return [Adapter(rank, alpha, w) for (rank, alpha), w in zip(shapes, weights, strict=True)]


def load_peft(folder: Path) -> Adapter:
    """Read a LoRA adapter from PEFT's folder.

    Raises:
        SealError: a file is missing, or the adapter is of a kind other than plain LoRA.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        if not isinstance(config, dict):
            raise TypeError("adapter_config.json holds no settings")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise SealError(f"{folder} is not an adapter folder in PEFT's format: {error}") from error
    unsupported = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(k)]
    unsupported += sorted({k for k in tensors if ".lora_A." not in k and ".lora_B." not in k})[:2]
    if config.get("peft_type") != "LORA" or unsupported:
        raise SealError(f"{folder} is not a plain LoRA adapter ({', '.join(unsupported) or config.get('peft_type')})")
    weights = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[name] = (a.float(), tensors[key.replace(".lora_A.", ".lora_B.")].float())
    return Adapter(int(config["r"]), float(config["lora_alpha"]), weights)
