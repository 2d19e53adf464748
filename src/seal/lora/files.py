"""Adapters on disk: PEFT's folder, and many in one file."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seal.lora.adapter import Adapter
from seal.lora.names import HUB
from seal.lora.records import LoraError

# ---------------------------------------------------------------------------------------------- PEFT's folder


BASE = "seal_base"
"""In the weights file's own notes: which weights the adapter is of (:meth:`seal.lora.model.Model.fingerprint`)."""
Json = dict[str, Any]


def save_peft(
    adapter: Adapter, folder: str | Path, base_model: str, base: dict[str, str] | None = None
) -> None:
    """Write PEFT's folder (``adapter_config.json``, ``adapter_model.safetensors``).

    Args:
        base_model: the name of the model that it is of.
        base: the hash of those weights (:meth:`seal.lora.model.Model.fingerprint`): other ones are refused
            when it is asked.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    # one note alone: safetensors writes several in any order, and the same adapter is to be the same bytes
    notes = {BASE: json.dumps(base, sort_keys=True)} if base else {"format": "pt"}
    try:
        save_file(tensors, folder / "adapter_model.safetensors", metadata=notes)
    except SafetensorError as error:  # a full disk, most often
        raise OSError(str(error)) from error
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        **_named(base_model),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # whole paths: a last part alone may name layers that are not adapted (experts, other blocks)
        "target_modules": sorted(adapter.weights),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _named(base_model: str) -> Json:
    """A model's name as PEFT says it: the revision of the hub by itself."""
    name, _, revision = base_model.partition("@")
    if not revision or not HUB.fullmatch(base_model) or Path(base_model).exists():
        return {"base_model_name_or_path": base_model}
    return {"base_model_name_or_path": name, "revision": revision}


def save_many(adapters: Sequence[Adapter], path: Path) -> None:
    """Several adapters in one file, for ourselves."""
    tensors = {
        f"{k}/{n}/{'AB'[i]}": t.contiguous()
        for k, x in enumerate(adapters)
        for n, pair in x.weights.items()
        for i, t in enumerate(pair)
    }
    save_file(tensors, path, metadata={"adapters": json.dumps([[x.rank, x.alpha] for x in adapters])})


def load_many(path: Path) -> list[Adapter]:
    """What :func:`save_many` wrote, to the bit."""
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["adapters"])
        weights: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in shapes]
        for key in file.keys():  # noqa: SIM118
            k, name, part = key.split("/")
            if part == "A":
                weights[int(k)][name] = (file.get_tensor(key), file.get_tensor(f"{k}/{name}/B"))
    return [Adapter(rank, alpha, w) for (rank, alpha), w in zip(shapes, weights, strict=True)]


def copy_adapter(folder: Path, to: Path) -> None:
    """An adapter's two files, into another folder."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folder / name, to / name)


def base_named_in(folder: str | Path) -> str:
    """The model that an adapter says it is of.

    Raises:
        LoraError: it does not say.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LoraError(f"{path} does not name the model that the adapter is of: {error}") from error
    if not isinstance(name, str) or not name:
        raise LoraError(f"{path} does not name the model that the adapter is of")
    return f"{name}@{revision}" if isinstance(revision, str) and revision else name


HARMLESS = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("init_lora_weights", "megatron_core", "qalora_group_size", "runtime_config"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}
"""Settings of PEFT's that say where an adapter goes or how it began, or that are computed here."""
BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin that leave the base weights as they are; PiSSA, OLoRA, CorDA and their like take a part out of
them, and the adapter is wrong over the weights as they were."""


def load_peft(folder: str | Path) -> Adapter:
    """Read a LoRA adapter from PEFT's folder: one that computes here what it does in PEFT. Ranks and scales by
    module, and rsLoRA's, are put into B.

    Raises:
        LoraError: a file is missing, or the adapter is of a kind that is not computed here: which.
    """
    folder = Path(folder)
    if (folder / "adapter_model.bin").exists() and not (folder / "adapter_model.safetensors").exists():
        raise LoraError(
            f"{folder} holds its weights as a pickle, which can run any program: save it again with PEFT as "
            "safetensors"
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            about = json.loads((file.metadata() or {}).get(BASE) or "null")
        if not isinstance(config, dict):
            raise TypeError("adapter_config.json holds no settings")
        rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
        if not _is_size(rank, 4096) or not isinstance(rank, int) or not _is_size(alpha, 1e9):
            raise TypeError(f"r is {str(rank)[:40]} and lora_alpha {str(alpha)[:40]}")
        if not all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point()):
            raise ValueError("it holds numbers that are not finite")
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise LoraError(f"{folder} is not an adapter folder in PEFT's format: {error}") from error
    if strange := _strange(config, tensors):
        raise LoraError(f"{folder} is not an adapter that is computed here: it has {', '.join(strange[:3])}")
    pairs = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            a.float(),
            tensors[key.replace(".lora_A.", ".lora_B.")].float(),
        )
        for key, a in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    if not pairs:
        raise LoraError(f"{folder} holds no adapter of a linear layer")
    found = _one_scale(folder, config, pairs)
    return replace(found, base=about) if isinstance(about, dict) else found


PREFIX = "base_model.model."
"""Of every tensor's name in PEFT's file."""


def _is_size(value: Any, most: float) -> bool:
    """Whether it is a number above 0, and none that is too large (or not finite)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most


