"""What a model can do, found out by trying when it is loaded: no list of architectures is believed.

Each row alone through the model's own forward is what is right. Rows side by side, filled up at their ends,
must give the same: of a causal model nothing that comes later changes what came before. Rows in one sequence
must too, before the fast path is taken. Else the model is refused in a sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from seal.lora.batch import Batch
from seal.lora.packing import beside, pack
from seal.lora.records import LoraError
from seal.lora.tokens import Row

if TYPE_CHECKING:
    from seal.lora.model import Model

LONGEST = 32
"""Tokens of the longest row that is tried, but for a window: then it is longer than that."""
WORK = {"cpu": 3e11, "cuda": 3e14}
"""FLOPs that trying may take (a few seconds): a window for which it would take more is believed, and no row
longer than it is packed."""
ROWS = 8
"""Rows of the longest length that all of it comes to."""


@dataclass(frozen=True)
class Nature:
    """How a model may be computed with."""

    packs: bool = False
    """Rows may stand in one sequence, with attention row by row: the fast path."""
    linear_head: bool = False
    """The logits are a linear layer of the body's hidden states, and nothing more."""
    pads: bool = True
    """Prompts of several lengths are read together, filled up at the left."""
    unheard: frozenset[str] = frozenset()
    """Linear layers whose weights the model takes without asking the layer: an adapter there changes
    nothing, here as in PEFT, and is not merged either."""


