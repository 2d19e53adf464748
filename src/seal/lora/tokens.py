"""Text to token rows: prompts, training examples with their loss mask, padding.

Where loss falls is known when the text is put together (a character position), and never searched for in the
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seal.lora.chat import defuse, render
from seal.lora.records import Example, LoraError, Prompt


@dataclass(frozen=True, eq=False)
class Soft:
    """What a teacher says at the M loss tokens of a row."""

    ids: NDArray[np.int32]
    """(M, top) its likeliest tokens there."""
    logs: NDArray[np.float32]
    """(M, top) their log-probabilities."""
    weights: tuple[float, float]
    """Of the ordinary loss, and of the divergence from the teacher."""


@dataclass(frozen=True)
class Row:
    """One training row: token ids, and for each whether it carries loss (the first token never can)."""

    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    soft: Soft | None = field(default=None, compare=False)


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Token ids of a rendered prompt. A chat template writes its own special tokens, so none are added
    then."""
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> Row:
    """A training row with exactly one end token, or with none where the text does not end.

    A token carries loss if it covers any character of the completion. Prompt and completion are tokenised as
    the one text they form, so the model trains on the very tokens it would meet when it generates.
    """
    use_chat = chat and example.chat
    prompt = render(Prompt(example.prompt), tokenizer, use_chat) if example.prompt else ""
    encoded = tokenizer(
        prompt + defuse(example.completion, tokenizer),
        add_special_tokens=not use_chat,
        return_offsets_mapping=True,
    )
    ids = list(encoded["input_ids"])
    loss = [example.loss_on_prompt or end > len(prompt) for _, end in encoded["offset_mapping"]]
    end_id = end_token(tokenizer)
    if ids and ids[-1] == end_id:  # some tokenizers append it themselves
        ids.pop(), loss.pop()
    if example.ends:
        ids.append(end_id)
        loss.append(True)
    loss[:1] = [False] * len(loss[:1])
    return Row(tuple(ids), tuple(loss))


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a text.

    Raises:
        LoraError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise LoraError(f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-text token (eos_token)")
    return int(tokenizer.eos_token_id)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Prompts, padded at the left: ids (N, T) and attention mask (N, T)."""
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
