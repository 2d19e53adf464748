"""A GGUF file as a model folder: dequantised, its tokenizer and config worked out."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from seal.lora.gguf.kinds import KINDS, Kind, Settings, config_of, turn_back
from seal.lora.gguf.tokens import ends_in, must_load_alike, tokenizer_of
from seal.lora.records import LoraError

Json = dict[str, Any]
SHARD = 2_000_000_000
"""Bytes of a file of weights, at most (unless one tensor is larger): no more than that is held at once."""
PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
"""What is kept as it is. What is quantised becomes fp32, which holds its numbers exactly."""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
TOKENIZER = "gguf_tokenizer.json"
"""In the folder: the tokenizer as the file described it, so that it can be written again to the letter."""


class Open:
    """A GGUF file that is open for reading.

    Raises:
        LoraError: it is none, or not whole, or not of a kind that is read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                start = file.read(8)
        except OSError as error:
            raise LoraError(f"the file {path} cannot be read: {error.strerror}") from error
        if start[:4] != b"GGUF":
            raise LoraError(f"{path} is no GGUF file: it begins otherwise")
        if start[4:6] == b"\0\0":
            raise LoraError(f"{path} is of a machine with the other order of bytes, which is not read here")
        try:
            self.reader = GGUFReader(path)
            self.meta: Json = {k: f.contents() for k, f in self.reader.fields.items()}
            split = self.meta.get("split.count", 1) > 1
        except Exception as error:  # of a file that somebody else wrote: the reader raises whatever it meets
            raise LoraError(f"{path} is damaged or cut off: {_said(error)}") from error
        if split:
            raise LoraError(f"{path} is one of several parts: join them first (llama-gguf-split --merge)")
        if (what := self.meta.get("general.type", "model")) != "model":
            raise LoraError(f"{path} holds no model but {str(what)[:40]!r}")
        name = str(self.meta.get("general.architecture"))
        if name not in KINDS:
            raise LoraError(
                f"{path} is of the kind {name[:40]!r}, which is not read here ({', '.join(KINDS)} are): take "
                "the model's own folder or its name on the hub"
            )
        self.kind: Kind = KINDS[name]
        self.tensors = {t.name: t for t in self.reader.tensors}
        end = max((int(t.data_offset) + int(t.n_bytes) for t in self.reader.tensors), default=0)
        if not self.tensors or end > path.stat().st_size:
            raise LoraError(f"{path} is damaged or cut off: it ends before its last weights")

    @property
    def bytes(self) -> int:
        """That its weights take once they are dequantised."""
        return sum(
            int(t.n_elements) * PLAIN.get(t.tensor_type, torch.float32).itemsize
            for t in self.tensors.values()
        )

    def read(self, name: str) -> Tensor:
        """A tensor, dequantised."""
        tensor = self.tensors[name]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if tensor.tensor_type == GGMLQuantizationType.BF16:
            raw = np.ascontiguousarray(tensor.data).view(np.int16).reshape(shape)
            return torch.from_numpy(raw.copy()).view(torch.bfloat16)
        if tensor.tensor_type in PLAIN:
            return torch.from_numpy(np.array(tensor.data).reshape(shape))
        return torch.from_numpy(
            np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
        )


