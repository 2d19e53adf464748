"""Loading a model: from the hub, a folder, or this package; onto one device, several, or in 4 bits."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
)

from seal.lora.adapter import Adapter
from seal.lora.capacity import free_memory, must_fit, spread, weights_bytes
from seal.lora.chat import Conventions, conventions_of, ends_of
from seal.lora.files import base_named_in, load_peft
from seal.lora.model import Model
from seal.lora.names import Place, place_of
from seal.lora.records import LoraError, ModelSpec, is_adapter

SHARE = 0.6
"""Of each device's free memory, what weights may take where a model is spread: adapters and activations need
the rest (assumed)."""


def load_model(spec: ModelSpec | str | Path, rank: int = 0, loaded: Model | None = None) -> Model:
    """Load a causal LM, with the engine that writes and answers for it. A context manager: at its end the
    memory is given back.

    Args:
        spec: which, and how. A name alone is loaded as it stands, with the threads that torch has.
        rank: the largest of the adapters to come, where it is known: vLLM wants to hear it at its start.
        loaded: a model that is loaded already. Where it is of the same weights, they are shared.

    Raises:
        LoraError: there is no such model, it cannot be read, or its engine does not answer.
    """
    if not isinstance(spec, ModelSpec):
        spec = ModelSpec(name=str(spec), threads=None)
    name, spec = spec.name, _over_weights(spec)
    stack = stack_of(spec.adapter) if spec.adapter else None
    if loaded is None or loaded.spec is None or loaded.spec.weights != spec.weights:
        loaded = _weights(spec, rank + (stack.rank if stack else 0))
        loaded.spec = spec.weights
    model = loaded.with_stack(stack)
    model.name, model.spec = name, spec
    return model


def _weights(spec: ModelSpec, rank: int) -> Model:
    _check_device(spec.device)
    if spec.threads:
        torch.set_num_threads(threads_of(spec))
    if spec.name.startswith("fake:"):
        from seal.lora.fake import load_fake

        return load_fake(spec.name)
    model = _load(spec)
    model.conventions = conventions_of(model.tokenizer, ends_of(model.model), spec.chat, spec.system)
    if spec.engine != "transformers":
        from seal.lora.vllm import InProcess, Server

        model.served = InProcess(model, rank) if spec.engine == "vllm" else Server(spec.engine, model)
    return model


def _over_weights(spec: ModelSpec) -> ModelSpec:
    """The same, where an adapter was named as the model: that adapter over the weights that it says it is of,
    or another stack over those."""
    if not is_adapter(spec.name):
        return spec
    name = base_named_in(spec.name)
    if spec.adapter and base_named_in(spec.adapter) != name:
        raise LoraError(f"{spec.adapter} cannot lie over {spec.name}, which is an adapter of {name!r} itself")
    return spec.model_copy(update={"name": name, "adapter": spec.adapter or spec.name})


def stack_of(folder: str | Path) -> Adapter | None:
    """The stack of a policy's folder; one that changes nothing is none."""
    stack = load_peft(folder)
    return stack if any(bool(b.any()) for _, b in stack.weights.values()) else None


def shape_of(spec: ModelSpec) -> tuple[PretrainedConfig, Conventions]:
    """A model's config and its conventions (with the tokenizer), without its weights.

    Raises:
        LoraError: there is no such model, or it cannot be read.
    """
    spec = _over_weights(spec)
    place = place_of(spec.name)
    where, how = place.where, place.how
    try:
        config = AutoConfig.from_pretrained(where, **how)
        tokenizer = AutoTokenizer.from_pretrained(where, **how)
    except Exception as error:
        raise _unreadable(spec.name, error, place) from error
    try:
        ends = GenerationConfig.from_pretrained(where, **how).eos_token_id
    except OSError:  # there is none: the config says it
        ends = getattr(config.get_text_config(), "eos_token_id", None)
    return config, conventions_of(tokenizer, ends, spec.chat, spec.system)


def must_load(folder: Path) -> None:
    """
    Raises:
        LoraError: a folder holds no causal language model with its tokenizer, by its config.
    """
    if is_adapter(folder):
        raise LoraError(f"{folder} holds an adapter, not a whole model: name it as it is (--model {folder})")
    config, _ = shape_of(ModelSpec(name=str(folder)))
    _must_be_causal(str(folder), config)


