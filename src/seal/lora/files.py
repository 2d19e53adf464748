"""Adapters on disk: PEFT's folder, and many in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seal.lora.adapter import Adapter
from seal.lora.records import LoraError

# ---------------------------------------------------------------------------------------------- PEFT's folder


def save_peft(adapter: Adapter, folder: str | Path, base_model: str) -> None:
    """Write PEFT's folder (``adapter_config.json``, ``adapter_model.safetensors``)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    try:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, most often
        raise OSError(str(error)) from error
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
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


def base_named_in(folder: str | Path) -> str:
    """The model that an adapter says it is of.

    Raises:
        LoraError: it does not say.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        name = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LoraError(f"{path} does not name the model that the adapter is of: {error}") from error
    if not isinstance(name, str) or not name:
        raise LoraError(f"{path} does not name the model that the adapter is of")
    return name


def load_peft(folder: str | Path) -> Adapter:
    """Read a LoRA adapter from PEFT's folder.

    Raises:
        LoraError: a file is missing, or the adapter is of a kind other than plain LoRA.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        if not isinstance(config, dict):
            raise TypeError("adapter_config.json holds no settings")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise LoraError(f"{folder} is not an adapter folder in PEFT's format: {error}") from error
    unsupported = [
        k
        for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
        if config.get(k)
    ]
    unsupported += sorted({k for k in tensors if ".lora_A." not in k and ".lora_B." not in k})[:2]
    if config.get("peft_type") != "LORA" or unsupported:
        raise LoraError(
            f"{folder} is not a plain LoRA adapter ({', '.join(unsupported) or config.get('peft_type')})"
        )
    weights = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[name] = (a.float(), tensors[key.replace(".lora_A.", ".lora_B.")].float())
    return Adapter(int(config["r"]), float(config["lora_alpha"]), weights)