def convert(source: Path | Open, folder: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a GGUF file as a folder that any ``from_pretrained`` reads: config, tokenizer, safetensors.

    Args:
        folder: a new one, empty; what is in it after an error is to be thrown away.
        advance: told of the bytes written.

    Raises:
        LoraError: the file is damaged, of another kind, or sets something that is not understood here.
        OSError: it cannot be written.
    """
    opened = source if isinstance(source, Open) else Open(source)
    try:
        config = _config(opened)
        tokenizer = tokenizer_of(opened.meta, opened.kind.name)
        names = _names(opened, config)
        _must_be_whole(opened, config, names)
        tokenizer.save_pretrained(folder)
        _write(folder / "config.json", config)
        must_load_alike(tokenizer, folder)
    except (LoraError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        said = error if isinstance(error, LoraError) else _said(error)
        raise LoraError(f"{opened.path} cannot be read as a model: {said}") from error
    ends = ends_in(opened.meta)
    _write(folder / "generation_config.json", {"eos_token_id": _one_or_all(ends)})
    kept = {k: v for k, v in opened.meta.items() if k.startswith("tokenizer.")}
    _write(folder / TOKENIZER, kept)
    try:
        _save(folder, _weights(opened, config, names), advance)
    except SafetensorError as error:  # a full disk, most often
        raise OSError(str(error)) from error
    except (ValueError, TypeError, NotImplementedError) as error:  # of a type that is not dequantised
        raise LoraError(f"{opened.path} cannot be read as a model: {_said(error)}") from error


def _config(opened: Open) -> Json:
    factors = (
        opened.read("rope_freqs.weight").float().numpy() if "rope_freqs.weight" in opened.tensors else None
    )
    settings = Settings(opened.kind.name, opened.meta, list(opened.tensors), factors)
    config = config_of(opened.kind, settings)
    embedding = opened.tensors.get("token_embd.weight")
    if embedding is None:
        raise LoraError("it has no embedding (token_embd.weight)")
    config["vocab_size"] = int(embedding.shape[-1])
    ends = ends_in(opened.meta)
    config["eos_token_id"] = _one_or_all(ends)
    config["bos_token_id"] = opened.meta.get("tokenizer.ggml.bos_token_id")
    config["dtype"] = str(PLAIN.get(embedding.tensor_type, torch.float32)).removeprefix("torch.")
    try:
        made: Json = AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # of values that somebody else wrote
        raise LoraError(f"transformers does not take its settings: {_said(error)}") from error
    return {**made, "architectures": [ARCHITECTURES[config["model_type"]]]}


def _one_or_all(ends: list[int]) -> int | list[int] | None:
    return ends if len(ends) > 1 else next(iter(ends), None)


def _names(opened: Open, config: Json) -> dict[str, str]:
    """Each tensor's name in transformers: all of them have one.

    Raises:
        LoraError: one has none.
    """
    found = {}
    for name in opened.tensors:
        if name == "rope_freqs.weight":  # by now a setting
            continue
        module = opened.kind.module_of(name)
        if module is None:
            raise LoraError(f"its tensor {name[:80]!r} is not known of the kind {opened.kind.name}")
        found[name] = ".".join(module)
    if len(set(found.values())) < len(found):
        raise LoraError("two of its tensors are the same weight")
    return found


def _must_be_whole(opened: Open, config: Json, names: dict[str, str]) -> None:
    """
    Raises:
        LoraError: the weights are not those of such a model, by name and shape.
    """
    try:
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    except Exception as error:  # of values that somebody else wrote
        raise LoraError(f"transformers does not make a model of its settings: {_said(error)}") from error
    wanted = {n: tuple(p.shape) for n, p in empty.named_parameters()}
    there = {names[n]: tuple(int(x) for x in reversed(opened.tensors[n].shape)) for n in names}
    if missing := sorted(wanted.keys() - there.keys()):
        raise LoraError(f"it lacks {len(missing)} weights, the first {missing[0]}")
    if strange := sorted(there.keys() - wanted.keys()):
        raise LoraError(f"it has {len(strange)} weights that such a model has not, the first {strange[0]}")
    for name, shape in there.items():
        if shape != wanted[name]:
            raise LoraError(f"its {name} is of shape {shape}, and its settings make {wanted[name]}")


def _weights(opened: Open, config: Json, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for gguf, name in names.items():
        tensor = opened.read(gguf)
        module = name.rpartition(".")[0]
        if not bool(tensor.isfinite().all()):
            raise LoraError(
                f"{opened.path} cannot be read as a model: {gguf} holds numbers that are not finite"
            )
        if heads := opened.kind.heads_of(module, config):
            back = turn_back(tensor.float().numpy(), heads)
            tensor = torch.from_numpy(np.ascontiguousarray(back)).to(tensor.dtype)
        if opened.kind.offset and module.endswith("norm"):
            tensor = tensor.float() - 1
        yield name, tensor


def _save(folder: Path, weights: Iterator[tuple[str, Tensor]], advance: Callable[[int], None]) -> None:
    """In files of at most :data:`SHARD` bytes, with their index where there are several."""
    shards: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        save_file(held, folder / f"model-{len(shards) + 1:05}.safetensors", metadata={"format": "pt"})
        shards.append({n: t.nbytes for n, t in held.items()})
        advance(sum(shards[-1].values()))
        held.clear()

    for name, tensor in weights:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD:
            flush()
        held[name] = tensor.contiguous()
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    of: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        (folder / f"model-{i:05}.safetensors").rename(folder / file)
        of |= dict.fromkeys(shard, file)
    total = sum(sum(s.values()) for s in shards)
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": of})


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _said(error: BaseException) -> str:
    kind = "" if isinstance(error, (ValueError, struct.error)) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:200]
