"""What each config for real hardware costs, reckoned from the shapes of its model: the table of docs/hardware.md.

    python tools/scale/costs.py

No weights are needed: shapes are written here, and lengths are those of SQuAD with the paper's edits (passages
of 170 tokens, 4.5 questions of 14, answers of 4, edits as long as ``write.max_tokens``; of puzzles, 375 steps
of two rows of 900 tokens). Time is at :data:`RATE` FLOP/s in 16 bits, of which training and reading are taken
to reach .3 and writing .1 (:data:`seal.loop.cost.SHARES`): assumed, all of it; nobody has run it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerFast

from seal.config import RunConfig, load_config
from seal.loop.cost import Reckoner, short, span
from seal.lora import hardware
from seal.lora.hardware import Shape
from seal.records import Task

CONFIGS = Path(__file__).parents[2] / "configs"
RATE = {24: 120e12, 80: 400e12}
"""By the gigabytes of a card, of dense products in bf16: assumed."""
QWEN2 = {"model_type": "qwen2", "max_position_embeddings": 32768}
QWEN3 = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 32768, "vocab_size": 151936}


def dims(hidden: int, wide: int, layers: int, heads: int, kv: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv,
    }  # fmt: skip


LLAMA_1B = {
    "model_type": "llama", **dims(2048, 8192, 16, 32, 8), "head_dim": 64, "vocab_size": 128256,
    "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": {
        **QWEN2,
        **dims(896, 4864, 24, 14, 2),
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-1.5B": {
        **QWEN2,
        **dims(1536, 8960, 28, 12, 2),
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B": {
        **QWEN2,
        **dims(3584, 18944, 28, 28, 4),
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B-Base": {**QWEN3, **dims(1024, 3072, 28, 16, 8), "tie_word_embeddings": True},
    "Qwen/Qwen3-1.7B-Base": {**QWEN3, **dims(2048, 6144, 28, 16, 8), "tie_word_embeddings": True},
    "Qwen/Qwen3-8B-Base": {**QWEN3, **dims(4096, 12288, 36, 32, 8), "tie_word_embeddings": False},
    "meta-llama/Llama-3.2-1B": LLAMA_1B,
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_1B,
}
"""The models' own configs, as far as they decide what a token costs."""


class Sized:
    """A domain of so many tasks, and nothing in them."""

    def __init__(self, config: RunConfig) -> None:
        self.sizes = config.domain.options["sizes"]
        self.passages = config.domain.name == "knowledge"

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"{split}{i}", {}) for i in range(self.sizes[split])]

    def oracle(self, task: Task) -> str | None:
        return None if self.passages else "{}"

    def plain(self, task: Task) -> str | None:
        return "the passage" if self.passages else None


def shape_of(config: RunConfig, folder: Path) -> Shape:
    where = folder / config.model.name.replace("/", "-")
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(json.dumps(SHAPES[config.model.name]))
    assert AutoConfig.from_pretrained(where)
    core = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(where)
    return Shape(config.model.model_copy(update={"name": str(where), "device": "cpu"}))


def reckoner(config: RunConfig, shape: Shape) -> Reckoner:
    r = Reckoner.__new__(Reckoner)
    domain: Any = Sized(config)
    r.config, r.domain, r.shape = config, domain, shape
    if domain.passages:
        r.prompt, r.plain, r.queries, r.question, r.answer = 220, 170, 4, 63, 18
        r.rows = round(config.inner.recipe.epochs * (170 + config.write.max_tokens))
    else:
        r.prompt, r.plain, r.queries, r.question, r.answer = 1200, 1, 1, 900, 200
        r.rows = 375 * 2 * 900
    return r


def main() -> None:
    lines = [
        "| config | model | GPU | inner loops | tokens trained | written | PFLOP | time, reckoned | memory, reckoned | disk |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(CONFIGS.glob("*.toml")):
            config = load_config(path)
            if config.model.name not in SHAPES:
                continue
            size = 24 if config.model.quantize or "-7B" not in config.model.name else 80
            if path.stem == "paper-arc":
                size = 80
            hardware.product_rate = lambda *_, size=size: RATE[size]
            hardware.free_memory = lambda *_, size=size: int(0.92 * size * 1e9)
            hardware.ENOUGH = {"cpu": 16384, "cuda": 16384}
            shape = shape_of(config, Path(folder))
            r = reckoner(config, shape)
            found = r.cost(r.training(["random"]) + r.evaluation(1), 2)
            lines.append(
                f"| `{path.stem}` | {config.model.name.split('/')[1]}{', 4 bits' if config.model.quantize else ''} | {size} GB "
                f"| {found.loops:,} | {short(found.trained)} | {short(found.written)} | {found.flops / 1e15:,.0f} "
                f"| {span(found.seconds)} | {short(found.memory, 'B')} | {short(found.disk, 'B')} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
