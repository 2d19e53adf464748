"""A run's numbers for TensorBoard: written to a local folder, never sent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seal.types import SealError

Metrics = Sequence[tuple[int, str, float]]
"""(round, name, value)."""


def tensorboard(metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """Event files: ``tensorboard --logdir OUT``.

    Raises:
        SealError: tensorboard is not installed, there is no number to write, or it cannot be written.
    """
    if not metrics:
        raise SealError("the run has no finished attempt yet: there is nothing to export")
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise SealError("exporting to tensorboard needs its library: pip install tensorboard") from error
    try:
        with SummaryWriter(str(out)) as writer:
            for step, name, value in metrics:
                writer.add_scalar(name, value, step)
            writer.add_text("config", "\n".join(f"    {k} = {v}" for k, v in flat(config).items()))
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)  # it was new: what is in it is half of ours
        raise SealError(f"cannot write {out}: {error.strerror or error}") from error


def flat(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, Mapping) and value else {f"{at}{key}": value}
    return found
