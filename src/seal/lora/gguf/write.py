"""Whole weights and adapters as GGUF files, for llama.cpp and what is built on it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGUFWriter
from torch import Tensor

from seal.lora.adapter import Adapter
from seal.lora.gguf.kinds import KINDS, Kind, llama3_factors, settings_of, turn
from seal.lora.gguf.read import TOKENIZER
from seal.lora.gguf.tokens import settings_of_tokenizer
from seal.lora.model import Model, must_match, must_not_share_head
from seal.lora.names import place_of
from seal.lora.records import LoraError

Json = dict[str, Any]
ALIKE = {"mistral": "llama"}
"""Kinds of transformers' that are computed as another one."""


def write_adapter(adapter: Adapter, model: Model, out: Path) -> None:
    """Write an adapter as llama.cpp takes it (``--lora``), for a GGUF file of the same model in any quantisation.

    Raises:
        LoraError: the model is of a kind that is not written here, or the adapter is of another one.
        OSError: it cannot be written.
    """
    must_match(adapter, model)
    must_not_share_head(adapter, model.model)
    kind, config = _kind_of(model), model.model.config.to_dict()
    with _written(out, kind) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(adapter.alpha))
        for name, (a, b) in adapter.weights.items():
            stem = _stem(kind, name)
            rows = b.numpy()
            if heads := kind.heads_of(name, config):
                rows = turn(rows, heads)
            writer.add_tensor(f"{stem}.weight.lora_a", np.ascontiguousarray(a.numpy()))
            writer.add_tensor(f"{stem}.weight.lora_b", np.ascontiguousarray(rows))


def write_model(model: Model, out: Path, dtype: Literal["float32", "float16"] = "float32") -> float:
    """Write whole weights, with the stack merged in, as one GGUF file.

    Returns:
        the share of the stack that arrived (:meth:`seal.lora.model.Model.merged`).

    Raises:
        LoraError: the model, a setting of it, or its tokenizer is of a kind that is not written here; or a weight
            does not fit into float16.
        OSError: it cannot be written.
    """
    kind = _kind_of(model)
    whole, arrived = model.merged() if model.stack else (model.model, 1.0)
    config = whole.config.to_dict()
    settings = settings_of(kind, config)
    tokenizer = _tokenizer(model, config["vocab_size"])
    with _written(out, kind) as writer:
        writer.add_type("model")
        writer.add_name(model.base_name)
        writer.add_file_type(0 if dtype == "float32" else 1)
        for key, value in {**{f"{kind.name}.{k}": v for k, v in settings.items()}, **tokenizer}.items():
            _add(writer, key, value)
        rope = config["rope_parameters"]
        if rope.get("rope_type") == "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(rope, config["head_dim"] // 2))
        for name, tensor in whole.named_parameters():
            module, _, last = name.rpartition(".")
            writer.add_tensor(
                f"{_stem(kind, module)}.{last}", _rows(kind, module, tensor.detach(), config, dtype)
            )
    return arrived


def _rows(kind: Kind, module: str, tensor: Tensor, config: Json, dtype: str) -> Any:
    found = tensor.to("cpu", torch.float32).numpy()
    if heads := kind.heads_of(module, config):
        found = turn(found, heads)
    if kind.offset and module.endswith("norm"):
        found = found + 1
    if dtype == "float16" and found.ndim > 1:  # norms and biases stay in fp32 in such files
        if np.abs(found).max(initial=0) > np.finfo(np.float16).max:
            raise LoraError(f"a weight of {module} does not fit into float16: take --dtype float32")
        found = found.astype(np.float16)
    return np.ascontiguousarray(found)


def _kind_of(model: Model) -> Kind:
    config = model.model.config.to_dict()
    own = config.get("model_type")
    kind = next((k for k in KINDS.values() if k.model_type == ALIKE.get(str(own), own)), None)
    if kind is None:
        raise LoraError(
            f"the model {model.name!r} is of the kind {str(own)[:40]!r}, which is not written as GGUF here "
            f"({', '.join(k.model_type for k in KINDS.values())} are): write whole weights (--merge FOLDER), and "
            "take llama.cpp's converter"
        )
    return kind


def _stem(kind: Kind, module: str) -> str:
    stem = kind.stem_of(module)
    if stem is None:
        raise LoraError(f"the layer {module} has no name in a GGUF file of the kind {kind.name}")
    return stem


def _tokenizer(model: Model, n: int) -> Json:
    """As the file said it that the model came from, or worked out."""
    try:
        said = Path(place_of(model.base_name).where) / TOKENIZER
        if said.is_file():
            found: Json = json.loads(said.read_text("utf-8"))
            return found
    except LoraError:  # of a model that lies nowhere by its name
        pass
    return settings_of_tokenizer(model.tokenizer, n, model.conventions.close)


FLOATS = ("scores",)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """A setting, by its Python type, as llama.cpp expects it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, [float(x) for x in value] if key.endswith(FLOATS) else value)


@contextmanager
def _written(out: Path, kind: Kind) -> Iterator[GGUFWriter]:
    """A file that is there when it is whole."""
    if not out.parent.is_dir():
        raise LoraError(f"cannot write {out}: its folder is not there")
    making = out.with_name(f".{out.name}.making-{os.getpid()}")
    writer = GGUFWriter(making, kind.name)
    try:
        yield writer
        steps: list[Callable[[], None]] = [
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ]
        for step in steps:
            step()
        making.replace(out)
    finally:
        with contextlib.suppress(Exception):
            writer.close()
        making.unlink(missing_ok=True)
