"""The model that ships: loads like any other, is small, knows what it should and nothing else; and learning
raises the number."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from seal.config import WriteConfig, load_config
from seal.domains.knowledge import Knowledge, atlas, prompts
from seal.loop.inner import InnerLoop
from seal.loop.write import from_policy
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.names import DATA
from seal.lora.records import Sampling
from seal.lora.sample import generate
from seal.records import Prompt
from seal.store import Stage

FOLDER = DATA / "atlas"


@pytest.fixture(scope="module")
def embedded() -> Model:
    return load_model("atlas")


def accuracy(policy: Model, asked: list[tuple[str, str]]) -> float:
    answers = generate(policy, [Prompt(q) for q, _ in asked], Sampling(4, stop="\n"), [0] * len(asked))
    return sum(a == gold for a, (_, gold) in zip(answers, asked, strict=True)) / len(asked)


def test_it_is_a_standard_model_in_a_small_folder() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert model.config.model_type == "llama" and tokenizer.eos_token_id == model.config.eos_token_id
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 16 * 2**20
    assert {"README.md", "training_log.jsonl", "tokenizer.json", "model.safetensors"} <= {
        p.name for p in FOLDER.iterdir()
    }


@pytest.mark.parametrize(
    "text", ["Velora lies in Tarn.\n\nIts oath is in May.", "any  text: naïve, 12 €\n x", "a\n \nb"]
)
def test_its_tokenizer_loses_nothing(embedded: Model, text: str) -> None:
    assert embedded.tokenizer.decode(embedded.tokenizer(text)["input_ids"]) == text


def test_the_grid_model_reads_a_token_per_cell_and_loses_nothing() -> None:
    policy = load_model("grids")
    text = "Input:\n0123\n4567\nOutput:\n89\n\nInput:\n1\nOutput:\n"
    ids = policy.tokenizer(text)["input_ids"]
    assert policy.tokenizer.decode(ids) == text and len(ids) < 22
    assert policy.tokenizer.decode(policy.tokenizer("Ünë!")["input_ids"]) == "Ünë!"


@pytest.mark.slow
def test_it_knows_its_world_and_not_the_evaluated_entities(embedded: Model) -> None:
    known = [atlas.record("known", i) for i in range(atlas.N_KNOWN)]
    asked = [
        (prompts.ASK.format(title=r["title"], question=q["question"]), q["answer"])
        for r in known
        for q in r["questions"]
    ]
    assert len(asked) == 800 and accuracy(embedded, asked) > 0.995, "every entity that counts as known is"
    fresh = [atlas.record("select", i) for i in range(40)]
    closed = [
        (prompts.ASK.format(title=r["title"], question=q["question"]), q["answer"])
        for r in fresh
        for q in r["questions"]
    ]
    assert accuracy(embedded, closed) < 0.2
    opened = [
        (prompts.ASK_OPEN.format(title=r["title"], context=r["context"], question=q["question"]), q["answer"])
        for r in fresh
        for q in r["questions"]
    ]
    assert accuracy(embedded, opened) > 0.9


def test_the_phrasing_that_is_held_out_stands_in_no_edit_that_it_writes(embedded: Model) -> None:
    domain = Knowledge(sizes={"train": 1, "select": 12, "eval": 1})
    tasks = domain.tasks("select")
    texts = from_policy(embedded, [domain.prompt(t) for t in tasks], 2, WriteConfig(max_tokens=160), 0)
    lines = [line for row in texts for w in row for line in w.text.splitlines()]
    asked = [q["question"] for t in tasks for q in t.data["questions"]]
    assert sum("?" in line for line in lines) > 20
    assert not [(q, line) for q in asked for line in lines if q in line]


@pytest.mark.slow
def test_an_oracle_edit_teaches_what_the_passage_alone_does_not(tmp_path: Path) -> None:
    """On selection passages: base below both; derived answers from the oracle edit, and not from the passage
    repeated."""
    config = load_config(Path(__file__).parents[2] / "configs" / "atlas.toml")
    policy = load_model(config.model)
    domain = Knowledge(**{**config.domain.options, "sizes": {"train": 1, "select": 16, "eval": 1}})
    tasks = domain.tasks("select")
    means = {}
    for name, text in (("passage", domain.plain), ("oracle", domain.oracle)):
        texts = [[text(t) or ""] for t in tasks]
        attempts = InnerLoop(domain, config.inner).try_edits(policy, tasks, texts, Stage(tmp_path / name), 0)
        means[name] = sum(a.after for a in attempts) / len(attempts)
        before = sum(a.before for a in attempts) / len(attempts)
    assert before < 0.2 < means["passage"] < 0.6
    assert means["oracle"] > 0.9
