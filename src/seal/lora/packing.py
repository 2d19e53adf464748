"""Rows of many adapters as one step's tensors: one flat sequence, and its rectangles; or rows side by side.

An adapter's rows of one step stand one after another in its *line*, and the lines one after another in a flat
sequence of N
tokens: nothing is padded but its end. Where a rectangle is needed (the adapters' own products, attention)
tokens are gathered into one and back; its holes carry no loss and no gradient.

A model whose rows cannot stand in one sequence (a state that runs on, positions that are counted otherwise)
takes them side by side, each filled up at its end (:func:`beside`): what comes later changes nothing in a
causal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from seal.lora.tokens import Row

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rectangle:
    """Ragged lines as a rectangle (K, T), and the way back. Lines begin with the first token and leave none
    out."""

    shape: tuple[int, int]
    index: Int[Tensor, " KT"]
    """(K · T,) where in the flat sequence each place comes from."""
    holes: Int[Tensor, " h"]
    """Places that hold no token of theirs."""
    back: Int[Tensor, " n"]
    """(n,) where each token of the sequence went."""

    def on(self, device: torch.device) -> Rectangle:
        """The same on another device; itself where it is there."""
        if self.index.device == device:
            return self
        return Rectangle(self.shape, self.index.to(device), self.holes.to(device), self.back.to(device))


@dataclass(frozen=True)
class SoftTargets:
    """What teachers say at the M loss tokens of a step, and how much of each loss is taken."""

    ids: Int[Tensor, "M top"]
    logs: Float[Tensor, "M top"]
    """Of places where no teacher speaks, and beyond a teacher's own top: minus infinity."""
    ordinary: Float[Tensor, " M"]
    """The weight of the cross-entropy."""
    weight: Float[Tensor, " M"]
    """The weight of the divergence."""

    def on(self, device: torch.device) -> SoftTargets:
        """The same on another device."""
        there = [x.to(device) for x in (self.ids, self.logs, self.ordinary, self.weight)]
        return SoftTargets(*there)


@dataclass(frozen=True)
class Lines:
    """One step's rows on the device."""

    ids: Int[Tensor, "b n"]
    """(1, N); side by side (K · rows, T)."""
    positions: Int[Tensor, "b n"]
    """As ``ids``; 0 where a row begins."""
    at: Int[Tensor, " M"]
    """(M,) places of the flattened ``ids`` whose next token carries loss."""
    targets: Int[Tensor, " M"]
    """(M,) those next tokens."""
    owner: Int[Tensor, " M"]
    """(M,) the line of each."""
    share: Float[Tensor, " M"]
    """(M,) 1 / number of loss tokens of that line: a line's loss is the mean over its own tokens."""
    rectangle: Rectangle | None
    """The lines side by side; None where the sequence is that already."""
    soft: SoftTargets | None
    """What teachers say there; ``None`` where no row has one."""
    spans: tuple[tuple[int, int], ...]
    """Start and stop of every row, in the flattened ``ids``."""
    beside: bool = False
    """Whether rows stand side by side instead of in one sequence."""

    @property
    def n_real(self) -> int:
        """Tokens that are not padding."""
        return sum(stop - start for start, stop in self.spans)


