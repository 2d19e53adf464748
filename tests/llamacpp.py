"""llama.cpp itself, through the wheel xllamacpp: the oracle for what is read from GGUF files and written as such."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A server of llama.cpp's in this process, on the loopback; greedy, one thread."""

    def __init__(self, path: Path | str, lora: Path | str | None = None, context: int = 2048) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup = context, 1, 0, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as ours, not rounded
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if lora:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(params)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text, special tokens in it read as such; nothing put around it."""
        body = {"content": text, "add_special": False, "parse_special": special}
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