def _strange(config: Json, tensors: dict[str, Tensor]) -> list[str]:
    """What of an adapter is not computed here."""
    kind = config.get("peft_type")
    found = [] if kind == "LORA" else [f"peft_type {kind}"]
    begun = config.get("init_lora_weights")
    if not any(begun is x or (isinstance(x, str) and begun == x) for x in BEGINNINGS):
        found.append(f"init_lora_weights {begun!r}, which changes the base weights")
    defaults = {"bias": "none"}
    for key, value in config.items():
        if key not in HARMLESS and value and value != defaults.get(key):
            found.append(f"{key} {str(value)[:40]}")
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    for name in dict.fromkeys(k.rpartition(".lora_")[0].removeprefix(PREFIX) for k in tensors):
        suffixes = (f".{name}".endswith(f".{t}") for t in targets) if isinstance(targets, list) else [True]
        numbers = [int(x) for x in name.split(".") if x.isdigit()]
        chosen = [layers] if isinstance(layers, int) else layers
        if not any(suffixes) or (isinstance(chosen, list) and numbers and numbers[0] not in chosen):
            found.append(f"a tensor of {name}, which its settings leave out")
    ends = (".lora_A.weight", ".lora_B.weight")
    found += sorted(
        f"the tensor {k}"
        for k, x in tensors.items()
        if not k.endswith(ends) or not k.startswith(PREFIX) or x.ndim != 2
    )
    for key in tensors:
        other = (
            key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        )
        if other not in tensors:
            found.append(f"the tensor {key} without its other half")
    return found


PLAIN = re.compile(r"(?:[\w.$^|()-]|\\[.dw]\+?|\.\*|\[0-9\]\+?)*")
"""Patterns of module names that are looked for: those in use, and none that takes for ever."""


def _one_scale(folder: Path, config: Json, pairs: dict[str, tuple[Tensor, Tensor]]) -> Adapter:
    """An adapter of one rank and one scale, whatever its modules have of their own.

    Raises:
        LoraError: a pattern is none, or the weights are not of the ranks that the config says.
    """
    patterns = [config.get(k) or {} for k in ("rank_pattern", "alpha_pattern")]
    for pattern in patterns:
        for key, value in pattern.items() if isinstance(pattern, dict) else ():
            if not _is_size(value, 1e9):
                raise LoraError(
                    f"{folder}: of {str(key)[:60]!r} its settings say {str(value)[:40]}, no number"
                )
        for key in pattern if isinstance(pattern, dict) else [str(pattern)]:
            if len(key) > 200 or not PLAIN.fullmatch(key) or len(re.findall(r"[*+]", key)) > 4:
                raise LoraError(f"{folder}: the pattern {key[:60]!r} of module names is not understood")

    def of(pattern: Json, name: str, default: float) -> float:
        """By the first pattern that fits, as PEFT does (``get_pattern_key``)."""
        try:
            return next((v for k, v in pattern.items() if re.match(rf"(.*\.)?({k})$", name)), default)
        except (re.error, AttributeError) as error:
            raise LoraError(f"{folder}: a pattern of module names is none: {error}") from error

    scales = {}
    for name, (a, b) in pairs.items():
        rank, alpha = (
            of(patterns[0], name, config.get("r", 8)),
            of(patterns[1], name, config.get("lora_alpha", 8)),
        )
        if len(a) != rank or b.shape[1] != rank:
            raise LoraError(
                f"{folder}: the layer {name} has rank {len(a)} (and {b.shape[1]}), its settings say {rank}"
            )
        scales[name] = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    rank = max(len(a) for a, _ in pairs.values())
    scale = next(iter(scales.values()))
    if len(set(scales.values())) == 1 and all(len(a) == rank for a, _ in pairs.values()):
        plain = not config.get("use_rslora")
        return Adapter(
            rank, float(config.get("lora_alpha", 8)) if plain and not any(patterns) else scale * rank, pairs
        )
    weights = {}
    for name, (a, b) in pairs.items():
        short = rank - len(a)
        scaled = b * (scales[name] / scale) if scales[name] != scale else b
        weights[name] = (
            torch.cat([a, a.new_zeros(short, a.shape[1])]),
            torch.cat([scaled, b.new_zeros(len(b), short)], 1),
        )
    return Adapter(rank, scale * rank, weights)
