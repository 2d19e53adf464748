"""The loop as verbs: ``seal.train(config)`` and ``seal.evaluate(config)``. The command says the same with
flags."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from seal.config import RunConfig
from seal.loop.evaluate import Evaluation, trained_controls
from seal.loop.inner import HERE, Workers
from seal.loop.outer import run
from seal.loop.results import fingerprints, run_record
from seal.loop.selection import CONTROLS, SEAL
from seal.lora.load import threads_of
from seal.machine import environment
from seal.records import Result, SealError, control, record_text
from seal.store import Store, read_json, write_whole


def train(config: RunConfig, controls: Sequence[str] = ()) -> Path:
    """The outer loop, then those of its ``controls`` (*random*, *worst*, *others*). Continues where the run
    folder left off.

    Returns:
        the run folder.

    Raises:
        SealError: settings that do not go together, or a folder made with others.
    """
    _must_go_together(config, controls)
    store = Store(config, environment(threads_of(config.model)))
    with workers_of(config) as workers:
        for branch in (SEAL, *(CONTROLS[name] for name in dict.fromkeys(controls))):
            run(config, store, branch, workers)
    return store.folder


def _must_go_together(config: RunConfig, controls: Sequence[str]) -> None:
    if config.model.quantize and config.rounds and config.outer.rule != "sft":
        raise SealError(
            f"outer.rule = {config.outer.rule} trains a whole copy of the policy, which 4-bit weights do not "
            "give: take outer.rule sft, or no model.quantize"
        )
    if unknown := next((c for c in controls if c not in CONTROLS), None):
        raise SealError(f"--controls: there is no control {unknown!r}; there are: {', '.join(CONTROLS)}")
    if config.outer.rule != "sft":
        from seal.loop.trl import must_be_there

        must_be_there()
        if odd := next((c for c in controls if c != "random"), None):
            raise SealError(
                f"--controls {odd} imitates other edits, and outer.rule = {config.outer.rule} imitates none"
            )
    if "worst" in controls and config.trial.race:
        raise SealError("--controls worst takes the worst of all siblings, and trial.race leaves some out")


def evaluate(config: RunConfig, split: str = "eval") -> list[Result]:
    """The table of writers on held-out tasks, of a run that has been trained; kept in the run folder.

    Raises:
        SealError: the run is not trained so far, or a control has been trained since its table was made.
    """
    if split not in ("eval", "select"):
        raise SealError(
            f"--split is eval or select, not {split!r}: what a policy was trained on proves nothing"
        )
    store = Store(config, environment(threads_of(config.model)))
    for r in range(1, config.rounds + 1):
        if not (store.folder / f"seal/round-{r}/policy").exists():
            raise SealError(
                f"{store.folder} has no policy of round {r}: run `seal train` with the same settings first"
            )
    path = results_path(store.folder, split)
    if not path.exists():
        start = time.monotonic()
        with workers_of(config) as workers, Evaluation(config, store, split, workers) as evaluation:
            results = evaluation.table()
        tasks, groups = zip(*((t.id, evaluation.domain.group(t)) for t in evaluation.tasks), strict=True)
        record = run_record(config, results, tasks, groups, time.monotonic() - start)
        record["fingerprint"] = fingerprints(evaluation.domain)[split]
        write_whole(path, record_text(record))
    found = [Result(**row) for row in read_json(path)["settings"]]
    settings = {r.setting for r in found}
    if missed := next(
        (
            b.name
            for b in trained_controls(store.folder, config.rounds)
            if control(b.name).label not in settings
        ),
        None,
    ):
        raise SealError(
            f"{path} was made before the {missed} control was trained: move it and the report away, and run "
            "this again"
        )
    return found


def results_path(folder: Path, split: str = "eval") -> Path:
    """Where the table of a split is kept."""
    return folder / ("results.json" if split == "eval" else "results-select.json")


def workers_of(config: RunConfig) -> AbstractContextManager[Workers]:
    """Workers: this process, or others where the settings ask for some."""
    if not config.workers:
        return nullcontext(HERE)
    from seal.loop.workers import RayWorkers

    workers: Any = RayWorkers(config)
    return workers  # type: ignore[no-any-return]
