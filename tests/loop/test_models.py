"""Every way to a model goes through ``load_model`` with the whole of ``config.model``: nothing is forgotten on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seal.config import InnerConfig, RunConfig
from seal.domains.knowledge import Knowledge
from seal.loop.evaluate import Evaluation
from seal.loop.inner import open_domain
from seal.loop.outer import run
from seal.loop.show import show_task
from seal.loop.trl import reward
from seal.loop.workers import RayWorkers, _Worker
from seal.lora.capacity import Room
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.memory.stream import Continual
from seal.store import Store

SPEC = ModelSpec(name="some/model", engine="vllm", quantize="4bit", dtype="bfloat16", bf16="auto", threads=3)


class Loaded(Exception):
    """Carries what was to be loaded."""


def load(spec: ModelSpec, rank: int = 0, loaded: Model | None = None) -> None:
    raise Loaded(spec)


def worker(config: RunConfig, name: str) -> None:
    driver, one = RayWorkers.__new__(RayWorkers), _Worker.__new__(_Worker)
    driver.threads, one.domain, one.model = 3, Knowledge(), None
    asked: Any = SimpleNamespace(spec=config.model.model_copy(update={"name": name}))
    one.wave(driver._spec(asked), [], {}, InnerConfig(), Room(1, 1))


WAYS: dict[str, tuple[str, Callable[[RunConfig], object], str]] = {
    "seal try": ("loop.show", lambda c: show_task(c, 0, None), "some/model"),
    "seal try, with a policy": ("loop.show", lambda c: show_task(c, 0, "a/policy"), "a/policy"),
    "the reward for TRL": ("loop.trl", reward, "some/model"),
    "the outer loop": ("loop.outer", lambda c: run(c, Store(c)), "some/model"),
    "the table": ("loop.evaluate", lambda c: Evaluation(c, Store(c), "eval"), "some/model"),
    "the continual experiment": ("memory.stream", lambda c: Continual(c, Store(c)), "some/model"),
    "a worker": ("loop.workers", lambda c: worker(c, "some/model"), "some/model"),
    "a worker, with a policy": ("loop.workers", lambda c: worker(c, "a/policy"), "a/policy"),
    "a judge": ("loop.inner", lambda c: open_domain(judged(c)), "a/judge"),
}


def judged(config: RunConfig) -> RunConfig:
    options = {**config.domain.options, "grader": "hf:a/judge"}
    return config.model_copy(update={"domain": config.domain.model_copy(update={"options": options})})


@pytest.mark.parametrize("way", WAYS)
def test_no_setting_of_the_model_is_forgotten(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, call, name = WAYS[way]
    monkeypatch.setattr(f"seal.{module}.load_model", load)
    sizes = {"sizes": {"train": 2, "select": 1, "eval": 2}}
    data = {"runs": str(tmp_path), "model": SPEC.model_dump(), "domain": {"options": sizes}, "rounds": 1}
    config = RunConfig.model_validate(data | {"continual": {"sequences": 1, "length": 2}})
    with pytest.raises(Loaded) as found:
        call(config)
    assert found.value.args[0] == SPEC.model_copy(update={"name": name})


def test_the_policy_of_a_round_is_loaded_as_the_model_was(tmp_path: Path) -> None:
    """An adapter over the same weights, on the same engine; whole weights are what rounds saved once."""
    for spec in (SPEC, SPEC.model_copy(update={"engine": "http://localhost:8000/v1"})):
        store = Store(RunConfig(runs=str(tmp_path), name=spec.engine.split(":")[0], model=spec))
        folders = [store.folder / f"seal/round-{r}/policy" for r in (1, 2, 3)]
        for folder, file in zip(folders, ("adapter_config", "config", "adapter_config"), strict=True):
            folder.mkdir(parents=True)
            (folder / f"{file}.json").write_text("{}")
        assert store.policy("seal", 0) == spec
        assert store.policy("seal", 1) == spec.model_copy(update={"adapter": str(folders[0])})
        whole = store.policy("seal", 2)
        assert (whole.name, whole.adapter, whole.quantize) == (str(folders[1]), None, "4bit")
        # a server goes on serving the weights that it was started with: it is not asked for others
        assert whole.engine == ("vllm" if spec.engine == "vllm" else "transformers")
        assert store.policy("seal", 3) == whole.model_copy(update={"adapter": str(folders[2])})
