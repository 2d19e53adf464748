"""llama.cpp itself, through the wheel xllamacpp: the oracle for what is read from GGUF files and written as such.

Each in a process of its own, which is killed at the end: its server may take for ever to stop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READY = "listening at "


class LlamaCpp:
    """A server of llama.cpp's on the loopback; greedy, one thread."""

    def __init__(self, path: Path | str, lora: Path | str | None = None, context: int = 2048) -> None:
        told = json.dumps({"path": str(path), "lora": lora and str(lora), "context": context})
        process = subprocess.Popen(
            [sys.executable, __file__, told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        weakref.finalize(self, process.kill)
        late = threading.Timer(120, process.kill)
        late.start()
        lines = (line.rstrip() for line in process.stdout or ())
        self.address = next((x.removeprefix(READY) for x in lines if x.startswith(READY)), "")
        late.cancel()
        if not self.address:
            raise RuntimeError(f"llama.cpp does not load {path}")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def tokens(self, text: str, around: bool = False) -> list[int]:
        """The ids of a text, special tokens in it read as such; with what is put around a text, where asked."""
        body = {"content": text, "add_special": around, "parse_special": True}
        return list(self._post("/tokenize", body)["tokens"])

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """What follows some ids, until an end token (which llama.cpp reports or not, by how a text ended)."""
        body = {"prompt": list(ids), "n_predict": n, "temperature": 0, "return_tokens": True}
        return list(self._post("/completion", {**body, "cache_prompt": False})["tokens"])

    def likeliest(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """The log-probabilities of the likeliest next tokens."""
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "logprobs": top, "n_probs": top}
        told = self._post("/v1/completions", {**body, "ignore_eos": True, "cache_prompt": False})
        (first,) = told["choices"][0]["logprobs"]["content"]
        return {x["id"]: x["logprob"] for x in first["top_logprobs"]}


def serve(path: str, lora: str | None, context: int) -> None:
    """Until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = context, 1, 0, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as ours, not rounded
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(params)
    print(READY + server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