def of_menu(n: int, finest: int = 1) -> int:
    """``n`` rounded up to a multiple of ``finest``, and to two significant binary digits above eight times
    that.

    A CPU compiles a kernel for every new shape of product (oneDNN), so shapes are taken from short menus and
    come again. What that saves is small by the record (bench/results/cpu.json: .13 ms a shape in bf16, .01 in
    fp32); profiles had said more (docs/LOG.md).
    """
    grain = finest
    while n > 8 * grain:
        grain *= 2
    return -(-n // grain) * grain


def pack(batches: Sequence[Sequence[Row]], device: torch.device | str) -> Lines:
    """One line per batch, in their order.

    Positions start again at 0 with every row, which is how transformers knows that rows must not see each
    other. The padding at the end is a row of its own that carries no loss.
    """
    rows = [row for batch in batches for row in batch]
    stops = np.cumsum([len(row.ids) for row in rows])
    starts = np.concatenate([[0], stops[:-1]])
    real = int(stops[-1])
    n = of_menu(real, 16) if real <= 2048 else -(-real // 256) * 256
    ids = np.zeros(n, np.int64)
    ids[:real] = np.concatenate([row.ids for row in rows])
    positions = np.zeros(
        n, np.int64
    )  # what fills up is a row of nothing but beginnings: no table is too short
    positions[:real] = np.arange(real) - np.repeat(starts, stops - starts)
    widths = np.array([sum(len(row.ids) for row in batch) for batch in batches])
    rectangle = (
        None
        if len(batches) == 1 or bool((widths * len(widths) == n).all())
        else _side_by_side(widths, device)
    )
    spans = tuple(zip(starts.tolist(), stops.tolist(), strict=True))
    return _lines(batches, ids[None], positions[None], spans, rectangle, device)


def beside(batches: Sequence[Sequence[Row]], device: torch.device | str, longest: int) -> Lines:
    """One row of tokens per row, each filled up at its end; as many for every batch, so that adapters meet
    their own. Costs what the longest row costs, for every row.

    Args:
        longest: the longest row that the model takes: nothing is filled up beyond it.
    """
    count = max(len(batch) for batch in batches)
    width = max(len(row.ids) for batch in batches for row in batch)
    width = max(width, min(longest, of_menu(width, 16)))
    ids = np.zeros((len(batches) * count, width), np.int64)
    positions = np.tile(np.arange(width), (len(ids), 1))
    spans = []
    for k, batch in enumerate(batches):
        for i, row in enumerate(batch):
            ids[k * count + i, : len(row.ids)] = row.ids
            start = (k * count + i) * width
            spans.append((start, start + len(row.ids)))
    return _lines(batches, ids, positions, tuple(spans), None, device, side_by_side=True)


def _lines(
    batches: Sequence[Sequence[Row]],
    ids: Ints,
    positions: Ints,
    spans: tuple[tuple[int, int], ...],
    rectangle: Rectangle | None,
    device: torch.device | str,
    side_by_side: bool = False,
) -> Lines:
    """Tokens that stand at ``spans`` of the flattened ``ids``, with the places of their loss."""
    rows = [row for batch in batches for row in batch]
    # nothing comes before a row's first token
    at = [np.flatnonzero(row.loss[1:]) + start for row, (start, _) in zip(rows, spans, strict=True)]
    owner = np.repeat(
        np.repeat(np.arange(len(batches)), [len(batch) for batch in batches]), [len(x) for x in at]
    )
    places = np.concatenate(at)
    counts = np.bincount(owner, minlength=len(batches))
    return Lines(
        send(ids, device),
        send(positions, device),
        send(places, device),
        send(ids.reshape(-1)[places + 1], device),
        send(owner, device),
        send((1 / np.maximum(counts, 1))[owner].astype(np.float32), device),
        rectangle,
        _soft(rows, device),
        spans,
        side_by_side,
    )


def _soft(rows: Sequence[Row], device: torch.device | str) -> SoftTargets | None:
    top = max((row.soft.ids.shape[1] for row in rows if row.soft), default=0)
    if not top:
        return None
    counts = [sum(row.loss[1:]) for row in rows]
    m = sum(counts)
    ids, logs = np.zeros((m, top), np.int64), np.full((m, top), -np.inf, np.float32)
    weights = np.tile(np.array([1.0, 0.0], np.float32), (m, 1))
    stop = 0
    for row, n in zip(rows, counts, strict=True):
        start, stop = stop, stop + n
        if row.soft is not None:
            ids[start:stop, : row.soft.ids.shape[1]] = row.soft.ids
            logs[start:stop, : row.soft.ids.shape[1]] = row.soft.logs
            weights[start:stop] = row.soft.weights
    ordinary, weight = (np.ascontiguousarray(x) for x in weights.T)
    return SoftTargets(send(ids, device), send(logs, device), send(ordinary, device), send(weight, device))


def _side_by_side(widths: Ints, device: torch.device | str) -> Rectangle:
    width = of_menu(int(widths.max()), 16)
    starts = np.cumsum(widths) - widths
    column = np.arange(width)[None, :]
    real = column < widths[:, None]
    index = np.where(real, starts[:, None] + column, 0).reshape(-1)
    return Rectangle(
        (len(widths), width),
        send(index, device),
        send(np.flatnonzero(~real), device),
        send(np.flatnonzero(real), device),
    )


def send(values: NDArray[Any], device: torch.device | str) -> Tensor:
    """An array on the device. Through pinned memory to CUDA, so that the host does not wait for the queue."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
