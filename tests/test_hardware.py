"""The configs for real hardware, each on a random tiny model of the very kind it names: its architecture, its
precision, its settings, and where bitsandbytes is installed its 4 bits."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from seal.config import RunConfig, load_config
from seal.domains.knowledge import atlas
from seal.loop.evaluate import Evaluation
from seal.loop.outer import run
from seal.lora.load import load_model
from seal.store import Store
from tests import tiny

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS: dict[str, tuple[Any, Any]] = {
    "Qwen/Qwen2.5": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen/Qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "meta-llama/Llama-3.2": (LlamaConfig, LlamaForCausalLM),
}
REAL = sorted(p.name for p in CONFIGS.glob("*.toml") if 'device = "cuda"' in p.read_text())


def random_model(name: str, folder: Path) -> str:
    """A model of a named one's kind, with weights of its own."""
    config, model = next(kind for prefix, kind in KINDS.items() if name.startswith(prefix))
    shape = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "head_dim": 16,
    }
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True}
    model(config(**shape, **heads, **ends)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def passages(folder: Path) -> str:
    rows = [atlas.record("eval", i) for i in range(6)]
    kept = [
        {"title": r["title"], "context": r["context"][:80], "questions": r["questions"][:1]} for r in rows
    ]
    path = folder / "passages.json"
    path.write_text(json.dumps(kept))
    return str(path)


def small(config: RunConfig, tmp_path: Path) -> RunConfig:
    """The same with little to do, on the CPU."""
    data = config.model_dump(mode="json")
    model = {"name": random_model(config.model.name, tmp_path / "model"), "device": "cpu"}
    if config.model.quantize and find_spec("bitsandbytes") is None:
        model["quantize"] = None
    sizes = {"train": 2, "select": 1, "eval": 1}
    if config.domain.name == "arc":
        options = {**config.domain.options, "source": "grids", "preset": None, "sizes": sizes, "limit": 4}
    else:
        options = {**config.domain.options, "source": passages(tmp_path), "sizes": sizes}
    data |= {"runs": str(tmp_path), "rounds": 1, "tasks_per_round": 2, "edits_per_task": 2}
    data["model"] |= model
    data["domain"]["options"] = options
    data["write"]["max_tokens"] = 8
    data["inner"] |= {"answer_tokens": 4, "seeds": 1}
    data["inner"]["recipe"] |= {"steps": 1}
    data["outer"]["recipe"] |= {"steps": 1}
    data["eval"] |= {"saturation_epochs": [1], "pool": None}
    return RunConfig.model_validate(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_it_runs_on_a_tiny_model_of_its_kind(name: str, tmp_path: Path) -> None:
    config = small(load_config(CONFIGS / name), tmp_path)
    store = Store(config)
    last = run(config, store)
    assert last.adapter == str(store.folder / "seal/round-1/policy")
    assert "adapter_model.safetensors" in {p.name for p in Path(last.adapter).iterdir()}
    with load_model(last) as policy:
        assert policy.runner.dtype == policy.model.dtype
        kind = next(
            kind
            for prefix, kind in KINDS.items()
            if load_config(CONFIGS / name).model.name.startswith(prefix)
        )
        assert isinstance(policy.model, kind[1])
    with Evaluation(config, store, "eval") as evaluation:
        assert {r.setting for r in evaluation.table()} >= {"base", "no RL", "SEAL round 1"}


def test_there_is_one_for_every_promise() -> None:
    """The paper's experiments on 80 GB and on 24, and the small models that people begin with."""
    assert {"paper-knowledge.toml", "paper-arc.toml", "paper-cpt.toml"} <= set(REAL)
    four_bit = {n for n in REAL if load_config(CONFIGS / n).model.quantize == "4bit"}
    assert four_bit == {n for n in REAL if n.endswith("24gb.toml")} and len(four_bit) == 3
    names = {load_config(CONFIGS / n).model.name for n in REAL}
    assert {f"Qwen/Qwen2.5-{s}" for s in ("0.5B", "1.5B", "7B")} <= names
    assert {f"Qwen/Qwen3-{s}-Base" for s in ("0.6B", "1.7B", "8B")} | {"meta-llama/Llama-3.2-1B"} <= names
