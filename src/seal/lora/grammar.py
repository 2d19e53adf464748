"""Sampling that can only write JSON of a schema: at each step the tokens that cannot go on are ruled out
(llguidance)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seal.lora.records import LoraError


class Constraint:
    """The state of N rows that are being written under one schema."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, schema: str, n_rows: int) -> None:
        """
        Raises:
            LoraError: llguidance is not installed, or cannot read the schema or the tokenizer.
        """
        guidance, tokens, grammar = _compiled(tokenizer, schema)
        self.matchers = [guidance.LLMatcher(tokens, grammar) for _ in range(n_rows)]
        if self.matchers and self.matchers[0].is_error():
            raise LoraError(f"no grammar can be made of the domain's schema: {self.matchers[0].get_error()}")

    def mask(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """(N, V) logits of these rows with -inf where the schema allows no such token."""
        allowed = np.zeros((len(rows), logits.shape[1]), bool)
        for place, row in enumerate(rows):
            bits = np.frombuffer(self.matchers[row].compute_bitmask(), np.uint8)
            found = np.unpackbits(bits, bitorder="little")[: logits.shape[1]].astype(bool)
            allowed[place, : len(found)] = found
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def take(self, row: int, token: int) -> None:
        """A row goes on with a token."""
        self.matchers[row].consume_token(token)


@lru_cache(maxsize=4)
def _compiled(tokenizer: PreTrainedTokenizerBase, schema: str) -> tuple[Any, Any, str]:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise LoraError(
            "constrained sampling needs the package llguidance: pip install 'seal-lm[grammar]'"
        ) from error
    try:
        tokens = llguidance.hf.from_tokenizer(tokenizer)
    except Exception as error:  # a tokenizer of a kind that it does not know
        raise LoraError(
            f"constrained sampling does not know the tokenizer of {tokenizer.name_or_path!r}: {error}"
        ) from error
    spaced: Any = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
    }  # as json.dumps writes
    return (
        llguidance,
        tokens,
        llguidance.LLMatcher.grammar_from_json_schema(json.loads(schema), overrides=spaced),
    )
