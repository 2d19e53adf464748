"""Rows of many adapters as one step's tensors: one flat sequence, attention row by row, loss in chunks.

An adapter's rows of one step stand one after another in its *line*, and the lines one after another in a flat sequence of N
tokens: nothing is padded but its end. Where a rectangle is needed (the adapters' own products, attention) tokens are gathered
into one and back; its holes carry no loss and no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from seal.models.tokens import Row

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rectangle:
    """Ragged lines as a rectangle (K, T), and the way back. Lines begin with the first token and leave none out."""

    shape: tuple[int, int]
    index: Tensor
    """(K · T,) where in the flat sequence each place comes from."""
    holes: Tensor
    """Places that hold no token of theirs."""
    back: Tensor
    """(n,) where each token of the sequence went."""

    def on(self, device: torch.device) -> Rectangle:
        """The same on another device; itself where it is there."""
        if self.index.device == device:
            return self
        return Rectangle(self.shape, self.index.to(device), self.holes.to(device), self.back.to(device))


@dataclass(frozen=True)
class Lines:
    """One step's rows on the device."""

    ids: Tensor
    """(1, N)"""
    positions: Tensor
    """(1, N); 0 where a row begins."""
    at: Tensor
    """(M,) places whose next token carries loss."""
    targets: Tensor
    """(M,) those next tokens."""
    owner: Tensor
    """(M,) the line of each."""
    share: Tensor
    """(M,) 1 / number of loss tokens of that line: a line's loss is the mean over its own tokens."""
    rectangle: Rectangle | None
    """The lines side by side; None where the sequence is that already."""
    spans: tuple[tuple[int, int], ...]
    """Start and stop of every row."""

    @property
    def n_real(self) -> int:
        """Tokens that are not padding."""
        return self.spans[-1][1]


