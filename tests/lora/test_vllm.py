"""An exported adapter in vLLM. Needs vLLM (its CPU build will do), so in an environment of its own: ``make
test-vllm``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seal.domains.knowledge import Knowledge, atlas
from seal.loop.retained import items
from seal.lora.cache import named
from seal.lora.files import load_peft, save_peft
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.names import DATA
from seal.lora.records import Example, ModelSpec, Prompt, Sampling
from seal.lora.sample import ask, generate
from seal.lora.train import Job, train_adapters
from seal.records import Edit, Recipe, Task

REAL = "smollm2-135m-q4"

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here (make test-vllm)")


def test_vllm_answers_through_an_exported_adapter_as_we_do(tmp_path: Path) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    policy = load_model("atlas")
    domain = Knowledge()
    tasks = [Task(r["id"], r) for r in (atlas.record("select", 800 + i) for i in range(4))]
    recipe = Recipe(rank=16, alpha=32, targets="all-linear", learning_rate=6e-3, tokens=1500, batch_size=8)
    edits = [domain.parse(t, domain.oracle(t) or "") for t in tasks]
    trained = train_adapters(policy, [Job(e.examples, recipe, 0) for e in edits if isinstance(e, Edit)])
    prompts = [[q.prompt for q in domain.queries(t)] for t in tasks]
    ours = ask(policy, [t.adapter for t in trained], prompts, Sampling(8, stop="\n"))

    model = LLM(
        str(DATA / "atlas"),
        enable_lora=True,
        max_lora_rank=16,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, stop="\n", include_stop_str_in_output=False)
    same = total = changed = 0
    for number, (outcome, row, answers) in enumerate(zip(trained, prompts, ours, strict=True)):
        assert outcome.adapter is not None
        save_peft(outcome.adapter, tmp_path / str(number), "atlas")
        assert load_peft(tmp_path / str(number)).rank == 16
        texts = [p.text for p in row]
        request = LoRARequest(f"edit-{number}", number + 1, str(tmp_path / str(number)))
        theirs = [
            o.outputs[0].text.strip()
            for o in model.generate(texts, sampling, lora_request=request, use_tqdm=False)
        ]
        plain = [o.outputs[0].text.strip() for o in model.generate(texts, sampling, use_tqdm=False)]
        same += sum(a.strip() == b for a, b in zip(answers, theirs, strict=True))
        changed += sum(a != b for a, b in zip(plain, theirs, strict=True))
        total += len(row)
    print(f"the same greedy answers: {same} of {total}")
    assert same >= 0.95 * total
    assert changed > total / 2  # the adapter was there


def test_a_real_model_answers_through_vllm_as_here(tmp_path: Path) -> None:
    if named(REAL) is None:
        pytest.skip(f"the model is not on this machine: seal model get {REAL}")
    here, there = (
        load_model(ModelSpec(name=REAL, threads=1, engine=engine)) for engine in ("transformers", "vllm")
    )
    rows = [Example("The lamp was built by Anna Thomsen, a clockmaker."), Example("It was lit in 1887.")]
    recipe = Recipe(rank=8, alpha=16, targets="all-linear", learning_rate=1e-3, epochs=20, batch_size=2)
    (taught,) = train_adapters(here, [Job(rows, recipe, 0)])
    prompts = [Prompt(i.question) for i in items()[:40]]
    for adapter in (None, taught.adapter):
        ours, theirs = (ask(m, [adapter], [prompts], Sampling(12))[0] for m in (here, there))
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        print(
            f"{'with' if adapter else 'without'} the adapter: {same} of {len(prompts)} answers are the same"
        )
        assert same >= 0.9 * len(prompts)


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """``vllm serve`` on the embedded model; its address. One sequence at a time: batches that mix adapters
    are wrong on its CPU build."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(DATA / "atlas"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "512",
        "--enforce-eager",
        "--enable-lora",
        "--max-lora-rank",
        "16",
        "--max-num-seqs",
        "1",
    ]
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
            start_new_session=True,
        )
    try:
        for _ in range(900):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.parametrize("where", ["vllm serve", "in this process"])
