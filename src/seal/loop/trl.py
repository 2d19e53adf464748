"""TRL: SEAL's reward for any of its trainers, and DPO, IPO and GRPO as learning rules of the outer loop.

::

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from seal.config import load_config
    from seal.loop.trl import dataset, reward

    config = load_config("configs/atlas.toml")
    trainer = GRPOTrainer("my-model", reward_funcs=reward(config), train_dataset=dataset(config), args=GRPOConfig(...))
    trainer.train()
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seal.config import OuterConfig, RunConfig
from seal.domains.base import Domain
from seal.loop.inner import HERE, InnerLoop, open_domain
from seal.loop.rooms import inner_rooms
from seal.loop.selection import sft_examples
from seal.lora.adapter import Adapter, adapted_modules
from seal.lora.files import load_peft
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.tokens import encode_example
from seal.records import Attempt, Grade, Prompt, SealError, Selected, Task
from seal.store import Stage

Pair = tuple[Selected, Selected]
"""An edit, and one of the same task that did worse."""


def reward(config: RunConfig, split: str = "train") -> Callable[..., list[float | None]]:
    """SEAL's reward as TRL wants it: ``f(prompts, completions, task, **others)`` → a number per completion,
    ``None`` where a judge gave none.

    Every completion is taken as a self-edit of the task whose id stands in the column ``task``
    (:func:`dataset` has it): an adapter of the *config's* model is trained on it and asked, all of a batch
    side by side, under ``config.inner``. A bad edit is worth 0.
    """
    inner = InnerLoop(open_domain(config), config.inner)
    tasks = {t.id: t for t in inner.domain.tasks(split)}
    model = load_model(config.model, config.inner.recipe.rank)
    known: dict[str, Grade] = {}

    def seal_reward(completions: Sequence[Any], task: Sequence[str], **_: Any) -> list[float | None]:
        missing = next((t for t in task if t not in tasks), None)
        if missing is not None:
            raise SealError(f"the column `task` names {missing!r}, which is no task of the split {split!r}")
        if new := [t for t in dict.fromkeys(task) if t not in known]:
            with tempfile.TemporaryDirectory() as folder:
                known.update(inner.before(model, [tasks[t] for t in new], Stage(Path(folder))))
        texts = [{0: _text(c)} for c in completions]
        s, wave = config.inner.seeds, config.inner.wave
        trials = inner.trials([tasks[t] for t in task], texts, config.seed, range(s))
        found: list[Attempt] = []
        with tempfile.TemporaryDirectory() as folder:
            rooms = inner_rooms(model, config.inner, Stage(Path(folder)))
            waves = {i // wave: trials[i : i + wave] for i in range(0, len(trials), wave)}
            for _number, attempts in HERE.waves(inner, model, waves, known, rooms):
                found += attempts
        rewards = [
            [a.reward for a in found[i * s : (i + 1) * s] if a.reward is not None] for i in range(len(texts))
        ]
        return [sum(r) / len(r) if r else None for r in rewards]

    return seal_reward


def _text(completion: Any) -> str:
    """A completion's text: itself, or what the assistant says in a conversation."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def dataset(config: RunConfig, split: str = "train", chat: bool = False) -> Any:
    """The prompts of a split as a data set of TRL's form: columns ``prompt`` and ``task``.

    Args:
        chat: as conversations, for a model with a chat template.
    """
    domain: Domain = open_domain(config)
    return _data_set(
        [{"prompt": _prompt(domain.prompt(t), chat), "task": t.id} for t in _tasks(domain, split)]
    )


def _tasks(domain: Domain, split: str) -> Sequence[Task]:
    tasks = domain.tasks(split)
    if not tasks:
        raise SealError(f"there is no task in the split {split!r}: give sizes.{split} a number")
    return tasks


def _prompt(prompt: Prompt, chat: bool) -> Any:
    if not chat:
        return f"{prompt.system}\n\n{prompt.text}" if prompt.system else prompt.text
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*turns, {"role": "user", "content": prompt.text}]


def _data_set(rows: list[dict[str, Any]]) -> Any:
    _trl()
    from datasets import Dataset

    return Dataset.from_list(rows)


