"""Attention row by row over a flat sequence: what the rows cost, where a mask over N tokens costs N²."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from seal.lora.packing import Ints, Lines, of_menu, send

# -------------------------------------------------------------------------------------- attention, row by row

ROWS = "seal_rows"
"""The name under which transformers finds :func:`_rows_attention`."""


class _Rows:
    """The rows of a step sorted into rectangles of like width, and the way there and back: indices for x (N ·
    H, D)."""

    def __init__(self, lines: Lines) -> None:
        self.n = lines.ids.numel()
        self.longest = max(stop - start for start, stop in lines.spans)
        self.shapes: list[tuple[int, int]] = []  # rows, width
        self._parts: list[
            tuple[Ints, NDArray[np.bool_]]
        ] = []  # where each place comes from, and whether it is a real token
        rest = sorted(lines.spans, key=lambda s: s[0] - s[1])  # longest first
        while rest:
            width = rest[0][1] - rest[0][0]
            mine = [s for s in rest if s[1] - s[0] > width * 2 // 3 or width <= 16]
            rest = rest[len(mine) :]
            mine += [(mine[0][0], mine[0][0])] * (of_menu(len(mine)) - len(mine))  # rows of nothing but holes
            starts = np.array([s[0] for s in mine])[:, None]
            lengths = np.array([s[1] - s[0] for s in mine])[:, None]
            width = of_menu(width, 16)
            column = np.arange(width)[None, :]
            # a hole repeats its row's last token: finite, and nothing real attends to it
            self._parts.append((starts + np.minimum(column, np.maximum(lengths - 1, 0)), column < lengths))
            self.shapes.append((len(mine), width))
        self._indices: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, torch.device], Tensor] = {}

    def indices(self, heads: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For so many heads: (rows · H · width) places in the lines; which of them are holes; and the way
        back, (N · H), with those that no row covers."""
        if (heads, device) not in self._indices:
            head = np.arange(heads)[None, :, None]
            index = np.concatenate([(part[:, None, :] * heads + head).reshape(-1) for part, _ in self._parts])
            real = np.concatenate(
                [
                    np.broadcast_to(r[:, None, :], (len(r), heads, r.shape[1])).reshape(-1)
                    for _, r in self._parts
                ]
            )
            back = np.full(self.n * heads, -1, np.int64)
            back[index[real]] = np.flatnonzero(real)
            bare = np.flatnonzero(back < 0)
            back[bare] = 0
            self._indices[heads, device] = tuple(
                send(x, device) for x in (index, np.flatnonzero(~real), back, bare)
            )  # type: ignore[assignment]
        return self._indices[heads, device]

    def mask(self, width: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 W W"]:
        """Causal, additive, (1, width, width)."""
        if (width, device) not in self._masks:
            self._masks[width, device] = torch.full(
                (1, width, width), -torch.inf, dtype=dtype, device=device
            ).triu_(1)
        return self._masks[width, device]


_rows: list[_Rows] = []  # of the forward that is running; see `rows_apart`


@contextmanager
def rows_apart(config: PretrainedConfig, lines: Lines) -> Iterator[None]:
    """While inside, attention is computed row by row, without a mask over the whole: rows of like width in
    one causal call.

    Costs what the rows cost, where a mask over N tokens costs N².
    """
    before = config._attn_implementation
    _rows[:] = [_Rows(lines)]
    config._attn_implementation = ROWS
    try:
        yield
    finally:
        config._attn_implementation = before
        _rows.clear()


class _Gather(torch.autograd.Function):
    """``x[index]``, where every token is taken once and what else is taken is a hole.

    The gradient is then a gather as well (``back``), with zeros for places that nothing came from: no
    scatter-add.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "n D"],
        index: Int[Tensor, " m"],
        back: Int[Tensor, " n"],
        bare: Int[Tensor, " b"],
    ) -> Float[Tensor, "m D"]:
        ctx.save_for_backward(back, bare)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back, bare = ctx.saved_tensors
        return grad.index_select(0, back).index_fill_(0, bare, 0), None, None, None


_gather: Any = _Gather.apply


def _rows_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 G N D"],
    value: Float[Tensor, "1 G N E"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "1 N H E"], None]:
    """Causal attention within each row: query (1, H, N, D), key and value (1, H', N, D) → (1, N, H, D)."""
    (rows,) = _rows
    window = options.get("sliding_window")
    if (
        options.get("s_aux") is not None
        or options.get("softcap") is not None
        or (window and window < rows.longest)
    ):
        raise NotImplementedError("attention with sinks, capped scores or a window shorter than a row")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    apart = [_apart(x, rows) for x in (query, key, value)]
    out = [
        _causal(q, k, v, scale, rows).reshape(-1, v.shape[-1]) for q, k, v in zip(*apart, strict=True)
    ]  # each (rows · H · width, D)
    index, holes, back, _bare = rows.indices(query.shape[1], query.device)
    whole: Tensor = _gather(out[0] if len(out) == 1 else torch.cat(out), back, index, holes)
    return whole.view(1, rows.n, query.shape[1], -1), None


def _apart(x: Float[Tensor, "1 H N D"], rows: _Rows) -> list[Tensor]:
    """(1, H, N, D) → (rows, H, width, D) for every rectangle."""
    heads = x.shape[1]
    index, _holes, back, bare = rows.indices(heads, x.device)
    found: Tensor = _gather(x.transpose(1, 2).reshape(-1, x.shape[-1]), index, back, bare)
    parts = torch.split(found, [n * heads * width for n, width in rows.shapes])
    return [part.view(n, heads, width, -1) for part, (n, width) in zip(parts, rows.shapes, strict=True)]


def _causal(
    q: Float[Tensor, "r H W D"],
    k: Float[Tensor, "r G W D"],
    v: Float[Tensor, "r G W E"],
    scale: float,
    rows: _Rows,
) -> Float[Tensor, "r H W E"]:
    """Causal attention (rows, H, width, D). In bf16 on a CPU by plain products: torch's kernel takes two to
    six times as long for its backward pass (docs/LOG.md)."""
    n, heads, width, _ = q.shape
    if heads != k.shape[1] and q.device.type != "cuda":
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and width <= 2048:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out: Tensor = plain_causal(q * scale, k, v, rows.mask(min(width, CHUNK), q.dtype, q.device))
        return out.view(n, heads, width, -1)
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != k.shape[1])


CHUNK = 256
"""Queries at a time: the keys after a chunk are never looked at, which saves up to half of the work on long
rows."""


class _PlainCausal(torch.autograd.Function):
    """Causal attention by matrix products: q (scaled), k (B, T, D), v (B, T, E) and an additive mask (1, C, C)
    → (B, T, E)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "B T D"],
        k: Float[Tensor, "B T D"],
        v: Float[Tensor, "B T E"],
        mask: Float[Tensor, "1 C C"],
    ) -> Float[Tensor, "B T E"]:
        out = torch.empty_like(v)
        chunks = []
        for chunk, until in _chunks(q.shape[1], mask.shape[1]):
            scores = torch.bmm(q[:, chunk], k[:, :until].mT)  # (B, c, until)
            scores[:, :, chunk] += mask[:, : until - chunk.start, : until - chunk.start]
            chunks.append(scores.softmax(-1))
            torch.bmm(chunks[-1], v[:, :until], out=out[:, chunk])
        ctx.save_for_backward(q, k, v, *chunks)
        ctx.size = mask.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *chunks = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (chunk, until), shares in zip(_chunks(q.shape[1], ctx.size), chunks, strict=True):
            grad_v[:, :until] += torch.bmm(shares.mT, grad[:, chunk])
            slope = torch.bmm(grad[:, chunk], v[:, :until].mT)
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype)
            torch.bmm(slope, k[:, :until], out=grad_q[:, chunk])
            grad_k[:, :until] += torch.bmm(slope.mT, q[:, chunk])
        return grad_q, grad_k, grad_v, None


def _chunks(width: int, size: int) -> Iterator[tuple[slice, int]]:
    for start in range(0, width, size):
        until = min(width, start + size)
        yield slice(start, until), until


plain_causal: Any = _PlainCausal.apply
AttentionInterface.register(ROWS, _rows_attention)
