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

from seal.lora.chat import Conventions
from seal.lora.records import Example, Prompt


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


def encode_example(example: Example, conventions: Conventions) -> Row:
    """A training row with exactly one end token, or with none where the text does not end.

    A token carries loss if it covers any character of the completion. Prompt and completion are tokenised as
    the one text they form, so the model trains on the very tokens it would meet when it generates. In a chat
    the end is the one that closes the assistant's turn.
    """
    tokenizer = conventions.tokenizer
    asked = bool(example.prompt or example.system)
    chat = conventions.chat and example.chat and asked
    prompt = conventions.render(Prompt(example.prompt, example.system), chat) if asked else ""
    completion = conventions.defuse(example.completion)
    if example.answer:
        completion = conventions.answer(prompt, completion, chat)
    encoded = tokenizer(prompt + completion, add_special_tokens=not chat, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    loss = [example.loss_on_prompt or end > len(prompt) for _, end in encoded["offset_mapping"]]
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers append it themselves
        ids.pop(), loss.pop()
    if example.ends:
        ids.append(conventions.close if chat and conventions.close is not None else conventions.end)
        loss.append(True)
    loss[:1] = [False] * len(loss[:1])
    return Row(tuple(ids), tuple(loss))


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Prompts, padded at the left: ids (N, T) and attention mask (N, T)."""
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