def test_vllm_writes_and_answers_in_place_of_transformers(tmp_path: Path, where: str) -> None:
    if where == "vllm serve":
        with serving(tmp_path / "log") as address:
            agrees(load_model(ModelSpec(name="atlas", engine=address, threads=None)))
            with urllib.request.urlopen(f"{address}/models") as reply:
                assert b"seal-" not in reply.read(), "adapters are taken back"
        return
    policy = load_model(ModelSpec(name="atlas", engine="vllm", threads=None))
    agrees(policy)
    assert not policy.served.llm.llm_engine.list_loras(), "adapters are taken back"


def agrees(policy: Model) -> None:
    plain = load_model("atlas")
    domain = Knowledge()
    tasks = [Task(r["id"], r) for r in (atlas.record("select", 900 + i) for i in range(6))]
    prompts = [domain.prompt(t) for t in tasks]
    greedy = Sampling(48)
    ours, theirs = (generate(p, prompts, greedy, [0] * 6) for p in (plain, policy))
    agree = sum(a.split()[:20] == b.split()[:20] for a, b in zip(ours, theirs, strict=True))
    sampled = [generate(policy, prompts, Sampling(24, 1.0, 0.95), list(range(6))) for _ in range(2)]
    assert sampled[0] == sampled[1] != generate(policy, prompts, Sampling(24, 1.0, 0.95), list(range(9, 15)))

    recipe = Recipe(rank=16, alpha=32, targets="all-linear", learning_rate=6e-3, tokens=1500, batch_size=8)
    edits = [domain.parse(t, domain.oracle(t) or "") for t in tasks[:4]]
    adapters = [
        t.adapter
        for t in train_adapters(plain, [Job(e.examples, recipe, 0) for e in edits if isinstance(e, Edit)])
    ]
    asked = [[q.prompt for q in domain.queries(t)] for t in [*tasks[:4], tasks[4]]]
    answers = [ask(p, [*adapters, None], asked, Sampling(8, stop="\n")) for p in (plain, policy)]
    print(
        "differ:",
        [
            (a, b)
            for x, y in zip(*answers, strict=True)
            for a, b in zip(x, y, strict=True)
            if a.strip() != b.strip()
        ],
    )
    same = sum(
        a.strip() == b.strip() for x, y in zip(*answers, strict=True) for a, b in zip(x, y, strict=True)
    )
    print(
        f"greedy self-edits that agree in their first 20 words: {agree} of 6; answers through adapters: "
        f"{same} of {sum(map(len, asked))}"
    )
    assert agree >= 5 and same >= 0.95 * sum(map(len, asked))


def test_a_new_policy_takes_over_the_engine_as_an_adapter(tmp_path: Path) -> None:
    first = load_model(ModelSpec(name="atlas", engine="vllm", threads=None))
    domain = Knowledge()
    tasks = [Task(r["id"], r) for r in (atlas.record("select", 950 + i) for i in range(4))]
    prompts = [q.prompt for t in tasks for q in domain.queries(t)]
    generate(first, prompts[:1], Sampling(4), [0])
    engine = first.served.llm
    recipe = Recipe(rank=16, alpha=32, targets="all-linear", learning_rate=6e-3, tokens=1500, batch_size=8)
    edits = [domain.parse(t, domain.oracle(t) or "") for t in tasks]
    changed = load_model("atlas")
    adapter = train_adapters(
        changed, [Job(tuple(x for e in edits if isinstance(e, Edit) for x in e.examples), recipe, 0)]
    )[0].adapter
    assert adapter is not None
    before = generate(changed, prompts, Sampling(8), [0] * len(prompts))
    changed = changed.plus(adapter)
    save_peft(adapter, tmp_path / "policy", "atlas")
    second = load_model(
        ModelSpec(name="atlas", adapter=str(tmp_path / "policy"), engine="vllm", threads=None)
    )
    expected = generate(changed, prompts, Sampling(8), [0] * len(prompts))
    found = generate(second, prompts, Sampling(8), [0] * len(prompts))
    same, old = (
        sum(a.split() == b.split() for a, b in zip(x, found, strict=True)) for x in (expected, before)
    )
    print(
        f"the same as the new policy: {same} of {len(prompts)}; as the old one: {old}",
        found[:3],
        expected[:3],
    )
    assert same >= 0.95 * len(prompts)
    assert second.served.llm is engine, "the engine was not started again"
