"""Full finetuning, by ``transformers.Trainer``: every weight, for the continued-pretraining columns of the
paper."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from seal.lora.model import Model
from seal.lora.tokens import encode_example
from seal.lora.train import Job, Trained, plan_batches
from seal.records import SealError


def finetune(policy: Model, job: Job) -> tuple[Model, Trained]:
    """A copy of the policy, finetuned on a job's examples: its recipe's learning rate, schedule, warm-up,
    decay, clipping, batch size and budget (the LoRA settings do not apply).

    Raises:
        SealError: accelerate is missing, the weights are quantised, or training diverged.
    """
    if find_spec("accelerate") is None:
        raise SealError("full finetuning needs the package accelerate: pip install 'seal-lm[full]'")
    if not all(p.is_floating_point() for p in policy.model.parameters()):
        raise SealError("4-bit weights cannot be finetuned in full: load the model without quantize")
    whole, _ = policy.merged()
    recipe = job.recipe
    rows = [policy.clip_row(encode_example(e, policy.conventions)) for e in job.examples]
    data = [
        {"input_ids": r.ids, "labels": [t if on else -100 for t, on in zip(r.ids, r.loss, strict=True)]}
        for r in rows
    ]
    steps = len(plan_batches([len(r.ids) for r in rows], recipe, job.seed))
    model = whole.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=recipe.batch_size,
            max_steps=max(1, steps),
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=round(recipe.warmup * steps),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.clip or 0.0,
            seed=job.seed % 2**31,
            bf16=policy.bare is not policy.model,
            use_cpu=policy.device.type == "cpu",
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = _Quiet(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=_collator(policy.tokenizer.pad_token_id or 0),
        )
        trainer.train()
    losses = [float(x["loss"]) for x in trainer.state.log_history if "loss" in x] or [0.0]
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise SealError(
            f"full finetuning diverged: take a lower inner.recipe.learning_rate than {recipe.learning_rate:g}"
        )
    tokens = sum(len(r.ids) for r in rows) * max(1, steps) * recipe.batch_size // max(1, len(rows))
    tuned = Model(model, policy.tokenizer, policy.name, policy.bare is not policy.model)
    return tuned, Trained(None, max(1, steps), tokens, (losses[0], losses[-1]))


class _Quiet(Trainer):  # type: ignore[misc]
    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Keep the figures, print nothing."""
        self.state.log_history.append({**logs, "step": self.state.global_step})


def _collator(pad: int) -> Any:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(r["input_ids"]) for r in rows)
        ids = torch.full((len(rows), width), pad)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n], labels[i, :n], mask[i, :n] = (
                torch.tensor(row["input_ids"]),
                torch.tensor(row["labels"]),
                1,
            )
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return collate
