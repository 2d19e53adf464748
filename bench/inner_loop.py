"""The inner loop three ways on the same jobs: rows, order, recipe, seeds and starting weights.

(a) ``trainer``: one after another, PEFT and ``transformers.Trainer``, batch 1, every row padded to 2048
tokens, fp32 on a CPU:
    the released SEAL server's way (padding carries no loss here, so that the losses can be compared).
(b) ``peft``: one after another, PEFT, rows as long as they are, a hand-written AdamW loop, the precision of
(c);
    ``peft fp32``: the same in fp32.
(c) ``seal``: K adapters side by side.

    python bench/inner_loop.py --workload atlas          # the embedded model, the paper's recipe on untrained
    self-edits python bench/inner_loop.py --workload atlas-config   # the same with the recipe of
    configs/atlas.toml python bench/inner_loop.py --workload arc            # grids: long rows, batch 2, rank
    128, 1M parameters python bench/inner_loop.py --workload grids          # 64 different edits of the
    embedded grid model: rate, epochs, tools of their own python bench/inner_loop.py --workload passages
    --shape 100M python bench/inner_loop.py --workload passages --shape 7B --device cuda

Training, asking and sampling are timed apart. Ways (a) and (b) run on fewer jobs, (a) on the first steps of
one; each counts as so many edits as it has training tokens of the mean edit's ((a), whose rows are all as
long: training rows). Each repeat runs all ways once; ratios are means over repeats with 95 % intervals.
Writes bench/results/ and a plot.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from seal.lora.adapter import Adapter, init_adapter, target_modules
from seal.lora.capacity import ENOUGH, Room
from seal.lora.model import Model
from seal.lora.records import Prompt, Sampling
from seal.lora.sample import ask, generate
from seal.lora.tokens import Row, encode_example
from seal.lora.train import Job, Tally, learning_rate, plan_batches, train_adapters

sys.path.insert(0, str(Path(__file__).parent))
from common import interval, parameters, record, timed
from workloads import PAPER, Work, arc, atlas, embedded_grids, passages

# --------------------------------------------------------------------------------------------- the three ways


def rows_of(work: Work, job: Job) -> tuple[list[Row], list[list[int]]]:
    rows = [encode_example(e, work.policy.conventions) for e in job.examples]
    return rows, plan_batches([len(r.ids) for r in rows], job.recipe, job.seed)


def effort(work: Work, job: Job) -> tuple[int, int]:
    """Training tokens and training rows of a job, each counted as often as it is seen."""
    rows, batches = rows_of(work, job)
    return sum(len(rows[i].ids) for batch in batches for i in batch), sum(map(len, batches))


def peft_model(policy: Model, job: Job) -> tuple[Any, list[torch.nn.Parameter]]:
    """The policy's model under PEFT, with the very weights that our adapter starts from."""
    import peft

    start = init_adapter(target_modules(policy.runner, job.recipe.targets), job.recipe, job.seed)
    names = sorted({n.rsplit(".", 1)[-1] for n in start.weights})
    config = peft.LoraConfig(
        r=job.recipe.rank, lora_alpha=job.recipe.alpha, target_modules=names, lora_dropout=0.0
    )
    model = peft.get_peft_model(policy.runner, config)
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name, (a, b) in start.weights.items():
            found[f"base_model.model.{name}.lora_A.default.weight"].copy_(a)
            found[f"base_model.model.{name}.lora_B.default.weight"].copy_(b)
    return model, [p for p in model.parameters() if p.requires_grad]


