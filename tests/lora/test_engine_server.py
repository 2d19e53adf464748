"""A running vLLM server as the engine: what is asked of it, by a stand-in that speaks the same protocol."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seal.config import RunConfig
from seal.lora.files import load_peft
from seal.lora.model import Model
from seal.lora.records import ModelSpec, Sampling
from seal.lora.sample import ask, generate
from seal.lora.train import Job, train_adapters
from seal.lora.vllm import InProcess, Server
from seal.records import Example, LoraError, Prompt, Recipe
from tests import tiny


class Stand:
    """Serves one model and the adapters it was handed; answers with the name of the model that was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.adapters: dict[str, int] = {}
        self.ever: list[str] = []
        self.ranks: list[int] = []
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({"data": [{"id": "base"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/load_lora_adapter"):
                    if body["lora_name"] in stand.adapters:
                        self.send_response(400)
                        self.end_headers()
                        return None
                    stand.adapters[body["lora_name"]] = load_peft(Path(body["lora_path"])).rank
                    stand.ever.append(body["lora_name"])
                    stand.ranks.append(stand.adapters[body["lora_name"]])
                    return self.reply({})
                if self.path.endswith("/unload_lora_adapter"):
                    del stand.adapters[body["lora_name"]]
                    return self.reply({})
                stand.asked.append(body)
                if body["model"] != "base" and body["model"] not in stand.adapters:
                    self.send_response(404)
                    self.end_headers()
                    return None
                text = "" if body.get("stop") and body["model"] == "base" else f"\n{body['model']}\nand on"
                return self.reply({"choices": [{"text": text, "finish_reason": "stop"}]})

            def reply(self, data: dict[str, Any]) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(data).encode())

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def stand() -> Iterator[Stand]:
    found = Stand()
    yield found
    found.http.shutdown()


def asked_there(address: str) -> Model:
    """A tiny model whose texts come from a server."""
    model = tiny.policy()
    model.served = Server(address, model)
    return model


def test_every_prompt_goes_through_its_own_adapter_which_is_taken_back(stand: Stand) -> None:
    policy = asked_there(stand.address)
    jobs = [Job((Example("a b c"),), Recipe(rank=2, steps=1), s) for s in range(2)]
    adapters = [t.adapter for t in train_adapters(policy, jobs)]
    rows = [[Prompt("x"), Prompt("y")], [Prompt("z")], [Prompt("w")]]
    for _ in range(2):
        answers = ask(policy, [*adapters, None], rows, Sampling(4, stop="\n"))
        assert [len(a) for a in answers] == [2, 1, 1] and answers[2] == ["base"]
        assert answers[0][0] == answers[0][1] != answers[1][0] and not stand.adapters
    assert len(stand.ever) == len(set(stand.ever)) == 4, "a name is never used twice"
    sent = {tuple(b["prompt"]) for b in stand.asked}  # they come in together: their order is nobody's
    assert sent == {tuple(policy.tokenizer(p)["input_ids"]) for p in "xyzw"}
    assert not [b for b in stand.asked if "seed" in b]


def test_samples_carry_their_seeds_and_a_policy_is_an_adapter_there(stand: Stand) -> None:
    policy = asked_there(stand.address)
    assert (
        generate(policy, [Prompt("x"), Prompt("y")], Sampling(4, 1.0, 0.9), [5, 6]) == ["\nbase\nand on"] * 2
    )
    assert sorted(b["seed"] for b in stand.asked) == [5, 6] and {b["top_p"] for b in stand.asked} == {0.9}
    adapter = train_adapters(policy, [Job((Example("a b"),), Recipe(rank=2, steps=1), 0)])[0].adapter
    assert adapter is not None
    over, rows = policy.plus(adapter), [[Prompt("x")], [Prompt("y")]]
    mine, bare = ask(over, [None, adapter], rows, Sampling(4)), ask(policy, [None], rows[:1], Sampling(4))
    assert bare == [["\nbase\nand on"]], "the weights themselves are served on"
    assert len({mine[0][0], mine[1][0], bare[0][0]}) == 3, "the policy, an adapter on top of it, neither"
    assert stand.ranks[-2:] in ([2, 4], [4, 2]), "the two are joined into one"


def test_another_policy_is_not_asked_there_and_what_fails_is_one_sentence(
    stand: Stand, policy: Model
) -> None:
    spec = ModelSpec(name="base", engine=stand.address)
    assert spec.at("another").engine == "transformers", "it serves the model that it was started with"
    with pytest.raises(LoraError, match="no server answers"):
        asked_there("http://127.0.0.1:9/v1")
    one = asked_there(stand.address)
    stand.http.shutdown()
    stand.http.server_close()
    with pytest.raises(LoraError, match="cannot be reached"):
        generate(one, [Prompt("x")], Sampling(4), [0])
    with pytest.raises(ValueError, match="engine"):
        RunConfig.model_validate({"model": {"engine": "magic"}})


def test_on_cuda_the_engine_sleeps_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class LLM:
        def __init__(self, model: str, **settings: Any) -> None:
            said.append(f"starts, sleep mode {settings['enable_sleep_mode']}")

        def generate(self, prompts: list[Any], *_: Any, **__: Any) -> list[Any]:
            said.append("writes")
            return [
                SimpleNamespace(outputs=[SimpleNamespace(text="x", finish_reason="length")]) for _ in prompts
            ]

        def sleep(self, level: int) -> None:
            said.append("sleeps")

        def wake_up(self) -> None:
            said.append("wakes")

    names = {"LLM": LLM, "SamplingParams": lambda **settings: settings, "LoRARequest": None}
    names["current_platform"] = SimpleNamespace(is_sleep_mode_available=lambda: True)
    for module in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.platforms"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))
    tiny_one = tiny.policy()
    policy: Any = SimpleNamespace(
        device=torch.device("cuda"),
        base_name="tiny",
        context=64,
        runner=tiny_one.runner,
        model=tiny_one.model,
        conventions=tiny_one.conventions,
    )
    engine = InProcess(policy)
    for _ in range(2):
        assert engine.complete([[2, 3]], Sampling(2), [0], [None]) == [("x", True)]
    assert said == ["starts, sleep mode True", "writes", "sleeps", "wakes", "writes", "sleeps"]
    engine.close()
    with pytest.raises(LoraError, match="rank 256"):
        InProcess(policy, 512).complete([[2, 3]], Sampling(2), [0], [None])
