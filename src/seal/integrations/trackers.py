"""A run's numbers for TensorBoard, Weights & Biases and MLflow: written to a local folder, never sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal.types import SealError

Metrics = Sequence[tuple[int, str, float]]
"""(round, name, value)."""


def tensorboard(metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """Event files: ``tensorboard --logdir OUT``."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(out)) as writer:
        for step, name, value in metrics:
            writer.add_scalar(name, value, step)
        writer.add_text("config", "\n".join(f"    {k} = {v}" for k, v in flat(config).items()))


def wandb(metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """An offline run: ``wandb sync OUT/wandb/offline-run-…`` sends it, if you like."""
    import wandb as library

    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    run = library.init(mode="offline", dir=str(out), project="seal", name=str(config.get("name", "run")), config=dict(config))
    for step in dict.fromkeys(s for s, _, _ in metrics):
        run.log({name: value for s, name, value in metrics if s == step}, step=step)
    run.finish()


def mlflow(metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """A local store: ``mlflow ui --backend-store-uri sqlite:///OUT/mlflow.db``."""
    import mlflow as library

    out.mkdir(parents=True, exist_ok=True)
    library.set_tracking_uri(f"sqlite:///{(out / 'mlflow.db').resolve()}")
    library.set_experiment("seal")
    with library.start_run(run_name=str(config.get("name", "run"))):
        library.log_params({k: str(v)[:500] for k, v in flat(config).items()})
        for step, name, value in metrics:
            library.log_metric(name, value, step=step)


TRACKERS: dict[str, Callable[[Metrics, Mapping[str, Any], Path], None]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}


def track(kind: str, metrics: Metrics, config: Mapping[str, Any], out: Path) -> None:
    """Write a run's numbers for a tracker.

    Raises:
        SealError: its library is not installed, or it has no number to write.
    """
    if not metrics:
        raise SealError("the run has no finished attempt yet: there is nothing to export")
    try:
        TRACKERS[kind](metrics, config, out)
    except ImportError as error:
        raise SealError(f"exporting to {kind} needs its library: pip install {kind}") from error
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)  # it was new: what is in it is half of ours
        raise SealError(f"cannot write {out}: {error.strerror or error}") from error


def flat(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, Mapping) and value else {f"{at}{key}": value}
    return found
