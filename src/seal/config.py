"""The configuration: TOML and dotted flags in, one validated and frozen :class:`RunConfig` out. Unknown keys
are refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seal.lora.records import ModelSpec
from seal.records import Json, Recipe, SealError

Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DomainConfig(Part):
    name: str = "knowledge"
    """``knowledge``, ``arc``, or a class of your own: ``my_domain.py:MyDomain``."""
    options: dict[str, Any] = {}
    """Arguments of the domain's class: for ``knowledge``: source, prompt, grader, sizes, seed, passage_row;
    for ``arc``: source, preset, sizes, form, most_cells, limit, max_steps, batch_size, views, seed."""


class WriteConfig(Part):
    max_tokens: Count = 256
    """Longest self-edit, in tokens."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    constrained: bool = False
    """Let the model write only what the domain's schema allows (for edits in JSON; needs llguidance)."""
    resample: Annotated[int, Field(ge=0, le=20)] = 0
    """Draw an edit that cannot be used again, at most so often (the paper's ARC code does, without end). The
    count is kept in the stage's ``resampled.json``."""
    explore: bool = False
    """End the edits of the first round with directives drawn at random, for a domain that has some: a model
    that has never written any learns from those that helped."""


class InnerConfig(Part):
    recipe: Recipe = Recipe()
    """How an adapter is trained on one self-edit."""
    seeds: Count = 1
    """Training seeds per edit; sibling edits share them."""
    reward: Literal["accuracy", "likelihood", "mixed"] = "likelihood"
    """``likelihood``: mean over questions of the gold answer's probability per token, which is less a matter
    of luck and needs no judge (docs/rewards.md); ``accuracy``: share of right answers, the paper's;
    ``mixed``: the mean of both."""
    start: Literal["policy", "base"] = "policy"
    """What the adapters are trained on: the current policy (as in the paper) or the model as it was before
    any round."""
    answer_tokens: Count = 64
    """Longest answer, in tokens."""
    slots: Count | Literal["auto"] = "auto"
    """Adapters trained side by side; ``auto``: as many as fit in memory, 64 at most."""
    pass_tokens: Count | Literal["auto"] = "auto"
    """Most tokens of one forward and backward over several adapters; ``auto``: what fits, and is worth it on
    the device."""
    wave: Count = 64
    """Attempts finished and recorded together. What a kill can lose is at most one wave in the making."""


class TrialConfig(Part):
    """How the sibling edits of a round are tried, so that inner loops are spent where they decide."""

    race: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Inner loops per task, spent by sequential halving among its edits; ``None``: every edit is tried with
    ``inner.seeds`` seeds."""
    proxy: str | None = None
    """A score that chooses without any trial: exposure, or a judge (``http://host/v1#model``, ``hf:MODEL``);
    see :mod:`seal.loop.race`."""


class OuterConfig(Part):
    recipe: Recipe = Recipe(
        rank=64,
        alpha=128,
        targets="all-linear",
        learning_rate=3e-4,
        epochs=2,
        batch_size=10,
        schedule="linear",
    )
    """How the policy is finetuned on the edits that were kept."""
    select: Literal["best_of", "improved", "solved"] = "best_of"
    """Which edits are kept: of each task the best, all that helped, or all that solve it whole."""
    keep: Count = 1
    """Edits kept per task (``best_of``)."""
    rule: Literal["sft", "dpo", "ipo", "grpo"] = "sft"
    """How the policy learns from a round: ``sft`` imitates what was kept (ReST-EM); the others, through TRL,
    prefer each task's best edit to its worst (DPO, IPO), or weigh all siblings by their advantage (GRPO)."""
    beta: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Strength of the pull towards the policy before the round (DPO, IPO, GRPO)."""
    compress: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Largest rank of the policy's stack of adapters, which grows by ``recipe.rank`` with every round; a
    larger one is compressed (SVD), and what that loses is told. ``None``: nothing is lost."""
    imitate: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of imitating the best edit beside preferring it (DPO, IPO; as in Pang et al., *Iterative
    Reasoning Preference Optimization*, 2024): without it both of a pair may become less likely, the best one
    too (docs/rewards.md)."""


class EvalConfig(Part):
    edits_per_task: Count = 2
    """Edits sampled per held-out task and tried; a task's score is their mean."""
    siblings: Count = 3
    """Edits sampled per held-out task to describe a policy by (their likeness, kinds of lines); at least
    those tried."""
    pool: Literal["lora", "full"] | None = None
    """Continued pretraining: the edits of all held-out tasks go into one adapter (``full``: into every
    weight), which is asked all questions. ``None``: one adapter per edit."""
    external: str | None = None
    """Another model as one more writer: a JSON list of {title, context, completions} for the held-out tasks,
    or an OpenAI-compatible endpoint (``http://host/v1#model``)."""
    saturation_epochs: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 30, 100)
    """Lengths tried for *passage only, at saturation*; the best on the selection tasks is the one
    evaluated."""
    saturation_tasks: Count = 24
    """How many selection tasks that choice is made on."""


