"""Tiny random models and a tokenizer, made on the spot: no file, no network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seal.lora.model import Model


def tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII, space and line break, a token each: what a random model writes with it is text."""
    alphabet = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    vocabulary = {"<end>": 0, "<pad>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 98,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def policy(seed: int = 0) -> Model:
    return Model(llama(seed), tokenizer(), "tiny")


def save(folder: object, seed: int = 0) -> str:
    """A tiny model on disk, as a user would name it."""
    policy(seed).save(Path(str(folder)))
    return str(folder)
