"""vLLM writes and answers in place of the transformers engine: in this process, or behind a server that is
running already.

Self-edits and answers come from vLLM; training, likelihoods and merging stay here. Adapters are written to a
folder and handed over per request, under a name that was never used before, and taken back when their answers
are there. A policy is an adapter too, and those of the inner loop go on top of it as one, so an engine keeps
the weights that it was started with over all rounds. On CUDA the engine in this process sleeps between two
calls, so that training has its memory.
"""

from __future__ import annotations

import gc
import itertools
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from seal.lora.adapter import Adapter, join
from seal.lora.decoder import answers_in
from seal.lora.files import save_peft
from seal.lora.model import Model
from seal.lora.names import place_of
from seal.lora.records import LoraError, Sampling, Written

MAX_RANK = 256
"""The largest rank vLLM takes."""
RANKS = (8, 16, 32, 64, 128, 256)
MEMORY = 0.4
"""Share of a GPU's memory for vLLM, where training is to have its own."""
SIDE_BY_SIDE = 32
"""Requests to a server at a time."""
_names = itertools.count(1)
_process = uuid4().hex[:12]
"""In the adapters' names: a server outlives the processes that ask it, and caches by name."""
_live: list[InProcess] = []


class InProcess:
    """vLLM in this process; made when it is first asked."""

    def __init__(self, policy: Model, rank: int = 0) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise LoraError("model.engine vllm needs vLLM: pip install vllm (see docs/scale.md)") from error
        self.name, self.rank = policy.base_name, rank
        self.ends = sorted(policy.conventions.ends)
        self.place = place_of(self.name)
        self.context, self.dtype = min(policy.context, 8192), str(policy.runner.dtype).removeprefix("torch.")
        self.on_gpu = policy.device.type == "cuda"
        self.made_for = 0
        """The largest rank that the engine takes."""
        self.llm: Any = None
        self.sleeps = False
        """Whether it gives its memory to training between two calls: vLLM's sleep mode, on CUDA."""

    def close(self) -> None:
        """Give back its memory."""
        self.llm = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapters: Sequence[Adapter | None],
        beneath: Adapter | None = None,
    ) -> list[Written]:
        """A text per prompt, each through its own adapter and the stack ``beneath`` all of them."""
        adapters = _joined(beneath, adapters)
        import vllm
        from vllm.lora.request import LoRARequest

        needed = max([self.rank, *(a.rank for a in adapters if a)])
        if needed > MAX_RANK:
            raise LoraError(
                f"vLLM takes adapters up to rank {MAX_RANK}, not {needed}: take model.engine transformers, or a "
                "smaller outer.compress"
            )
        if self.llm is not None and self.sleeps:
            self._wake()
        if self.llm is None or needed > self.made_for:
            before = _live.pop() if _live else None  # one at a time: each takes its share of the memory
            _live.append(self)
            if before is None or needed > before.made_for or not self._take_over(before):
                if before is not None:
                    before.close()
                self.made_for = next(r for r in RANKS if r >= max(needed, 1))
                self.llm = self._start(vllm)
        with _written(adapters, self.name) as folders:
            requests = {
                k: LoRARequest(name, number, str(path)) for k, (name, number, path) in folders.items()
            }
            mine = [requests[a] if a is not None else None for a in adapters]
            found = self._run(vllm, prompts, sampling, seeds, mine, stop=True)
            again = [
                i
                for i, (text, why) in enumerate(found)
                if not text.strip() and why == "stop" and sampling.stop
            ]
            if again:  # it began with what ends an answer: that counts only once something is written
                picked = [[x[i] for i in again] for x in (prompts, seeds, mine)]
                for i, one in zip(
                    again, self._run(vllm, picked[0], sampling, picked[1], picked[2], stop=False), strict=True
                ):
                    found[i] = one
            for request in requests.values():
                self.llm.llm_engine.remove_lora(request.lora_int_id)
        if self.sleeps:
            self.llm.sleep(level=1)  # weights go to the host's memory, the KV cache is dropped
        texts = answers_in([text for text, _ in found], sampling)
        return [Written(text, why == "length") for text, (_, why) in zip(texts, found, strict=True)]

    def _wake(self) -> None:
        torch.cuda.empty_cache()  # what training has given back, but its allocator still holds
        self.llm.wake_up()

    def _take_over(self, before: InProcess) -> bool:
        """The engine of another policy, where it is on the same weights."""
        same = (before.place, before.context, before.dtype) == (self.place, self.context, self.dtype)
        if before.llm is None or not same:
            return False
        if before.sleeps:
            before._wake()
        self.llm, self.made_for, self.sleeps = before.llm, before.made_for, before.sleeps
        before.llm = None
        return True

    def _start(self, vllm: Any) -> Any:
        from vllm.platforms import current_platform

        self.sleeps = self.on_gpu and bool(current_platform.is_sleep_mode_available())
        more: dict[str, Any] = (
            {"gpu_memory_utilization": MEMORY, "enable_sleep_mode": self.sleeps} if self.on_gpu else {}
        )
        try:
            return vllm.LLM(
                self.place.where,
                revision=self.place.revision,
                tokenizer_revision=self.place.revision,
                enable_lora=True,
                max_lora_rank=self.made_for,
                max_loras=4,
                dtype=self.dtype,
                enforce_eager=not self.on_gpu,
                max_model_len=self.context,
                **more,
            )
        except Exception as error:  # of a system of many parts
            raise LoraError(
                f"vLLM does not start on {self.name!r}: {str(error).strip().splitlines()[-1][:300]}"
            ) from error

    def _run(
        self, vllm: Any, prompts: Any, sampling: Sampling, seeds: Any, requests: Any, stop: bool
    ) -> list[tuple[str, str]]:
        how = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=int(s) % 2**63 if sampling.temperature else None,
                stop=[sampling.stop] if sampling.stop and stop else None,
                stop_token_ids=self.ends,
                include_stop_str_in_output=False,
            )
            for s in seeds
        ]
        tokens = [{"prompt_token_ids": list(p)} for p in prompts]
        groups: dict[int, list[int]] = {}
        # On a CPU one adapter at a time: batches of several gave other answers (docs/scale.md).
        for i, request in enumerate(requests):
            groups.setdefault(request.lora_int_id if request and not self.on_gpu else 0, []).append(i)
        found = [("", "")] * len(tokens)
        for rows in groups.values():
            picked = [[x[i] for i in rows] for x in (tokens, how, requests)]
            for i, o in zip(
                rows,
                self.llm.generate(picked[0], picked[1], lora_request=picked[2], use_tqdm=False),
                strict=True,
            ):
                found[i] = (o.outputs[0].text, str(o.outputs[0].finish_reason))
        return found


