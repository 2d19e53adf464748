"""What was learnt, for other programs: a policy of a run, or a taught adapter, merged into its model or as GGUF."""

from __future__ import annotations

import sys
from pathlib import Path

from seal.config import RunConfig
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.records import SealError
from seal.store import Stage, policy_of, read_config
from seal.teach.ask import open_taught

ARRIVED = 0.999
"""Share of an update that must arrive in the weights not to be told."""


def merge(source: Path, out: Path, model: str | None, dtype: str | None, stage: str | None) -> None:
    """Write whole weights under ``out``, which any ``from_pretrained`` reads; as one file where it ends in
    ``.gguf``.

    Args:
        source: a run folder, one of ``seal learn``, or an adapter in PEFT's format.
        model: the base model, where ``source`` does not name the right one.
        dtype: of the weights; ``None``: float32.
        stage: of a run, the round whose policy it is to be (``seal/round-1``); ``None``: its last.

    Raises:
        SealError: there is nothing to merge, or ``out`` exists.
    """
    if out.exists():
        raise SealError(f"{out} exists already, and nothing is overwritten: give another --merge")
    one_file = out.suffix.lower() == ".gguf"
    if dtype == ("bfloat16" if one_file else "float16"):
        raise SealError(f"--dtype {dtype} is not written as {'a GGUF file' if one_file else 'a folder'}")
    whole = _learnt(source, model, stage, "float32" if one_file else dtype)

    def fill(to: Path) -> None:
        if one_file:
            from seal.lora.gguf.write import write_model

            arrived = write_model(whole, to, "float16" if dtype == "float16" else "float32")
        else:
            arrived = whole.save(to)
        if arrived < ARRIVED:
            print(
                f"seal: {arrived:.0%} of the update arrived in 16-bit weights, the rest is rounded away: take "
                "--dtype float32, or keep the adapter",
                file=sys.stderr,
            )

    if one_file:
        fill(out)
    else:
        Stage(out.parent).once_folder(out.name, fill)


def adapter_as_gguf(source: Path, out: Path, model: str | None, stage: str | None) -> None:
    """Write what was learnt as an adapter of llama.cpp's.

    Args:
        source, model, stage: as of :func:`merge`.

    Raises:
        SealError: there is nothing to write.
    """
    from seal.lora.gguf.write import write_adapter

    learnt = _learnt(source, model, stage, None)
    if learnt.stack is None:
        raise SealError(f"{source} has learnt nothing yet: its policy is the model as it was")
    write_adapter(learnt.stack, learnt.with_stack(None), out)


def _learnt(source: Path, model: str | None, stage: str | None, dtype: str | None) -> Model:
    """The model with what a source has learnt as its stack."""
    how = {"dtype": dtype or "float32", "threads": None}
    if (source / "config.json").exists() and (source / "run.json").exists():
        return _policy(source, stage, model, how)
    if stage:
        raise SealError(f"--stage is of a run folder, and {source} is none")
    return _taught(source, model, how)


def _policy(source: Path, stage: str | None, model: str | None, how: dict[str, str | None]) -> Model:
    config = RunConfig.model_validate(read_config(source))
    branch, _, last = (stage or f"seal/round-{config.rounds}").partition("/")
    number = int(last.removeprefix("round-")) if last.removeprefix("round-").isdigit() else 0
    if not number or not (source / branch / last / "policy").is_dir():
        raise SealError(
            f"{source} has no policy of {branch}/{last or 'round-1'}: say --stage seal/round-1, …"
        )
    spec = policy_of(config.model, source, branch, number)
    named = {"name": model} if model else {}
    return load_model(
        spec.model_copy(update={**how, **named, "quantize": None, "bf16": False, "device": "cpu"})
    )


def _taught(source: Path, model: str | None, how: dict[str, str | None]) -> Model:
    taught = open_taught(source)
    name = model or taught.model
    if not name:
        raise SealError(f"{source} does not name its model: say --model")
    if not taught.adapters:
        raise SealError(f"{source} has no adapter: the model knew every passage, or none of them helped")
    if len(taught.adapters) != 1:
        folders = ", ".join(str(p) for p in taught.adapters.values())
        raise SealError(f"{source} has an adapter for each document: merge one of them ({folders[:300]})")
    base = load_model(ModelSpec.model_validate({"name": name, **how}))
    (adapter,) = taught.load(base).values()
    return base.plus(adapter)
