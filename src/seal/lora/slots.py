"""K LoRA adapters on one frozen model, side by side in one forward and backward.

The model's weights are not changed: while slots are attached, every target ``nn.Linear`` adds each row's own
low-rank update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seal.lora.adapter import Adapter
from seal.lora.packing import Rectangle
from seal.lora.thin import thin_linear


class Slots:
    """Room for K adapters of rank up to R on the same modules, stored flat: one fp32 row of ``flat`` (K, P)
    per adapter.

    Every A (R, in) and B (out, R) is a piece of that row, so optimiser, clipping and gradients see one vector
    per adapter whatever the number of modules. A smaller rank is padded with zeros, which stay zero: the
    gradient of a padded row of A is proportional to the zero column of B, and the other way round.
    """

    def __init__(
        self, modules: dict[str, nn.Linear], n_slots: int, rank: int, device: torch.device | str
    ) -> None:
        self.modules = modules
        self.rank = rank
        self.scale = torch.zeros(n_slots, 1, 1, device=device)
        self.shapes = [((rank, m.in_features), (m.out_features, rank)) for m in modules.values()]
        self.sizes = [math.prod(shape) for pair in self.shapes for shape in pair]
        self.flat = torch.zeros(n_slots, sum(self.sizes), device=device)

    def __len__(self) -> int:
        return len(self.flat)

    def pieces(self, flat: Float[Tensor, "K P"]) -> dict[str, tuple[Tensor, Tensor]]:
        """(K', P) cut into each module's A (K', R, in) and B (K', out, R), without copying."""
        cut = iter(torch.split(flat, self.sizes, dim=1))
        return {
            n: (next(cut).view(-1, *a), next(cut).view(-1, *b))
            for n, (a, b) in zip(self.modules, self.shapes, strict=True)
        }

    def flatten(self, gradients: Sequence[Tensor | None]) -> Float[Tensor, "K P"]:
        """Gradients of what :meth:`attached` gave, as one fp32 (K', P); zero where there is none."""
        n_slots = next(len(g) for g in gradients if g is not None)
        flat = torch.empty(n_slots, self.flat.shape[1], device=self.flat.device)
        rows = [row for pair in self.pieces(flat).values() for row in pair]
        for row, gradient in zip(rows, gradients, strict=True):
            row.copy_(gradient) if gradient is not None else row.zero_()
        return flat

    @torch.no_grad()
    def put(self, slot: int, adapter: Adapter) -> None:
        """Place an adapter in a slot, over whatever was there. Modules that it does not adapt are left
        unchanged by it."""
        self.flat[slot] = 0
        self.scale[slot] = adapter.scale
        pieces = self.pieces(self.flat[slot : slot + 1])
        for name, (a, b) in adapter.weights.items():
            pieces[name][0][0, : adapter.rank] = a.to(self.flat.device)
            pieces[name][1][0, :, : adapter.rank] = b.to(self.flat.device)

    def trainable(self, adapter: Adapter, first: int, only_b: bool) -> Float[Tensor, " P"]:
        """Which numbers of a slot's row training may change, (P,): not those of the first ranks; with
        ``only_b`` of B alone."""
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

        The tokens stand slot by slot, for the K' ``chosen`` slots (all, unless said): in the lines of
        ``rectangle``, or as many for each. Gives the chosen weights, in the precision of the computation,
        that gradients are taken of: A and B of each module in turn.
        """
        chosen = range(len(self)) if chosen is None else chosen
        work = torch.empty(len(chosen), self.flat.shape[1], dtype=dtype, device=self.flat.device)
        torch._foreach_copy_(list(work.unbind()), [self.flat[slot] for slot in chosen])
        scale = torch.stack([self.scale[slot] for slot in chosen]).to(dtype)
        # each where its module is, which for a model on several devices is not where the slots are
        pieces = {
            n: (_leaf(a, self.modules[n], grad), _leaf(b, self.modules[n], grad))
            for n, (a, b) in self.pieces(work).items()
        }
        inputs = _Inputs(len(chosen), rectangle)
        undo = [
            _adapt(module, *pieces[name], scale.to(module.weight.device), inputs)
            for name, module in self.modules.items()
        ]
        try:
            yield [weight for pair in pieces.values() for weight in pair]
        finally:
            for restore in undo:
                restore()


def slots_of(model: nn.Module, adapters: Sequence[Adapter | None], device: torch.device) -> Slots | None:
    """Slots holding these adapters (an empty slot changes nothing), or ``None`` when there is none to
    hold."""
    real = [a for a in adapters if a is not None]
    if not real:
        return None
    modules: dict[str, Any] = {n: model.get_submodule(n) for a in real for n in a.weights}
    room = Slots(modules, len(adapters), max(a.rank for a in real), device)
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            room.put(slot, adapter)
    return room


def _leaf(weight: Tensor, module: nn.Linear, grad: bool) -> Tensor:
    """A slot's weights as their layer computes: some models keep single layers in fp32."""
    own = module.weight.dtype
    exact = own if type(module) is nn.Linear and own.is_floating_point else weight.dtype
    return weight.to(module.weight.device, exact).contiguous().requires_grad_(grad)


class _Inputs:
    """What goes into the adapted layers, slot by slot: (…, in) → (K, T, in). Layers with one input (q, k, v)
    share the copy."""

    def __init__(self, n_slots: int, rectangle: Rectangle | None) -> None:
        self.n_slots, self.rectangle = n_slots, rectangle
        self._last: tuple[Tensor, Tensor] | None = None

    def on(self, device: torch.device) -> Rectangle | None:
        """The rectangle, there."""
        if self.rectangle is not None:
            self.rectangle = self.rectangle.on(device)  # layers of one device follow each other
        return self.rectangle

    @torch.no_grad()
    def of(self, x: Float[Tensor, "*any i"]) -> Float[Tensor, "K T i"]:
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
        """For a quantised layer, or one that something else has wrapped: the update alone, on top of its
        output."""
        x = args[0].to(a.dtype)
        update: Tensor = _adapted(x, inputs.of(x), None, None, a, b, scale, inputs.on(x.device))
        return out + update.to(out.dtype)

    return module.register_forward_hook(add_update).remove


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + bias + scale · (x A^T) B^T with W frozen, or without the first two: x (…, in), A (K, R, in), B
    (K, out, R).

    ``side`` (K, T, in) is x slot by slot, with zeros where a slot has no token: nothing that is padded
    reaches a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*any i"],
        side: Float[Tensor, "K T i"],
        weight: Float[Tensor, "o i"] | None,
        bias: Float[Tensor, " o"] | None,
        a: Float[Tensor, "K R i"],
        b: Float[Tensor, "K o R"],
        scale: Float[Tensor, "K 1 1"],
        rectangle: Rectangle | None,
    ) -> Float[Tensor, "*any o"]:
        tokens = x.reshape(-1, a.shape[2])  # (N, in)
        low = torch.bmm(side, a.mT).mul_(scale)  # (K, T, R)
        product = nn.functional.linear if any(ctx.needs_input_grad) else thin_linear
        out = (
            product(tokens, weight, bias) if weight is not None else tokens.new_zeros(len(tokens), b.shape[1])
        )
        _add(out, low, b.mT, rectangle)
        ctx.rectangle, ctx.shape = rectangle, x.shape
        ctx.save_for_backward(side, weight, a, b, scale, low)
        # not a view of its own: a model may change what a layer gives in place (clipped queries)
        whole: Tensor = torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[-1]])
        return whole

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


def _add(
    out: Float[Tensor, "N F"],
    low: Float[Tensor, "K T R"],
    factor: Float[Tensor, "K R F"],
    rectangle: Rectangle | None,
) -> None:
    """out (N, …) += low (K, T, R) · factor (K, R, …), each token's own."""
    update = torch.bmm(low, factor).flatten(0, 1)
    if rectangle is None:
        out += update
    else:
        out[: len(rectangle.back)] += update.index_select(0, rectangle.back)


_adapted: Any = _AdaptedLinear.apply