class Server:
    """A running ``vllm serve``; adapters need VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 there, ``--enable-lora``,
    and a file system in common.

    Args:
        address: ``http://host:8000/v1``.
    """

    def __init__(self, address: str, policy: Model) -> None:
        self.address, self.name = address.rstrip("/"), policy.base_name
        self.ends = sorted(policy.conventions.ends)
        try:
            with urllib.request.urlopen(f"{self.address}/models", timeout=10) as reply:
                self.model = str(json.load(reply)["data"][0]["id"])
        except (OSError, ValueError, LookupError) as error:
            raise LoraError(f"model.engine: no server answers at {address}: {error}") from error

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapters: Sequence[Adapter | None],
        beneath: Adapter | None = None,
    ) -> list[Written]:
        """A text per prompt, each through its own adapter and the stack ``beneath`` all of them."""
        adapters = _joined(beneath, adapters)
        with _written(adapters, self.name) as folders:
            loaded = []
            try:
                for name, _, path in folders.values():
                    self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
                    loaded.append(name)
                jobs = [
                    (p, s, folders[a][0] if a is not None else self.model)
                    for p, s, a in zip(prompts, seeds, adapters, strict=True)
                ]
                with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                    return list(pool.map(lambda j: self._one(j[0], j[1], j[2], sampling), jobs))
            finally:
                for name in loaded:
                    self._post("unload_lora_adapter", {"lora_name": name}, quiet=True)

    def _one(self, prompt: Sequence[int], seed: int, model: str, sampling: Sampling) -> Written:
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": self.ends,
        }
        if sampling.temperature:
            body["seed"] = seed % 2**63
        if not sampling.stop:
            return self._choice(body)
        found = self._choice(body | {"stop": [sampling.stop]})
        found = found if found.text.strip() else self._choice(body)
        return Written(answers_in([found.text], sampling)[0], found.cut)

    def _choice(self, body: dict[str, Any]) -> Written:
        choice = json.loads(self._post("completions", body))["choices"][0]
        return Written(str(choice["text"]), choice.get("finish_reason") == "length")

    def _post(self, what: str, body: dict[str, Any], quiet: bool = False) -> bytes:
        request = urllib.request.Request(
            f"{self.address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            if quiet:
                return b""
            said = error.read(300).decode("utf-8", "replace")
            raise LoraError(f"the server at {self.address} refused {what}: {error.code} {said}") from error
        except OSError as error:
            if quiet:
                return b""
            raise LoraError(f"the server at {self.address} cannot be reached: {error}") from error


def _joined(beneath: Adapter | None, adapters: Sequence[Adapter | None]) -> list[Adapter | None]:
    """Each adapter on top of the stack, as one: an adapter is all that vLLM knows of a policy."""
    if beneath is None:
        return list(adapters)
    found = {a: beneath if a is None else join(beneath, a) for a in dict.fromkeys(adapters)}
    return [found[a] for a in adapters]


@contextmanager
def _written(adapters: Sequence[Adapter | None], base: str) -> Iterator[dict[Adapter, tuple[str, int, Path]]]:
    """Each adapter once, in a folder as PEFT's: name, number, folder. Gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="seal-vllm-") as folder:
        found: dict[Adapter, tuple[str, int, Path]] = {}
        for adapter in adapters:
            if adapter is not None and adapter not in found:
                number = next(_names)
                path = Path(folder) / str(number)
                save_peft(adapter, path, base)
                found[adapter] = (f"seal-{_process}-{number}", number, path)
        yield found