# ------------------------------------------------------------------------------------ rules of the outer loop


def preference(
    policy: Model, prompts: Mapping[str, Prompt], pairs: Sequence[Pair], outer: OuterConfig, seed: int
) -> tuple[Adapter | None, dict[str, Any]]:
    """DPO (Rafailov et al., 2023) or IPO (Azar et al., 2023) on best-worst pairs, with the policy before the
    round as the reference."""
    trl = _trl()
    if not pairs:
        return None, {"kept": 0, "steps": 0, "tokens": 0, "loss": (0.0, 0.0), "diverged": False}
    talk = policy.conventions
    other = talk.chat and talk.close not in (None, talk.tokenizer.eos_token_id)
    closing = str(talk.tokenizer.convert_ids_to_tokens(talk.close)) if other else ""  # TRL writes only eos
    rows = []
    for best, worst in pairs:
        prompt = policy.conventions.render(prompts[best.task])
        prompt = (
            prompt.removeprefix(str(policy.tokenizer.bos_token or "")) if policy.chat else prompt
        )  # TRL writes it again
        texts = {
            "chosen": policy.conventions.defuse(best.text) + closing,
            "rejected": policy.conventions.defuse(worst.text) + closing,
        }
        rows.append({"prompt": prompt, **texts})
    n_steps = outer.recipe.steps or max(
        1, round(outer.recipe.epochs * -(-len(rows) // outer.recipe.batch_size))
    )
    longest = max(
        len(policy.tokenizer(r["prompt"] + max(r["chosen"], r["rejected"], key=len))["input_ids"])
        for r in rows
    )
    with _workplace(outer, seed, n_steps) as arguments:
        arguments |= {"per_device_train_batch_size": outer.recipe.batch_size, "max_length": longest + 8}
        loss = {"dpo": "sigmoid", "ipo": "ipo"}[outer.rule]
        if outer.imitate:
            arguments |= {"loss_type": [loss, "sft"], "loss_weights": [1.0, outer.imitate]}
        else:
            arguments |= {"loss_type": [loss]}
        args = trl.DPOConfig(**arguments, beta=outer.beta, use_cpu=policy.device.type == "cpu")
        model = _model(policy)
        trainer = trl.DPOTrainer(
            model,
            args=args,
            train_dataset=_data_set(rows),
            processing_class=policy.tokenizer,
            peft_config=_lora(policy, outer),
        )
        return _finish(trainer, len(pairs))


def grpo(
    policy: Model,
    prompts: Mapping[str, Prompt],
    attempts: Sequence[Attempt],
    outer: OuterConfig,
    temperature: float,
    seed: int,
    broken: Mapping[tuple[str, int], str],
) -> tuple[Adapter | None, dict[str, Any]]:
    """GRPO (Shao et al., 2024) on a round's samples, which are the policy's own: siblings are a group, and
    the reward is what the inner loops found. The clipped objective is gone over ``recipe.epochs`` times."""
    trl = _trl()
    groups = _groups(attempts)
    if not groups:
        return None, {"kept": 0, "steps": 0, "tokens": 0, "loss": (0.0, 0.0), "diverged": False}
    size = len(next(iter(groups.values())))
    n_samples = size * len(groups)
    per_batch = min(n_samples, max(size, outer.recipe.batch_size // size * size))
    n_batches = -(-n_samples // per_batch)
    rows = [{"prompt": t} for t in groups]  # the texts are on disk already: a prompt is only a name here
    rows += [{"prompt": t} for t in list(groups)[: (n_batches * per_batch - n_samples) // size]]

    def rollout(names: list[str], trainer: Any) -> dict[str, Any]:
        """What the round wrote, in place of new samples."""
        turn: dict[str, int] = defaultdict(int)
        found: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "found": []}
        for name in names if len(names) > len(set(names)) else [n for n in names for _ in range(size)]:
            number, text, worth = groups[name][turn[name] % size]
            turn[name] += 1
            example = sft_examples(
                [Selected(name, broken.get((name, number), text), worth, (name, number) in broken)],
                prompts,
            )[0]
            row = encode_example(example, policy.conventions)  # as imitation would train on it
            begins = row.loss.index(True) if True in row.loss else len(row.loss)
            found["prompt_ids"].append(list(row.ids[:begins]))
            found["completion_ids"].append(list(row.ids[begins:]))
            found["found"].append(worth)
        return {**found, "logprobs": None}

    def worth(found: Sequence[float], **_: Any) -> list[float]:
        return list(found)

    n_steps = outer.recipe.steps or max(1, round(outer.recipe.epochs)) * n_batches
    passes = -(-n_steps // n_batches)
    with _workplace(outer, seed, n_steps) as arguments:
        args = trl.GRPOConfig(
            **arguments,
            per_device_train_batch_size=per_batch,
            num_generations=size,
            steps_per_generation=n_batches,
            num_iterations=passes,
            max_completion_length=4096,
            beta=outer.beta,
            temperature=temperature or 1.0,
            shuffle_dataset=False,
            use_cpu=policy.device.type == "cpu",
        )
        trainer = trl.GRPOTrainer(
            _model(policy),
            reward_funcs=worth,
            args=args,
            train_dataset=_data_set(rows),
            processing_class=policy.tokenizer,
            peft_config=_lora(policy, outer),
            rollout_func=rollout,
        )
        return _finish(trainer, n_samples)


def _groups(attempts: Sequence[Attempt]) -> dict[str, list[tuple[int, str, float]]]:
    """Task → its edits, by number, with their mean reward (0 for a bad one, which is to be unlearnt). Groups
    are of one size: a task that has fewer graded edits than others is left out."""
    found: dict[str, dict[int, tuple[str, list[float]]]] = {}
    for a in attempts:
        if a.reward is not None:
            found.setdefault(a.task, {}).setdefault(a.edit, (a.text, []))[1].append(a.reward)
    groups = {t: [(e, text, sum(r) / len(r)) for e, (text, r) in edits.items()] for t, edits in found.items()}
    most = max(map(len, groups.values()), default=0)
    return {t: g for t, g in groups.items() if len(g) == most > 1}


@contextmanager
def _workplace(outer: OuterConfig, seed: int, n_steps: int) -> Iterator[dict[str, Any]]:
    """A folder for the trainer, and what its arguments have in common."""
    folder = tempfile.mkdtemp(prefix="seal-trl-")
    r = outer.recipe
    try:
        yield {
            "output_dir": folder,
            "max_steps": n_steps,
            "learning_rate": r.learning_rate,
            "lr_scheduler_type": r.schedule,
            "warmup_steps": r.warmup * n_steps,
            "weight_decay": r.weight_decay,
            "max_grad_norm": r.clip or 0.0,
            "seed": seed % 2**32,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _model(policy: Model) -> Any:
    """A copy of the model for a trainer to do with as it likes."""
    return policy.merged()[0]


def _lora(policy: Model, outer: OuterConfig) -> Any:
    from peft import LoraConfig

    names = sorted(adapted_modules(policy.model, outer.recipe))
    alpha: Any = outer.recipe.alpha  # PEFT only divides it by the rank
    return LoraConfig(
        r=outer.recipe.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _finish(trainer: Any, n: int) -> tuple[Adapter | None, dict[str, Any]]:
    """Train, and take the adapter out; ``None`` if it is not finite."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [float(x["loss"]) for x in trainer.state.log_history if "loss" in x] or [0.0]
    with tempfile.TemporaryDirectory() as folder:
        trainer.model.save_pretrained(folder)
        adapter = load_peft(Path(folder))
    finite = all(bool(t.isfinite().all()) for pair in adapter.weights.values() for t in pair)
    loss = (losses[0], losses[-1]) if finite else (0.0, 0.0)
    record = {
        "kept": n,
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "loss": loss,
        "diverged": not finite,
    }
    return adapter if finite else None, record


def must_be_there() -> None:
    """Say at once that TRL is missing, not after a round of inner loops.

    Raises:
        SealError: it is.
    """
    _trl()


def _trl() -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        import peft  # noqa: F401
        import trl
    except ImportError as error:
        raise SealError("outer.rule dpo, ipo and grpo need TRL: pip install 'seal-lm[trl]'") from error
    return trl