def _must_be_causal(name: str, config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise LoraError(
            f"the model {name!r} ({config.model_type}) is an encoder with a decoder, not a causal "
            "language model"
        )


def _unreadable(name: str, error: Exception, place: Place) -> LoraError:
    """transformers and safetensors raise many kinds for what a folder can lack."""
    return LoraError(f"the model {name!r} cannot be loaded: {_why(error, place)}")


def _load(spec: ModelSpec) -> Model:
    place = place_of(spec.name)
    where = place.where
    n_devices = spread(spec.device)[1]
    native = native_bf16(spec.device) if spec.bf16 == "auto" and n_devices == 1 else spec.bf16 is True
    how = _how(spec) | place.how
    try:
        shape = AutoConfig.from_pretrained(where, **place.how)
        _must_be_causal(spec.name, shape)
        needed = weights_bytes(shape, spec.dtype, spec.quantize, native and spec.dtype == "float32")
        must_fit(spec.name, needed, spec.device)
        tokenizer = AutoTokenizer.from_pretrained(where, **place.how)
        weights, told = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **how)
    except LoraError:
        raise
    except Exception as error:
        raise _unreadable(spec.name, error, place) from error
    if missing := sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}):
        raise LoraError(
            f"the files of {spec.name!r} lack {len(missing)} weights of a causal language model "
            f"({type(weights).__name__}), the first {missing[0]!r}: it is of another kind, or not whole"
        )
    if len(tokenizer) > (rows := weights.get_input_embeddings().weight.shape[0]):
        raise LoraError(
            f"the tokenizer of {spec.name!r} has {len(tokenizer)} tokens, its embedding only {rows}: they do "
            "not belong "
            "together"
        )
    elsewhere = {str(d) for d in getattr(weights, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if n_devices > 1 and elsewhere:
        raise LoraError(
            f"{spec.name!r} does not fit on {spec.device} with room for training: part of it would lie on "
            f"{elsewhere.pop()}"
        )
    if spec.quantize or n_devices > 1:
        return Model(weights, tokenizer, spec.name)
    return Model(weights.to(spec.device), tokenizer, spec.name, native)


def _how(spec: ModelSpec) -> dict[str, Any]:
    """What transformers is to be told: precision, 4 bits, and where the layers go."""
    how: dict[str, Any] = {"dtype": getattr(torch, spec.dtype)}
    if spec.quantize:
        if find_spec("bitsandbytes") is None:
            raise LoraError("4-bit weights need the package bitsandbytes: pip install 'seal-lm[4bit]'")
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        how = {"dtype": torch.bfloat16, "quantization_config": nf4, "device_map": {"": spec.device}}
    kind, n_devices = spread(spec.device)
    if n_devices > 1:
        if spec.bf16 is True:
            raise LoraError(
                f"bf16 over fp32 weights is a second copy, which {spec.device} does not hold: take "
                "--model.dtype bfloat16"
            )
        if find_spec("accelerate") is None:
            raise LoraError(
                "a model over several devices needs the package accelerate: pip install accelerate"
            )
        most = {i: int(SHARE * free_memory(torch.device(kind, i))) for i in range(n_devices)}
        how |= {"device_map": "auto", "max_memory": most}
    return how


def _why(error: BaseException, place: Place) -> str:
    """In words, from what the hub's client or transformers said."""
    first = " ".join(str(error).split())[:240]
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    kinds = {type(e).__name__ for e in chain}
    if Path(place.where).is_dir():
        return f"it is a folder, but not a whole model: {first}"
    if "RevisionNotFoundError" in kinds:
        return f"it has no revision {place.revision!r} on the hub"
    if "GatedRepoError" in kinds or "gated repo" in first:
        return "it is gated: accept its terms on its page of the hub, then log in with `hf auth login`"
    if "RepositoryNotFoundError" in kinds:
        return "the hub has no such model, or it is private and you are not logged in (`hf auth login`)"
    if "OfflineModeIsEnabled" in kinds:
        return "it is not in the local cache, and the hub may not be asked (HF_HUB_OFFLINE)"
    return f"neither a folder here nor reachable: {first}"


def _check_device(name: str) -> None:
    """
    Raises:
        LoraError: there is no such device on this machine.
    """
    whole, n_devices = spread(name)
    kind, _, number = whole.partition(":")
    if n_devices > 1 and whole != "cuda":
        raise LoraError(f"only cuda can be spread (cuda*2), not {name!r}")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {
        "cpu": not number,
        "cuda": cuda >= n_devices and (not number or (number.isdigit() and int(number) < cuda)),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in there:
        raise LoraError(f"no device is named {name!r}: say cpu, cuda, cuda:1, cuda*2 (over two) or mps")
    if not there[kind]:
        raise LoraError(
            f"the device {name!r} is not on this machine"
            + (f" (it has {cuda} CUDA devices)" if kind == "cuda" else "")
        )


def threads_of(spec: ModelSpec) -> int:
    """The threads that a model computes with."""
    return usable_cores() if spec.threads == "auto" else spec.threads or torch.get_num_threads()


def allowed_cores() -> set[int]:
    """The cores of this process's affinity; all there are on systems that have none (macOS, Windows)."""
    found: set[int] = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )
    return found


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity and its container's quota, without
    hyperthreads."""
    allowed = allowed_cores()
    siblings = set()
    for core in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        siblings.add(path.read_text("utf-8") if path.exists() else str(core))
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = (quota.read_text("utf-8").split() if quota.exists() else ("max", "1"))[:2]
    most = len(allowed) if limit == "max" else max(1, round(int(limit) / int(period)))
    return max(1, min(len(siblings), most))


def native_bf16(device: str) -> bool:
    """Whether a device multiplies bf16 matrices in hardware: elsewhere they are slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text("utf-8") if device == "cpu" and cpu.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