class ContinualConfig(Part):
    sequences: Count = 8
    """Independent sequences of passages; they go side by side."""
    length: Count = 8
    """Passages of a sequence, learnt one after the other."""
    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = ("merge",)
    """How what was learnt is kept: merge, replay:0.5, own:0.3, last:2, orthogonal, slao, gate, library,
    consolidate, and several joined by ``+`` (:mod:`seal.memory.strategies`)."""
    known: Count = 24
    """Tasks that the model has the answers to, to see what it forgets; as many others serve as probes of
    ``gate``."""
    rehearsed: Annotated[int, Field(ge=0)] = 0
    """Tasks, others again, whose answers by the untouched model are what ``own`` trains on; 0: the probes."""
    ask_every: Count = 1
    """Ask all passages so far after every so many steps (and the last); the newest is asked at each."""
    policy: str | None = None
    """A trained policy that writes the edits; ``None``: the model itself."""


class RunConfig(Part):
    """Everything a run depends on. Written into the run folder; a folder is never continued under another
    one."""

    name: Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")] = "run"
    """The run's folder is ``RUNS/name``."""
    runs: str = "runs"
    """Where run folders live."""
    seed: int = 0
    workers: Annotated[int, Field(ge=0, le=4096)] = 0
    """Processes that try edits, each with a device and a copy of the model, through Ray; 0: this process
    alone. Results are the same."""
    cluster: str | None = None
    """Address of a running Ray cluster for the workers (``auto``, ``host:port``); ``None``: they are started
    here."""
    rounds: Annotated[int, Field(ge=0)] = 2
    """Rounds of the outer loop."""
    tasks_per_round: Count = 48
    edits_per_task: Count = 5
    domain: DomainConfig = DomainConfig()
    model: ModelSpec = ModelSpec()
    write: WriteConfig = WriteConfig()
    inner: InnerConfig = InnerConfig()
    trial: TrialConfig = TrialConfig()
    outer: OuterConfig = OuterConfig()
    eval: EvalConfig = EvalConfig()
    continual: ContinualConfig = ContinualConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> RunConfig:
        trial, outer, model = self.trial, self.outer, self.model
        if "*" in model.device and (
            outer.rule != "sft" or self.eval.pool == "full" or model.engine == "vllm"
        ):
            raise ValueError(
                f"model.device = {model.device} goes with outer.rule = sft, without eval.pool = full, and "
                "with vLLM as a server"
            )
        if trial.proxy and outer.select != "best_of":
            raise ValueError(
                f"trial.proxy chooses without a trial, and outer.select = {outer.select} asks what a trial "
                "gave"
            )
        if outer.rule != "sft":
            if self.rounds and (self.edits_per_task < 2 or not self.write.temperature):
                raise ValueError(
                    f"outer.rule = {outer.rule} learns from siblings that differ: edits_per_task must be 2 or "
                    "more, and write.temperature above 0"
                )
            if outer.select != "best_of":
                raise ValueError(
                    f"outer.rule = {outer.rule} learns from all siblings: outer.select = {outer.select} says "
                    "nothing to it"
                )
            if trial.race:
                raise ValueError(
                    f"outer.rule = {outer.rule} learns from all siblings: trial.race leaves some out"
                )
            if outer.recipe.tokens:
                raise ValueError(f"outer.recipe.tokens is of outer.rule = sft, not of {outer.rule}")
        if outer.imitate and outer.rule not in ("dpo", "ipo"):
            raise ValueError(f"outer.imitate is of outer.rule = dpo and ipo, not of {outer.rule}")
        if outer.select == "solved" and self.inner.reward != "accuracy":
            raise ValueError(
                f"outer.select = solved keeps what earned 1, which inner.reward = {self.inner.reward} never "
                "gives: take accuracy"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


def load_config(path: str | Path | None, flags: Sequence[str] = ()) -> RunConfig:
    """A TOML file, then dotted flags over it (``--inner.recipe.learning_rate 3e-3``, ``--rounds=3``).

    Raises:
        SealError: what is wrong, and in which key, in one sentence.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except FileNotFoundError as error:
            raise SealError(f"there is no config file {path}") from error
        except OSError as error:
            raise SealError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SealError(f"{path} is not TOML: {error}") from error
    for key, value in parse_flags(flags):
        *parents, last = key.split(".")
        table = data
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise SealError(f"--{key}: {parent} is a value, not a table")
        table[last] = _merged(table.get(last), value)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # settings that do not go together
            raise SealError(first["msg"].removeprefix("Value error, ")) from error
        key = ".".join(map(str, first["loc"]))
        mine = any(key == flag or key.startswith(f"{flag}.") for flag, _ in parse_flags(flags))
        raise SealError(
            f"{f'--{key}' if mine or path is None else f'{path}: {key}'}: {first['msg']}" + _given(first)
        ) from error


def _merged(there: Any, value: Any) -> Any:
    """A table given as JSON is laid over the file's, key by key, as dotted flags are."""
    if not isinstance(there, dict) or not isinstance(value, dict):
        return value
    return there | {k: _merged(there.get(k), v) for k, v in value.items()}


def first_of(error: ValueError) -> str:
    """The first thing that pydantic found wrong with flags, in one sentence."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"])).replace("_", "-")
    return f"--{name}: {first['msg']} (given: {str(first['input'])[:80]!r})"


def _given(error: Any) -> str:
    return "" if error["type"] == "extra_forbidden" else f" (given: {str(error['input'])[:80]!r})"


TEXTS = ("name", "runs", "model.name", "model.device", "domain.name", "eval.external")
"""Flags whose value is text even where it looks like a number."""
SHORT = {"slots": "inner.slots"}
"""Flags with a short name."""


def parse_flags(flags: Sequence[str]) -> list[tuple[str, Any]]:
    """``--a.b value`` and ``--a.b=value`` as (key, value); a value is read as JSON where it is JSON, else as
    text.

    Raises:
        SealError: something that is not a flag, or a flag without its value.
    """
    pairs: list[tuple[str, Any]] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise SealError(
                f"{flag!r} is not a flag: settings are given as --name value or --part.name value"
            )
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise SealError(f"{flag} has no value")
            value = rest.pop(0)
        key = key.replace("-", "_")
        try:
            parsed = value if key in TEXTS else json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            parsed = value
        pairs.append((SHORT.get(key, key), parsed))
    return pairs


GONE: dict[tuple[str, str], object] = {
    ("trial", "drafted"): 0,
    ("trial", "filter"): None,
    ("trial", "prior"): 0.0,
    ("outer", "replay"): 0.0,
    ("outer", "anchor"): 0.0,
}
"""Settings of earlier versions, with the defaults that they had: at those they changed nothing."""


def of_earlier(data: Json) -> Json:
    """A config of whatever version, without the settings that are gone where they stood at their defaults."""
    parts = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for (part, name), default in GONE.items():
        if isinstance(parts.get(part), dict) and parts[part].get(name, ()) == default:
            del parts[part][name]
    return parts


def experiment(config: RunConfig) -> dict[str, Any]:
    """The settings, without what may differ between seeds of one experiment."""
    data: dict[str, Any] = json.loads(
        config.model_dump_json(exclude={"name", "runs", "seed", "workers", "cluster"})
    )
    data["model"].pop("threads")
    return data


class LearnConfig(Part):
    """Everything a folder of ``seal learn`` depends on, but for the documents. Its fields are the command's
    flags."""

    model: str = "atlas"
    """Hub name, folder or GGUF file of a causal LM, or a name that `seal model list` shows (atlas, or what
    `seal model use` says)."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether the model is asked through its chat template; auto: where its turns end as the model does."""
    system: str | None = None
    """The system prompt of a chat; empty: none, where the template would insert its own."""
    start: str | None = None
    """A LoRA adapter in PEFT's format to go on from, in place of a fresh one; its rank and scale hold."""
    policy: str | None = None
    """A folder with a SEAL-trained policy that writes the edits; the adapter is still of ``model``."""
    writer: str | None = None
    """Another writer of edits: an endpoint (``http://host/v1#model``), or a JSON file of ``{title, context,
    completions}``."""
    prompt: str = "rewrite"
    """The prompt variant for edits (implications, rewrite, self-qa, …), or a template, or its file, with
    {title} and {context}."""
    edits: Annotated[int, Field(ge=1, le=64)] = 5
    """Self-edits per passage."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """Try every edit by itself on the practice half of the quiz, and keep so many of the best; ``None``: all,
    untried."""
    questions: Annotated[int, Field(ge=0, le=64)] = 8
    """Quiz questions per passage, at most; 0: no quiz, and no proof."""
    passage_tokens: Annotated[int, Field(ge=16)] = 384
    """Longest passage, in tokens."""
    skip_known: Annotated[float, Field(gt=0)] = 1.0
    """Teach no passage whose practice questions are answered without it already, from this share on; more
    than 1: teach all."""
    per_document: bool = False
    """One adapter per document instead of one for all."""
    recipe: Recipe = Recipe(
        rank=32, alpha=64, targets="all-linear", learning_rate=3e-4, epochs=4, batch_size=8
    )
    """How the adapter is trained."""
    seed: int = 0
    """Of everything that is drawn."""

    @property
    def spec(self) -> ModelSpec:
        """The model, to be loaded."""
        talk = {"chat": self.chat, "system": self.system}
        return ModelSpec(name=self.model, device=self.device, dtype=self.dtype, bf16="auto", **talk)
