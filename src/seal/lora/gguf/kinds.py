"""The kinds of model that GGUF files are read and written for: names of tensors, order of rows, settings.

Sources: the GGUF specification (ggml, ``docs/gguf.md``); how llama.cpp computes each kind (``src/models``); the
configs of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seal.lora.records import LoraError

Json = dict[str, Any]
Array = NDArray[Any]

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""A layer's modules: GGUF's ``blk.N.…`` → transformers' ``model.layers.N.…``."""
HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Gemma 2 and 3: norms before and after."""
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

TANH = "gelu_pytorch_tanh"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every Llama 3.1 to 3.3; a file holds the factors alone that these make."""


@dataclass(frozen=True)
class Kind:
    """One architecture of llama.cpp's."""

    name: str
    """In GGUF: ``general.architecture``."""
    model_type: str
    """In transformers."""
    layer: dict[str, str] = field(default_factory=lambda: LAYER)
    turned: bool = False
    """Whether the rows of q and k stand in the order of the original Llama's rotation (pairs of neighbours)."""
    offset: bool = False
    """Whether a norm's weights stand one above transformers'."""
    act: str = "silu"
    more: Callable[[Settings], Json] = lambda _: {}
    """Settings of its own."""

    def module_of(self, name: str) -> tuple[str, str] | None:
        """A tensor's module in transformers, and its last part (weight, bias); ``None``: not of this kind."""
        stem, _, last = name.rpartition(".")
        if last not in ("weight", "bias"):
            return None
        if stem in OUTSIDE:
            return OUTSIDE[stem], last
        block, _, rest = stem.removeprefix("blk.").partition(".")
        number = block.isascii() and block.isdigit() and block == str(int(block))
        if not stem.startswith("blk.") or not number or rest not in self.layer:
            return None
        return f"model.layers.{int(block)}.{self.layer[rest]}", last

    def stem_of(self, module: str) -> str | None:
        """The other way."""
        back = {v: k for k, v in OUTSIDE.items()}
        if module in back:
            return back[module]
        block, _, rest = module.removeprefix("model.layers.").partition(".")
        inner = {v: k for k, v in self.layer.items()}
        if not module.startswith("model.layers.") or not block.isdigit() or rest not in inner:
            return None
        return f"blk.{block}.{inner[rest]}"

    def heads_of(self, module: str, config: Json) -> int | None:
        """How many heads the rows of a module are of, where they are turned."""
        last = module.rsplit(".", 1)[-1]
        if not self.turned or last not in ("q_proj", "k_proj"):
            return None
        return int(config["num_attention_heads" if last == "q_proj" else "num_key_value_heads"])


def turn(rows: Array, heads: int) -> Array:
    """Rows of q or k, as transformers has them (halves of a head), in GGUF's order (pairs of neighbours)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def turn_back(rows: Array, heads: int) -> Array:
    """The inverse of :func:`turn`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Settings:
    """A file's settings, each of which is to be taken once: what is left over is not understood."""

    def __init__(self, kind: str, values: Json, tensors: Sequence[str], rope_factors: Array | None) -> None:
        self.kind, self.values, self.tensors = kind, values, frozenset(tensors)
        self.rope_factors = rope_factors
        self.left = {k for k in values if k.startswith(f"{kind}.")} - {f"{kind}.{k}" for k in HARMLESS}

    def get(self, key: str, default: Any = None) -> Any:
        """One of the kind's own settings (without the kind's name before it), a number in fp32 as it was
        written down.

        Raises:
            LoraError: it is missing and has no default.
        """
        full = f"{self.kind}.{key}"
        self.left.discard(full)
        found = self.values.get(full, default)
        if found is None:
            raise LoraError(f"it does not say {full}")
        return short(found) if isinstance(found, (float, np.floating)) else found

    def number(self, key: str, default: int | None = None, most: int = 10_000_000) -> int:
        """A count.

        Raises:
            LoraError: it is none, or out of bounds.
        """
        found = self.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= most:
            raise LoraError(f"its {self.kind}.{key} is {str(found)[:60]}, which is not understood")
        return found

    def measure(self, key: str, default: float | None = None) -> float:
        """A positive number.

        Raises:
            LoraError: it is none.
        """
        found = self.get(key, default)
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 < found < 1e12:
            raise LoraError(f"its {self.kind}.{key} is {str(found)[:60]}, which is not understood")
        return float(found)