def nature_of(model: Model) -> Nature:
    """Find it out.

    Raises:
        LoraError: the model is no causal LM, or does not compute alike side by side.
    """
    if model.context < 2:
        raise LoraError(
            f"the model {model.name!r} takes rows of {model.context} token: nothing can be foretold"
        )
    rows = _rows(model)
    places = [torch.tensor(row.ids[1:], device=model.device) for row in rows]
    with torch.no_grad():
        try:
            with _listening(model) as unheard:
                alone = [_logits(model, [row.ids])[0] for row in rows]
        except Exception as error:  # of a model that somebody else wrote
            raise LoraError(
                f"the model {model.name!r} cannot be computed from a row of text alone, as a causal language "
                f"model is: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            ) from error
        right = torch.cat(
            [cross_entropy(x[:-1], y, reduction="none") for x, y in zip(alone, places, strict=True)]
        )
        if not bool(right.isfinite().all()):
            raise LoraError(f"the model {model.name!r} gives no finite probabilities: its weights are broken")
        _must_be_causal(model, rows, right)
        noise = 1e-4 if model.runner.dtype == torch.float32 else 0.2
        few, told = [rows[1:]], torch.cat(_by_row(right, rows)[1:])
        head = _agrees(model, beside(few, model.device, model.context), Nature(linear_head=True), told, noise)
        short = [Row(r.ids[: model.window], r.loss[: model.window]) for r in rows]
        right = torch.cat([x[: model.window - 1] for x in _by_row(right, rows)])
        packs = _agrees(model, pack([short], model.device), Nature(True, head), right, noise)
        packs = packs and _keeps_apart(model, short, Nature(True, head))
        pads = _reads(model, rows, alone)
    return Nature(packs, head, pads, frozenset(unheard))


@contextmanager
def _listening(model: Model) -> Iterator[set[str]]:
    """The linear layers that are not called meanwhile."""
    linears = {n: m for n, m in model.runner.named_modules() if isinstance(m, torch.nn.Linear)}
    unheard = set(linears)

    def heard(name: str) -> Callable[..., None]:
        return lambda *_: unheard.discard(name)

    hooks = [m.register_forward_hook(heard(n)) for n, m in linears.items()]
    try:
        yield unheard
    finally:
        for hook in hooks:
            hook.remove()


AHEAD = 3
"""Tokens that are read one after another, from a cache, behind what was read at once."""


def _reads(model: Model, rows: list[Row], alone: list[Tensor]) -> bool:
    """Whether prompts of several lengths may be read together.

    Raises:
        LoraError: even alone, a prompt that is read from a cache goes on otherwise than the model does.
    """
    some = [(row.ids, x) for row, x in zip(rows, alone, strict=True) if len(row.ids) > AHEAD]
    if not some or _reads_on(model, [*some[:1], *some]):
        return True
    if all(_reads_on(model, [one, one]) for one in some):
        return False
    raise LoraError(
        f"the model {model.name!r} does not go on from a cache as it does without one (transformers' own class "
        f"{type(model.model).__name__}): SEAL cannot let it write"
    )


def _reads_on(model: Model, some: list[tuple[tuple[int, ...], Tensor]]) -> bool:
    """Whether rows that are read from a cache, of which the first half leaves on the way, go on as they do
    alone."""
    tolerance = 1e-3 if model.runner.dtype == torch.float32 else 0.2
    try:
        batch = Batch(model, [ids[:-AHEAD] for ids, _ in some], None)
        for step in range(AHEAD):
            found = batch.forward()
            at = step - AHEAD - 1
            here = [some[row] for row in batch.rows]
            wanted = torch.stack([x[at] for _, x in here])
            if not float((found - wanted).abs().mean()) <= tolerance * max(1.0, float(wanted.std())):
                return False
            nexts = torch.tensor([ids[at + 1] for ids, _ in here], device=model.device)
            batch.take(nexts, set(range(len(some) // 2 if step else 0, len(some))))
    except Exception:  # of a model that somebody else wrote
        return False
    return True


def _rows(model: Model) -> list[Row]:
    """Of random tokens: one longer than every window, and two short ones."""
    each = 2 * ROWS * sum(p.numel() for p in model.runner.parameters())
    most = WORK.get(model.device.type, WORK["cuda"]) / each
    longer = [w + 9 for w in windows(model.model.config) if w + 9 <= most]
    longest = min(model.context, max([LONGEST, *longer]))
    rng = random.Random(0)
    rows = []
    for n in (longest, min(9, longest), min(2, longest)):
        ids = tuple(rng.randrange(model.vocabulary) for _ in range(n))
        rows.append(Row(ids, (False, *[True] * (n - 1))))
    return rows


def _logits(model: Model, ids: Any) -> Tensor:
    out = model.forward(input_ids=torch.tensor(ids, device=model.device), use_cache=False)
    logits: Tensor = out.logits.float()
    return logits


def _by_row(values: Tensor, rows: list[Row]) -> list[Tensor]:
    return list(torch.split(values, [len(row.ids) - 1 for row in rows]))


def _must_be_causal(model: Model, rows: list[Row], right: Tensor) -> None:
    """Rows side by side, after each of which other tokens follow.

    Raises:
        LoraError: they are further off than rounding.
    """
    rng = random.Random(1)
    width = min(model.context, len(rows[0].ids) + 3)
    ids = [[*r.ids, *(rng.randrange(model.vocabulary) for _ in range(width - len(r.ids)))] for r in rows]
    logits = _logits(model, ids)
    found = torch.cat(
        [
            cross_entropy(x[: len(row.ids) - 1], torch.tensor(row.ids[1:], device=x.device), reduction="none")
            for x, row in zip(logits, rows, strict=True)
        ]
    )
    tolerance = 1e-3 if model.runner.dtype == torch.float32 else 0.2
    off = float((found - right).abs().mean())
    if not off <= tolerance:
        raise LoraError(
            f"the model {model.name!r} is no causal language model that SEAL can train: what comes later in a "
            f"row, or stands beside it, changes what it foretells (by {off:.3f} nats a token)"
        )


@torch.no_grad()
def must_compute(model: Model) -> None:
    """
    Raises:
        LoraError: the copy in bf16 does not run.
    """
    try:
        ids = [range(min(5, model.context, model.vocabulary))]
        sound = bool(_logits(model, [list(i) for i in ids]).isfinite().all())
    except Exception as error:  # of a model that somebody else wrote
        raise LoraError(
            f"the model {model.name!r} does not compute on a copy in bf16 ({type(error).__name__}): take "
            "--model.bf16 false"
        ) from error
    if not sound:
        raise LoraError(f"the model {model.name!r} overflows in bf16: take --model.bf16 false")


def _agrees(model: Model, lines: Any, nature: Nature, right: Tensor, noise: float) -> bool:
    before = model.nature
    model.nature = nature
    try:
        with model.losses(lines) as (_, found):
            off = (found.float() - right).abs()
            return bool(off.mean() <= noise and off.max() <= 10 * noise)
    except Exception:  # of a model that somebody else wrote
        return False
    finally:
        model.nature = before


def _keeps_apart(model: Model, rows: list[Row], nature: Nature) -> bool:
    """Whether rows of one sequence are the same whatever stands before them: 16-bit weights round too much for
    a comparison with each row alone to tell."""
    other = Row(tuple((i + 1) % model.vocabulary for i in rows[0].ids), rows[0].loss)
    before, model.nature = model.nature, nature
    try:
        told = []
        for first in (rows[0], other):
            with model.losses(pack([[first, *rows[1:]]], model.device)) as (_, each):
                told.append(each[len(first.ids) - 1 :].float())
    finally:
        model.nature = before
    tolerance = 1e-4 if model.runner.dtype == torch.float32 else 0.02
    return bool((told[0] - told[1]).abs().mean() <= tolerance) if len(told[0]) else True


WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "sliding_window_size",
    "attention_window_size",
    "window_size",
    "local_attention",
)
"""What configs call the tokens that a layer sees; a layer that sees fewer than a row is never packed."""


def windows(config: PretrainedConfig) -> list[int]:
    """The windows that a config speaks of."""
    text = config.get_text_config()
    return [int(w) for w in (getattr(text, name, None) for name in WINDOWS) if isinstance(w, int) and w > 1]
