"""A chat model's conventions: its template, and the special tokens that no text may bring along."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from seal.lora.records import Prompt


def defuse(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with the names of special tokens broken up by a space: a passage or a self-edit that holds
    ``<|im_end|>`` is to end no turn."""
    for token in tokenizer.all_special_tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """The text a model reads before it writes: through the chat template for an instruct model, else as it
    stands."""
    prompt = Prompt(defuse(prompt.text, tokenizer), defuse(prompt.system, tokenizer))
    if not chat:
        return f"{prompt.system}\n\n{prompt.text}" if prompt.system else prompt.text
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    turns.append({"role": "user", "content": prompt.text})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