HARMLESS = ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length")
"""Checked by the tensors' shapes, or taken where they count."""


def short(value: float | np.floating[Any]) -> float:
    """The shortest number that is this one in fp32: 1e-05, and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def config_of(kind: Kind, settings: Settings) -> Json:
    """The config of transformers that a file's settings come to.

    Raises:
        LoraError: a setting is missing or not understood.
    """
    get = settings
    heads, hidden = get.number("attention.head_count"), get.number("embedding_length")
    head = get.number("attention.key_length", get.number("rope.dimension_count", hidden // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if get.number(key, head) != head:
            raise LoraError(f"its {kind.name}.{key} is not the size of a head ({head})")
    config = {
        "model_type": kind.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": get.number("block_count", most=1000),
        "intermediate_size": get.number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get.number("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": get.number("context_length"),
        "rms_norm_eps": get.measure("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in settings.tensors,
        "rope_parameters": _rope(settings),
    }
    config[_act_key(kind)] = kind.act
    config |= kind.more(settings)
    if settings.left:
        raise LoraError(f"it sets {', '.join(sorted(settings.left)[:3])}, which is not understood here")
    return config


def _act_key(kind: Kind) -> str:
    return "hidden_activation" if kind.act == TANH else "hidden_act"


def _rope(settings: Settings) -> Json:
    base = settings.measure("rope.freq_base", 10000.0)
    kind = settings.get("rope.scaling.type", "none")
    rope: Json = {"rope_type": "default", "rope_theta": base}
    if settings.rope_factors is not None:
        return _llama3(rope, settings.rope_factors)
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": settings.measure("rope.scaling.factor")}
    elif kind != "none":
        raise LoraError(f"its positions are scaled by {str(kind)[:40]!r}, which is not understood here")
    if kind == "yarn":
        rope["original_max_position_embeddings"] = settings.number("rope.scaling.original_context_length")
    settings.get("rope.scaling.finetuned", False)
    return rope


def _llama3(rope: Json, factors: Array) -> Json:
    """The scaling of Llama 3.1: which of its settings make the factors that the file holds."""
    found = {**rope, **LLAMA3, "rope_type": "llama3", "factor": short(float(factors.max()))}
    if factors.shape == (made := llama3_factors(found, len(factors))).shape and np.allclose(
        factors, made, rtol=1e-4
    ):
        return found
    raise LoraError(
        "it scales its positions by factors of its own (rope_freqs), which is not understood here"
    )


def llama3_factors(rope: Json, n: int) -> Array:
    """By how much each of n frequencies is slowed down (Llama 3.1's own formula, as in llama.cpp's converter)."""
    frequency = rope["rope_theta"] ** -(np.arange(n) / n)
    wave = 2 * np.pi / frequency
    length, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    smooth = (length / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(wave < length / high, 1.0, np.where(wave > length / low, rope["factor"], between)).astype(
        np.float32
    )


def _llama(s: Settings) -> Json:
    if s.get("expert_count", 0) or s.get("expert_used_count", 0):
        raise LoraError("it is a mixture of experts, which is not read from a GGUF file here")
    window = s.number("attention.sliding_window", s.number("context_length"))
    if window < s.number("context_length"):
        raise LoraError(f"its attention has a window ({window}), which is not known of this kind")
    return {"attention_bias": "blk.0.attn_q.bias" in s.tensors, "mlp_bias": "blk.0.ffn_up.bias" in s.tensors}


def _gemma2(s: Settings) -> Json:
    heads, hidden = s.number("attention.head_count"), s.number("embedding_length")
    head = s.number("attention.key_length", hidden // heads)
    return {
        "sliding_window": s.number("attention.sliding_window", 4096),
        "layer_types": [
            "full_attention" if i % 2 else "sliding_attention" for i in range(s.number("block_count"))
        ],
        "attn_logit_softcapping": s.measure("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": s.measure("final_logit_softcapping", 30.0),
        # the one of 46 layers divides by another number, which no file says
        "query_pre_attn_scalar": hidden // heads if s.number("block_count") == 46 else head,
    }


def _gemma3(s: Settings) -> Json:
    heads, hidden = s.number("attention.head_count"), s.number("embedding_length")
    head, layers = s.number("attention.key_length", hidden // heads), s.number("block_count")
    pattern = s.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        local = [bool(x) for x in pattern]
    else:
        local = [bool((i + 1) % s.number("attention.sliding_window_pattern", 6)) for i in range(layers)]
    everywhere = _rope(s)
    nearby = {"rope_type": "default", "rope_theta": s.measure("rope.freq_base_swa", 10000.0)}
    cap = s.get("final_logit_softcapping", 0.0)
    return {
        "sliding_window": s.number("attention.sliding_window"),
        "layer_types": ["sliding_attention" if x else "full_attention" for x in local],
        "query_pre_attn_scalar": hidden // heads if layers == 62 else head,
        "final_logit_softcapping": cap or None,
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": nearby},
    }


KINDS = {
    k.name: k
    for k in (
        Kind("llama", "llama", turned=True, more=_llama),
        Kind("qwen2", "qwen2"),
        Kind("qwen3", "qwen3", LAYER | HEADS),
        Kind("gemma", "gemma", offset=True, act=TANH),
        Kind("gemma2", "gemma2", LAYER | SANDWICH, offset=True, act=TANH, more=_gemma2),
        Kind("gemma3", "gemma3_text", LAYER | HEADS | SANDWICH, offset=True, act=TANH, more=_gemma3),
    )
}


def settings_of(kind: Kind, config: Json) -> Json:
    """The other way: what a GGUF file says of a config of transformers.

    Raises:
        LoraError: the config has something that such a file cannot say.
    """
    ropes = config["rope_parameters"]
    rope = ropes.get("full_attention", ropes)
    said: Json = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    if rope["rope_type"] in ("linear", "yarn"):
        said |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        if rope["rope_type"] == "yarn":
            said["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    elif rope["rope_type"] not in ("default", "llama3"):
        raise LoraError(f"positions scaled by {rope['rope_type']!r} are not written as GGUF here")
    if kind.name in ("gemma2", "gemma3"):
        said["attention.sliding_window"] = config["sliding_window"]
    if kind.name == "gemma2":
        said["attn_logit_softcapping"] = float(config["attn_logit_softcapping"])
        said["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    elif kind.name == "gemma3":
        said["rope.freq_base_swa"] = float(ropes["sliding_attention"]["rope_theta"])
        if cap := config.get("final_logit_softcapping"):
            said["final_logit_softcapping"] = float(cap)
    read_again = config_of(
        kind,
        Settings(
            kind.name,
            {f"{kind.name}.{k}": v for k, v in said.items()},
            _tensors_of(config),
            llama3_factors(rope, config["head_dim"] // 2) if rope["rope_type"] == "llama3" else None,
        ),
    )
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    narrow = bool(window) and window < config["max_position_embeddings"]
    if kind.act != TANH and (narrow or "sliding_attention" in (config.get("layer_types") or ())):
        raise LoraError("layers that see a window alone are not written as GGUF of this kind here")
    if (act := config.get("hidden_activation") or config.get("hidden_act")) != kind.act:
        raise LoraError(f"its setting hidden_act ({act}) is not what a GGUF file can say")
    if more := _unsaid(config["rope_parameters"], read_again["rope_parameters"]):
        raise LoraError(f"its positions are scaled with {', '.join(more)}, which is not written as GGUF here")
    for key, value in read_again.items():
        if key in config and key != "model_type" and not _same(config[key], value):
            raise LoraError(f"its setting {key} ({str(config[key])[:60]}) is not what a GGUF file can say")
    return said


def _unsaid(ropes: Json, read_again: Json) -> list[str]:
    """Settings of positions that would be lost."""
    found = []
    for key, value in ropes.items():
        if isinstance(value, dict):
            found += _unsaid(value, read_again.get(key, {}))
        elif (
            key not in read_again
            and value is not None
            and (key, value) not in (("partial_rotary_factor", 1.0),)
        ):
            found.append(key)
    return found


def _tensors_of(config: Json) -> list[str]:
    """Of the tensors' names those that settings are read from."""
    found = [] if config.get("tie_word_embeddings") else ["output.weight"]
    found += ["blk.0.attn_q.bias"] if config.get("attention_bias") else []
    return found + (["blk.0.ffn_up.bias"] if config.get("mlp_bias") else [])


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a config mean the same; what one of two tables lacks is its default."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_same(a[k], b[k]) for k in a.keys() & b.keys())
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return bool(np.isclose(a, b, rtol=1e-6))
    return bool(a == b)