def padded(rows: list[Row], width: int, device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.ones(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        labels[i, :n] = torch.where(torch.tensor(row.loss), ids[i, :n], -100)
        mask[i, :n] = 1
    return {"input_ids": ids.to(device), "labels": labels.to(device), "attention_mask": mask.to(device)}


def careful(work: Work, policy: Model, jobs: list[Job]) -> dict[str, float]:
    """Way (b)."""
    losses, real, total = [], 0, 0
    for job in jobs:
        rows, batches = rows_of(work, job)
        model, trained = peft_model(policy, job)
        optimizer = torch.optim.AdamW(trained, lr=job.recipe.learning_rate, weight_decay=0.0)
        loss = torch.zeros(())
        for step, batch in enumerate(batches):
            width = max(len(rows[i].ids) for i in batch)
            inputs = padded([rows[i] for i in batch], width, policy.device)
            labels = inputs.pop("labels")
            logits = model(**inputs, use_cache=False).logits
            loss = cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
            loss.backward()
            if job.recipe.clip:
                torch.nn.utils.clip_grad_norm_(trained, job.recipe.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(job.recipe, step, len(batches))
            optimizer.step()
            optimizer.zero_grad()
            real += sum(len(rows[i].ids) for i in batch)
            total += width * len(batch)
        losses.append(float(loss.detach()))
        model.unload()
        policy.runner.requires_grad_(False)
    return {"tokens": real, "real_token_share": real / total, "final_loss": statistics.fmean(losses)}


def common(work: Work, policy: Model, job: Job, steps: int) -> dict[str, float]:
    """Way (a), for the first ``steps`` steps of a job."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    rows, batches = rows_of(work, job)
    shown = [rows[i] for batch in batches for i in batch][:steps]
    data = [{k: v[0] for k, v in padded([r], 2048, torch.device("cpu")).items()} for r in shown]
    model, _ = peft_model(policy, job)
    losses = []

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(data)  # type: ignore[arg-type]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            losses.append(super().training_step(*args, **kwargs))
            return losses[-1]

    arguments = TrainingArguments(
        output_dir="/tmp/seal-bench",
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=job.recipe.learning_rate,
        weight_decay=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=policy.device.type == "cpu",
        bf16=policy.device.type == "cuda",
        seed=0,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=data)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    model.unload()
    policy.runner.requires_grad_(False)
    policy.runner.eval()
    real = sum(len(r.ids) for r in shown)
    return {"tokens": real, "real_token_share": real / (2048 * len(shown)), "final_loss": float(losses[-1])}


def ours(work: Work, jobs: list[Job], k: int) -> dict[str, float]:
    """Way (c)."""
    tally = Tally()
    trained = train_adapters(work.policy, jobs, Room(k, ENOUGH[work.policy.device.type]), tally=tally)
    return {
        "tokens": tally.real,
        "real_token_share": tally.real / (tally.real + tally.padded),
        "final_loss": statistics.fmean(t.loss[1] for t in trained),
    }


def ask_one_by_one(work: Work, adapters: list[Adapter], n: int) -> dict[str, float]:
    """Each adapter loaded into PEFT, its questions in one ``generate``."""
    made = 0
    for adapter, job, prompts in zip(adapters[:n], work.jobs, work.questions, strict=False):
        model, _ = peft_model(work.policy, job)
        found = dict(model.named_parameters())
        with torch.no_grad():
            for name, (a, b) in adapter.weights.items():
                found[f"base_model.model.{name}.lora_A.default.weight"].copy_(a)
                found[f"base_model.model.{name}.lora_B.default.weight"].copy_(b)
            made += hf_generate(model, work, prompts, 1, work.answer, False)
        model.unload()
        work.policy.runner.requires_grad_(False)
    return {"tokens": made}


def hf_generate(
    model: Any, work: Work, prompts: list[Prompt], samples: int, tokens: int, sample: bool
) -> int:
    tokenizer = work.policy.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer([p.text for p in prompts], return_tensors="pt", padding=True).to(work.policy.device)
    inputs.pop("token_type_ids", None)
    how: dict[str, Any] = (
        {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0} if sample else {"do_sample": False}
    )
    out = model.generate(**inputs, max_new_tokens=tokens, num_return_sequences=samples, pad_token_id=1, **how)
    return int(out.shape[0] * (out.shape[1] - inputs["input_ids"].shape[1]))


# ---------------------------------------------------------------------------------------------------- the run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workload", choices=("atlas", "atlas-config", "arc", "grids", "passages"), default="atlas"
    )
    parser.add_argument("--shape", default="100M", help="of the passages workload: 10M, 30M, 100M, 7B")
    parser.add_argument(
        "--all-linear", action="store_true", help="passages: adapt all linear layers, not q and v alone"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--edits", type=int, default=64, help="jobs of the largest K")
    parser.add_argument("--slots", type=int, nargs="*", help="values of K (default 1, 2, 4 … up to --edits)")
    parser.add_argument("--single", type=int, default=6, help="jobs of way (b)")
    parser.add_argument("--trainer-steps", type=int, default=15, help="steps of way (a); 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-warm-up", action="store_true", help="leave out the first repeat, which does not count"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.workload == "arc":
        work = arc(args.edits, args.device)
    elif args.workload == "grids":
        work = embedded_grids(args.edits, args.device)
    elif args.workload == "passages":
        work = passages(args.edits, args.shape, args.device, args.all_linear)
    else:
        work = atlas(args.edits, PAPER if args.workload == "atlas" else None, args.device)
    name = args.workload if args.workload == "atlas-config" else work.name
    slots = args.slots or [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= args.edits]
    rows, ratios = measure(work, args, slots)
    lengths = [len(r.ids) for j in work.jobs for r in rows_of(work, j)[0]]
    workload = {
        "name": name,
        "weights": parameters(work.policy),
        "dtype": str(work.policy.runner.dtype),
        "edits": len(work.jobs),
        "rows_per_edit": len(lengths) / len(work.jobs),
        "tokens_per_row": statistics.fmean(lengths),
        "steps_per_edit": statistics.fmean(len(rows_of(work, j)[1]) for j in work.jobs),
        "recipe": work.jobs[0].recipe.model_dump(),
    }
    path = record(f"inner_loop-{name}", workload, rows, ratios)
    plot(path, name, rows, ratios)


def measure(
    work: Work, args: argparse.Namespace, slots: list[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    jobs = work.jobs
    tokens, n_rows = zip(*(effort(work, j) for j in jobs), strict=True)
    per_edit = statistics.fmean(tokens)
    single = jobs[: args.single]
    device = args.device
    runs: dict[
        tuple[str, int], tuple[Callable[[], dict[str, float]], float]
    ] = {}  # what to run, and how many edits that is
    if n := args.trainer_steps:
        share = min(n, n_rows[0]) / statistics.fmean(n_rows)
        policy = work.exact if device == "cpu" else work.policy
        runs["trainer", 1] = (lambda: common(work, policy, jobs[0], n)), share
    runs["peft", 1] = (lambda: careful(work, work.policy, single)), sum(tokens[: len(single)]) / per_edit
    if work.exact is not work.policy and work.exact.runner.dtype != work.policy.runner.dtype:
        runs["peft fp32", 1] = (
            (lambda: careful(work, work.exact, single)),
            sum(tokens[: len(single)]) / per_edit,
        )
    for k in slots:
        mine = jobs if k == slots[-1] else jobs[: max(k, args.single)]
        runs["seal", k] = (lambda k=k, mine=mine: ours(work, mine, k)), sum(tokens[: len(mine)]) / per_edit  # type: ignore[misc]
    adapters = [
        t.adapter
        for t in train_adapters(
            work.policy,
            [
                Job(j.examples, j.recipe.model_copy(update={"epochs": 1, "steps": 2, "tokens": None}), j.seed)
                for j in jobs
            ],
        )
    ]
    real = [a for a in adapters if a is not None]
    answer, draw = Sampling(work.answer), Sampling(work.edit, 1.0, 0.95)
    n_one, n_prompts = min(8, len(real)), min(2, len(work.prompts))
    runs["ask: peft", 1] = (lambda: ask_one_by_one(work, real, n_one)), n_one
    runs["ask: seal", len(real)] = (
        (lambda: count(ask(work.policy, real, work.questions[: len(real)], answer, 64), work)),
        len(real),
    )
    runs["sample: transformers", 1] = (
        (
            lambda: {
                "tokens": sum(
                    hf_generate(work.policy.runner, work, [p], 5, work.edit, True)
                    for p in work.prompts[:n_prompts]
                )
            }
        ),
        5 * n_prompts,
    )
    many = [p for p in work.prompts for _ in range(5)]
    runs["sample: seal", len(many)] = (
        (lambda: count([generate(work.policy, many, draw, list(range(len(many))))], work)),
        len(many),
    )

    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    found: dict[tuple[str, int], dict[str, float]] = {}
    for repeat in range(
        int(args.no_warm_up), args.repeats + 1
    ):  # the first is for warming up, on the cheap ways
        for key, (run, edits) in runs.items():
            if repeat == 0 and key[0] in ("trainer", "peft fp32"):
                continue
            took, found[key] = timed(run, device)
            if repeat:
                seconds[key].append(took / edits)
                print(
                    f"{repeat}: {key[0]:<22} K={key[1]:<4} {took / edits:8.3f} s/edit  "
                    f"{found[key].get('tokens', 0) / took:9.0f} tok/s",
                    flush=True,
                )
    rows = [
        {
            "way": way,
            "K": k,
            "seconds": sum(seconds[way, k]),
            "seconds_per_edit": statistics.fmean(seconds[way, k]),
            "repeats": seconds[way, k],
            "tokens_per_second": found[way, k]["tokens"] / (statistics.fmean(seconds[way, k]) * edits),
            "real_token_share": found[way, k].get("real_token_share"),
            "final_loss": found[way, k].get("final_loss"),
        }
        for (way, k), (_, edits) in runs.items()
    ]
    best = slots[-1]
    pairs = {
        f"{way} / seal": ((way, 1), ("seal", best))
        for way in ("trainer", "peft", "peft fp32")
        if (way, 1) in runs
    }
    pairs |= {"ask: peft / seal": (("ask: peft", 1), ("ask: seal", len(real)))}
    pairs |= {"sample: transformers / seal": (("sample: transformers", 1), ("sample: seal", len(many)))}
    ratios: dict[str, Any] = {
        name: interval([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
        for name, (a, b) in pairs.items()
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['mean']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}]")
    return rows, ratios


def count(texts: list[list[str]], work: Work) -> dict[str, float]:
    return {"tokens": sum(len(work.policy.tokenizer(t)["input_ids"]) for row in texts for t in row)}


def plot(path: Path, name: str, rows: list[dict[str, Any]], ratios: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    mine = [r for r in rows if r["way"] == "seal"]
    axes.plot(
        [r["K"] for r in mine],
        [r["seconds_per_edit"] for r in mine],
        "o-",
        color="#0072b2",
        label="seal, K side by side",
    )
    for way, colour in (("trainer", "#d55e00"), ("peft fp32", "#999999"), ("peft", "#009e73")):
        for row in (r for r in rows if r["way"] == way):
            axes.axhline(
                row["seconds_per_edit"], color=colour, linestyle="--", label=f"{way}, one after another"
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="adapters side by side, K",
        ylabel="training time per self-edit, s",
        title=name,
    )
    axes.set_xticks([r["K"] for r in mine], [str(r["K"]) for r in mine])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