def of_menu(n: int, finest: int = 1) -> int:
    """``n`` rounded up to a multiple of ``finest``, and to two significant binary digits above eight times that.

    A CPU compiles a kernel for every new shape of product (oneDNN), so shapes are taken from short menus and come again. What that
    saves is small by the record (bench/results/cpu.json: .13 ms a shape in bf16, .01 in fp32); profiles had said more (docs/LOG.md).
    """
    grain = finest
    while n > 8 * grain:
        grain *= 2
    return -(-n // grain) * grain


def pack(batches: Sequence[Sequence[Row]], device: torch.device | str) -> Lines:
    """One line per batch, in their order.

    Positions start again at 0 with every row, which is how transformers knows that rows must not see each other. The padding at
    the end is a row of its own that carries no loss.
    """
    rows = [row for batch in batches for row in batch]
    stops = np.cumsum([len(row.ids) for row in rows])
    starts = np.concatenate([[0], stops[:-1]])
    real = int(stops[-1])
    n = of_menu(real, 16) if real <= 2048 else -(-real // 256) * 256
    ids = np.zeros(n, np.int64)
    ids[:real] = np.concatenate([row.ids for row in rows])
    positions = np.arange(n)
    positions[:real] -= np.repeat(starts, stops - starts)
    positions[real:] -= real
    loss = np.concatenate([row.loss for row in rows])
    loss[starts] = False  # nothing comes before it
    places = np.flatnonzero(loss) - 1
    widths = np.array([sum(len(row.ids) for row in batch) for batch in batches])
    line_of = np.repeat(np.arange(len(batches)), widths)
    owner = line_of[places]
    counts = np.bincount(owner, minlength=len(batches))
    return Lines(
        send(ids[None], device),
        send(positions[None], device),
        send(places, device),
        send(ids[places + 1], device),
        send(owner, device),
        send((1 / np.maximum(counts, 1))[owner].astype(np.float32), device),
        None if len(batches) == 1 or bool((widths * len(widths) == n).all()) else _side_by_side(widths, device),
        tuple(zip(starts.tolist(), stops.tolist(), strict=True)),
    )


def _side_by_side(widths: Ints, device: torch.device | str) -> Rectangle:
    width = of_menu(int(widths.max()), 16)
    starts = np.cumsum(widths) - widths
    column = np.arange(width)[None, :]
    real = column < widths[:, None]
    index = np.where(real, starts[:, None] + column, 0).reshape(-1)
    return Rectangle(
        (len(widths), width), send(index, device), send(np.flatnonzero(~real), device), send(np.flatnonzero(real), device)
    )


def send(values: NDArray[Any], device: torch.device | str) -> Tensor:
    """An array on the device. Through pinned memory to CUDA, so that the host does not wait for the queue."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# ------------------------------------------------------------------------------------------------- attention, row by row

ROWS = "seal_rows"
"""The name under which transformers finds :func:`_rows_attention`."""


class _Rows:
    """The rows of a step sorted into rectangles of like width, and the way there and back: indices for x (N · H, D)."""

    def __init__(self, lines: Lines) -> None:
        self.n = lines.ids.numel()
        self.longest = max(stop - start for start, stop in lines.spans)
        self.shapes: list[tuple[int, int]] = []  # rows, width
        self._parts: list[tuple[Ints, NDArray[np.bool_]]] = []  # where each place comes from, and whether it is a real token
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
        """For so many heads: (rows · H · width) places in the lines; which of them are holes; and the way back, (N · H), with
        those that no row covers."""
        if (heads, device) not in self._indices:
            head = np.arange(heads)[None, :, None]
            index = np.concatenate([(part[:, None, :] * heads + head).reshape(-1) for part, _ in self._parts])
            real = np.concatenate(
                [np.broadcast_to(r[:, None, :], (len(r), heads, r.shape[1])).reshape(-1) for _, r in self._parts]
            )
            back = np.full(self.n * heads, -1, np.int64)
            back[index[real]] = np.flatnonzero(real)
            bare = np.flatnonzero(back < 0)
            back[bare] = 0
            self._indices[heads, device] = tuple(send(x, device) for x in (index, np.flatnonzero(~real), back, bare))  # type: ignore[assignment]
        return self._indices[heads, device]

    def mask(self, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Causal, additive, (1, width, width)."""
        if (width, device) not in self._masks:
            self._masks[width, device] = torch.full((1, width, width), -torch.inf, dtype=dtype, device=device).triu_(1)
        return self._masks[width, device]


_rows: list[_Rows] = []  # of the forward that is running; see `rows_apart`


@contextmanager
def rows_apart(config: PretrainedConfig, lines: Lines) -> Iterator[None]:
    """While inside, attention is computed row by row, without a mask over the whole: rows of like width in one causal call.

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

    The gradient is then a gather as well (``back``), with zeros for places that nothing came from: no scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, bare: Tensor) -> Tensor:
        ctx.save_for_backward(back, bare)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back, bare = ctx.saved_tensors
        return grad.index_select(0, back).index_fill_(0, bare, 0), None, None, None


_gather: Any = _Gather.apply


def _rows_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention within each row: query (1, H, N, D), key and value (1, H', N, D) → (1, N, H, D)."""
    (rows,) = _rows
    window = options.get("sliding_window")
    if options.get("s_aux") is not None or options.get("softcap") is not None or (window and window < rows.longest):
        raise NotImplementedError("attention with sinks, capped scores or a window shorter than a row")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    apart = [_apart(x, rows) for x in (query, key, value)]
    out = [
        _causal(q, k, v, scale, rows).reshape(-1, v.shape[-1]) for q, k, v in zip(*apart, strict=True)
    ]  # each (rows · H · width, D)
    index, holes, back, _bare = rows.indices(query.shape[1], query.device)
    whole: Tensor = _gather(out[0] if len(out) == 1 else torch.cat(out), back, index, holes)
    return whole.view(1, rows.n, query.shape[1], -1), None


def _apart(x: Tensor, rows: _Rows) -> list[Tensor]:
    """(1, H, N, D) → (rows, H, width, D) for every rectangle."""
    heads = x.shape[1]
    index, _holes, back, bare = rows.indices(heads, x.device)
    found: Tensor = _gather(x.transpose(1, 2).reshape(-1, x.shape[-1]), index, back, bare)
    parts = torch.split(found, [n * heads * width for n, width in rows.shapes])
    return [part.view(n, heads, width, -1) for part, (n, width) in zip(parts, rows.shapes, strict=True)]


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: _Rows) -> Tensor:
    """Causal attention (rows, H, width, D). In bf16 on a CPU by plain products: torch's kernel takes two to six times as long
    for its backward pass (docs/LOG.md)."""
    n, heads, width, _ = q.shape
    if heads != k.shape[1] and q.device.type != "cuda":
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and width <= 2048:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out: Tensor = plain_causal(q * scale, k, v, rows.mask(min(width, CHUNK), q.dtype, q.device))
        return out.view(n, heads, width, -1)
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != k.shape[1])


CHUNK = 256
"""Queries at a time: the keys after a chunk are never looked at, which saves up to half of the work on long rows."""


class _PlainCausal(torch.autograd.Function):
    """Causal attention by matrix products: q (scaled), k, v (B, T, D) and an additive mask (1, C, C) → (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out = torch.empty_like(q)
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


# --------------------------------------------------------------------------------------------------- loss, chunk by chunk


class ChunkedLoss(torch.autograd.Function):
    """Weighted cross-entropy of a linear head without ever holding all logits: (M, H) hidden → scalar, and (M,) losses.

    The gradient of the hidden states is made chunk by chunk on the way forward, while a chunk's logits are there; the
    head is frozen, so nothing else is needed on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, share: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if needs else None
        losses = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = linear(hidden[part], weight, bias).float()  # (m, V)
            norm = logits.logsumexp(1)
            losses.append(norm - logits.gather(1, targets[part, None])[:, 0])
            if grad is not None:
                slope = logits.sub_(norm[:, None]).exp_()
                slope.scatter_add_(1, targets[part, None], slope.new_full((1, 1), -1.0).expand(len(slope), 1))
                slope *= share[part, None]
                torch.mm(slope.to(hidden.dtype), weight, out=grad[part])
        each = torch.cat(losses)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(each)
        return (each * share).sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _each: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * total.to(grad.dtype), None, None, None, None, None


chunked_loss: Any = ChunkedLoss.apply
"""``chunked_loss(hidden, weight, bias, targets, share, chunk)``"""
