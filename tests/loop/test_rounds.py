"""The outer loop, read off what it asks for: fresh tasks and fresh draws every round, the policy of the round
before, honest controls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from seal.config import RunConfig
from seal.loop import outer as loop
from seal.loop.imitate import learn_from
from seal.loop.inner import InnerLoop
from seal.loop.selection import RANDOM
from seal.lora.adapter import Adapter
from seal.lora.records import ModelSpec
from seal.lora.train import Trained
from seal.records import Attempt, Prompt, Selected, Task
from seal.store import Round, Stage, Store


class Recorder:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrote: list[tuple[str, list[str], object]] = []
        self.tried: list[tuple[str, object]] = []
        self.learnt: list[tuple[str, list[Selected]]] = []
        self.loaded: list[str] = []
        monkeypatch.setattr(loop, "load_model", self.load_model)
        monkeypatch.setattr("seal.loop.race.load_model", self.load_model)
        monkeypatch.setattr("seal.loop.write.write_edits", self.write_edits)
        monkeypatch.setattr("seal.loop.imitate.learn_from", self.learn_from)
        monkeypatch.setattr(InnerLoop, "try_edits", self.try_edits(self))

    def load_model(self, spec: ModelSpec, rank: int = 0, loaded: Any = None) -> Any:
        self.loaded.append(name_of(spec))
        known = {"name": name_of(spec), "base_name": "base", "stack": STACK, "fingerprint": dict}
        return nullcontext(SimpleNamespace(**known))

    def write_edits(
        self, policy: Any, domain: Any, tasks: Sequence[Task], n: int, config: Any, seed: object, stage: Any
    ) -> Any:
        self.wrote.append((policy.name, [t.id for t in tasks], seed))
        return [[f"{t.id} edit {e}" for e in range(n)] for t in tasks]

    @staticmethod
    def try_edits(recorder: Recorder) -> Any:
        def tried(
            inner: Any, learner: Any, tasks: Any, texts: Any, stage: Any, seed: object
        ) -> list[Attempt]:
            recorder.tried.append((learner.name, seed))
            return [
                Attempt(t.id, e, 0, x, "ok", "", e / 10, 0.0, e / 10)
                for t, row in zip(tasks, texts, strict=True)
                for e, x in enumerate(row)
            ]

        return tried

    def learn_from(
        self, policy: Any, prompts: Any, kept: Any, attempts: Any, config: Any, round_: Any
    ) -> Any:
        self.learnt.append((policy.name, list(kept)))
        return None, {"diverged": False}


STACK = Adapter(1, 1.0, {"q": (torch.ones(1, 1), torch.ones(1, 1))})


def name_of(spec: ModelSpec) -> str:
    path = Path(spec.adapter or spec.name)
    return f"{path.parent.parent.name}/{path.parent.name}" if path.name == "policy" else "base"


def config(tmp_path: Path, **more: Any) -> RunConfig:
    sizes = {"options": {"sizes": {"train": 30, "select": 1, "eval": 1}}}
    data = {"runs": str(tmp_path), "rounds": 3, "tasks_per_round": 6, "edits_per_task": 4, "domain": sizes}
    return RunConfig.model_validate(data | more)


def test_every_round_has_tasks_draws_and_a_policy_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, settings = Recorder(monkeypatch), config(tmp_path)
    last = loop.run(settings, Store(settings))
    who, tasks, seeds = zip(*recorder.wrote, strict=True)
    assert who == ("base", "seal/round-1", "seal/round-2") and name_of(last) == "seal/round-3"
    assert len({tuple(sorted(t)) for t in tasks}) == 3, "other tasks every round"
    assert len(set(seeds)) == 3, "other draws every round"
    assert [name for name, _ in recorder.tried] == list(who) and len({s for _, s in recorder.tried}) == 3
    for (name, kept), mine, writer in zip(recorder.learnt, tasks, who, strict=True):
        assert name == writer and sorted(k.task for k in kept) == sorted(mine)
        assert all(k.text.endswith("edit 3") for k in kept), "the edit that did best"


def test_with_adapters_on_the_base_the_policy_still_writes_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, settings = Recorder(monkeypatch), config(tmp_path, inner={"start": "base"})
    loop.run(settings, Store(settings))
    assert [name for name, _ in recorder.tried] == ["base"] * 3
    assert (
        [name for name, *_ in recorder.wrote]
        == [name for name, _ in recorder.learnt]
        == ["base", "seal/round-1", "seal/round-2"]
    )


def test_the_random_control_tries_nothing_and_imitates_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many edits of each task as SEAL kept, drawn without a look at what they earn, on tasks and draws of
    the same seeds."""
    recorder = Recorder(monkeypatch)
    settings = config(
        tmp_path, outer={"select": "improved"}
    )  # three of four edits, where one is kept by default
    store = Store(settings)
    loop.run(settings, store)
    seal_wrote, seal_kept = list(recorder.wrote), [kept for _, kept in recorder.learnt]
    recorder.wrote.clear(), recorder.tried.clear(), recorder.learnt.clear()
    loop.run(settings, store, RANDOM)
    assert not recorder.tried, "it costs no inner loop"
    assert [name for name, *_ in recorder.wrote] == ["base", "control/round-1", "control/round-2"]
    assert [(t, s) for _, t, s in recorder.wrote] == [(t, s) for _, t, s in seal_wrote]
    drawn = [kept for _, kept in recorder.learnt]
    assert [len(k) for k in drawn] == [len(k) for k in seal_kept] == [18, 18, 18]
    assert any(k.text.endswith(("edit 0", "edit 1")) for kept in drawn for k in kept)


def test_what_was_kept_is_trained_on_after_its_own_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def train(policy: Any, job: Any, stage: Any) -> Any:
        seen.append(job)
        return Trained(None, 1, 1, (1.0, 0.5))

    monkeypatch.setattr("seal.loop.imitate.train_once", train)
    prompts = {"a": Prompt("PA"), "b": Prompt("PB")}
    kept, nobody = [Selected("a", "best", 1.0), Selected("b", "good", 0.5)], cast(Any, None)
    for number in (1, 2):
        learn_from(nobody, prompts, kept, [], RunConfig(), Round(number, Stage(tmp_path), 0))
    rows = [(e.prompt, e.completion, e.chat) for e in seen[0].examples]
    assert rows == [("PA", "best", True), ("PB", "good", True)]
    assert seen[0].seed != seen[1].seed


def test_no_policy_is_loaded_that_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming does what is owed: rounds that have saved their policy are not even read."""
    recorder, settings = Recorder(monkeypatch), config(tmp_path)
    loop.run(settings, Store(settings))
    assert recorder.loaded == ["base", "seal/round-1", "seal/round-2"]
    loop.run(settings, Store(settings))
    assert recorder.loaded == ["base", "seal/round-1", "seal/round-2"]
