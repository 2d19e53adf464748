"""What goes into the adapter trainer, and how text is drawn: records that can be written as JSON. No
torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraError(Exception):
    """Something the user can put right: the message is one sentence that says what and where."""


@dataclass(frozen=True)
class Prompt:
    """What a model is shown. ``text`` is the user's turn (for an instruct model) or the whole prompt (for a
    base model)."""

    text: str
    system: str = ""


class Written(NamedTuple):
    """What a model wrote, and whether it was cut off at the limit of tokens: then its last line is no whole
    one."""

    text: str
    cut: bool = False


THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
"""What models put around their thinking."""


def spoken(text: str) -> str | None:
    """What a model says after it has thought: the text without a block of thinking at its beginning; ``None``
    where that block does not end. A text that begins otherwise is itself, to the letter. What stands before
    an end without a beginning, the last of its line, is thinking too: the beginning was the prompt's."""
    start = text.lstrip()
    for begin, end in THINKING:
        if start.startswith(begin):
            _, found, rest = start.partition(end)
            return spoken(rest.lstrip()) if found else None
        before, found, rest = start.partition(end)
        if found and begin not in before and re.match(r"[ \t]*(\n|$)", rest):
            return spoken(rest.lstrip())
    return text


UNFINISHED = "it begins with thinking that does not end"
"""Why a text of which nothing is :func:`spoken` is no self-edit and no answer."""


@dataclass(frozen=True)
class Example:
    """One training row. Loss falls on ``completion`` and one end token; ``prompt`` is context. An empty
    prompt puts loss on everything."""

    completion: str
    prompt: str = ""
    system: str = ""
    """The system turn before the prompt, as :attr:`Prompt.system`."""
    chat: bool = False
    """Render the prompt through the model's chat template, where it has one."""
    loss_on_prompt: bool = False
    """Let loss fall on the prompt as well."""
    answer: bool = False
    """The completion is an answer, and begins as one does after this prompt: after a space, unless the prompt
    ends in white space or a chat's template begins it otherwise."""
    ends: bool = True
    """Whether the text ends here: then an end token follows, and carries loss."""
    view: str | None = None
    """What the job's teacher sees before this row, and the learner does not (empty: no more than the
    learner); ``None``: of this row the teacher says nothing. See :mod:`seal.lora.teacher`."""


@dataclass(frozen=True)
class Query:
    """A question to a model: the prompt, and the gold answer for likelihood rewards (never shown)."""

    prompt: Prompt
    gold: str


Rate = Annotated[float, Field(gt=0, le=1.0)]


class Recipe(BaseModel):
    """How one adapter is trained. A self-edit may write these itself, so every number has a bound.

    Defaults are the inner loop of the SEAL paper (LoRA rank 32, α 64 on q and v, 1e-3, 10 epochs, batch 1,
    AdamW with linear decay). Exactly one budget holds: ``tokens`` before ``steps`` before ``epochs``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: Annotated[int, Field(ge=1, le=512)] = 32
    """LoRA rank R."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 64.0
    """LoRA scale: the update is (alpha / rank) · B A."""
    targets: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers to adapt (the last part of the module's path, or all of it), or all but the
    output head."""
    last_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Adapt the targets in the last so many layers alone; ``None``: in all."""
    learning_rate: Rate = 1e-3
    """At its highest."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 10
    """Passes over the rows."""
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Optimiser steps, instead of epochs."""
    tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Training tokens (every real token of every row shown), instead of epochs: the last step is the first to
    reach it."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rows of an optimiser step."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = 1.0
    """Largest norm of the adapter's gradient; ``None`` for no clipping."""

    @model_validator(mode="after")
    def _some_target(self) -> Recipe:
        if not self.targets:
            raise ValueError("targets is empty: name at least one layer, or all-linear")
        return self


@dataclass(frozen=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy. Every row has its own seed, so a sample does not depend on
    its batch."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: str = ""
    """Text that ends an answer once something is written (itself cut off); empty for the end token alone."""
    schema: str = ""
    """JSON schema, as JSON, that whatever is written must obey (unless cut off by ``max_tokens``); empty for
    none."""


class ModelSpec(BaseModel):
    """Which model, on what, and how: everything that loading one depends on
    (:func:`seal.lora.load.load_model`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "atlas"
    """A causal LM: its name on the hub (``NAME@REVISION`` pins it), a folder, a GGUF file, or a name of the house:
    ``atlas`` (passages) and ``grids`` (puzzles), which ship with the package, and what ``seal model list`` shows;
    ``fake:FILE.py`` is scripted: a function in a file that says what is written and answered."""
    adapter: str | None = None
    """A folder with a LoRA adapter in PEFT's format that lies over the weights: a policy that SEAL has trained
    (``runs/NAME/seal/round-2/policy``), or any other."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``cuda*4``: spread over four, for a model that one does not
    hold."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights."""
    bf16: bool | Literal["auto"] = False
    """Compute in bf16 over fp32 weights (autocast); ``auto``: where the hardware multiplies bf16 natively."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = "auto"
    """CPU threads; ``auto``: the cores this process may use. A run is bit-identical only to one with the same
    number. ``None``: as torch has it."""
    engine: Annotated[str, Field(pattern=r"^(transformers|vllm|https?://\S+)$")] = "transformers"
    """Who writes edits and answers: ``transformers``; ``vllm``, in this process; or a running ``vllm serve``
    (``http://host:8000/v1``)."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether prompts go through the model's chat template; ``auto``: exactly if the token that ends its turns is
    one that the model ends at, which that of a base model is not."""
    system: str | None = None
    """The system prompt of a chat; empty: none, where the template would insert one of its own."""
    quantize: Literal["4bit"] | None = None
    """Hold the frozen weights in 4 bits (NF4, through bitsandbytes)."""

    def at(self, folder: str | Path) -> ModelSpec:
        """The same for what lies in a folder: a policy as an adapter over these weights, or, as rounds saved
        them once, whole weights. A server keeps the weights that it was started with, so it is not asked for
        others."""
        if self.name.startswith("fake:"):  # what is scripted stays as it is
            return self
        if is_adapter(folder):
            return self.model_copy(update={"adapter": str(folder)})
        engine = "transformers" if self.engine.startswith("http") else self.engine
        return self.model_copy(update={"name": str(folder), "adapter": None, "engine": engine})

    @property
    def weights(self) -> ModelSpec:
        """The same without an adapter over it."""
        return self.model_copy(update={"adapter": None})


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and no whole weights."""
    there = Path(folder)
    return (there / "adapter_config.json").is_file() and not (there / "config.json").is_file()


EMBEDDED = ("atlas", "grids")
"""The models that ship with the package."""
