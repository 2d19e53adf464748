"""A model's conventions: how it is asked, how an answer begins and ends, and which tokens no text may bring
along. Worked out once, when the model is loaded, from its tokenizer, its template and its generation config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jinja2 import UndefinedError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seal.lora.records import THINKING, LoraError, Prompt

Mode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Conventions:
    """One model's, for whatever goes in and comes out: engines, training rows, likelihoods, judges."""

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    chat: bool
    """Whether prompts go through the chat template."""
    why: str
    """Why so, in words."""
    ends: frozenset[int]
    """Tokens that end what is written: decoding stops at any of them."""
    close: int | None = None
    """The token that the template puts after an assistant's turn; ``None``: there is none."""
    lead: str = ""
    """White space that the template puts before an assistant's words."""
    system_turn: bool = True
    """Whether the template takes a system turn; else it stands before the user's."""
    own_system: str = ""
    """The system prompt that the template inserts of itself where none is given."""
    system: str | None = None
    """What is put there instead; ``None``: nothing, so that the template does as it does."""
    parts: bool = False
    """Whether the template takes what is said as a list of parts."""

    @property
    def end(self) -> int:
        """The id that ends a text.

        Raises:
            LoraError: the tokenizer has no end-of-text token.
        """
        if self.tokenizer.eos_token_id is None and self.ends:
            return min(self.ends)
        if self.tokenizer.eos_token_id is None:
            raise LoraError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no end-of-text token (eos_token)"
            )
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def control(self) -> tuple[str, ...]:
        """Every token that is special, whatever its role, longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = {str(t) for t in added if t.special} | set(self.tokenizer.all_special_tokens)
        return tuple(sorted((n for n in names if len(n) > 1), key=lambda n: (-len(n), n)))

    @cached_property
    def _hidden(self) -> frozenset[int]:
        marks = {mark for pair in THINKING for mark in pair}
        added = self.tokenizer.added_tokens_decoder.items()
        special = {i for i, t in added if t.special and str(t) not in marks}
        return frozenset(
            special | (set(self.tokenizer.all_special_ids) - {i for i, t in added if str(t) in marks})
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of what was written: without special tokens, but with those around thinking."""
        return str(self.tokenizer.decode([i for i in ids if i not in self._hidden]))

    def defuse(self, text: str) -> str:
        """The text with the names of special tokens broken up by a space: a passage or a self-edit that holds
        ``<|im_end|>`` is to end no turn."""
        for token in self.control:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(self, prompt: Prompt, chat: bool = True) -> str:
        """The text a model reads before it writes: through the chat template for a chat model, else as it
        stands. A template that begins an answer with thinking has it closed at once."""
        prompt = Prompt(self.defuse(prompt.text), self.defuse(prompt.system))
        if not (self.chat and chat):
            return f"{prompt.system}\n\n{prompt.text}" if prompt.system else prompt.text
        system = prompt.system or self.system
        if system and not self.system_turn:
            prompt, system = Prompt(f"{system}\n\n{prompt.text}"), None
        turns = [{"role": "system", "content": system}] if system is not None and self.system_turn else []
        turns.append({"role": "user", "content": prompt.text})
        text = templated(self.tokenizer, turns, True, self.parts)
        if "<|channel|>" in self.control and text.endswith("<|start|>assistant"):
            return f"{text}<|channel|>final<|message|>"  # gpt-oss: what it says aloud, and no thinking before
        opened = next((close for begin, close in THINKING if text.rstrip().endswith(begin)), None)
        return f"{text.rstrip()}\n\n{opened}\n\n" if opened else text

    def encode(self, rendered: str, chat: bool = True) -> list[int]:
        """Token ids of a rendered prompt. A chat template writes its own special tokens, so none are added
        then."""
        ids = list(self.tokenizer(rendered, add_special_tokens=not (self.chat and chat))["input_ids"])
        while ids and not (self.chat and chat) and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()  # some tokenizers end every text
        return ids

    def answer(self, rendered: str, answer: str, chat: bool = True) -> str:
        """An answer as it follows its prompt. In a chat as the template begins it; else after a space, unless
        the prompt ends in white space."""
        if self.chat and chat:
            return self.lead + answer
        return answer if rendered[-1:].isspace() or not rendered else " " + answer

    def words(self) -> str:
        """All of it in a line, for people."""
        known = len(self.tokenizer)
        names = [self.tokenizer.convert_ids_to_tokens(i) if i < known else str(i) for i in sorted(self.ends)]
        ends = ", ".join(map(str, names)) or "nothing"
        found = [f"chat {'on' if self.chat else 'off'} ({self.why})", f"ends at {ends}"]
        if self.chat and not self.system_turn:
            found.append("takes no system turn: it stands before the user's")
        if self.chat and self.own_system and self.system is None:
            found.append(
                f"its template adds a system prompt: {self.own_system[:80]!r} (--model.system '': none)"
            )
        return "; ".join(found)


ASKED, ANSWERED, TOLD = "Which is it, then?", "This is 7 of them.", "Speak as one would."
"""Turns that a template is tried with."""


def conventions_of(
    tokenizer: PreTrainedTokenizerBase,
    ends: int | Iterable[int] | None = None,
    chat: Mode = "auto",
    system: str | None = None,
) -> Conventions:
    """Work them out.

    Prompts go through the template exactly if the token that it ends an assistant's turn with is one that the
    model ends at: a base model may ship a template that it was never trained on.

    Args:
        ends: end ids of the model's generation config.
        chat: ``on`` and ``off`` overrule that.
        system: the system prompt of every chat; empty: none, not the template's own either.

    Raises:
        LoraError: ``on``, and there is no template.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise LoraError(
            f"the tokenizer of {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) is none of the library "
            "tokenizers: it does not say which characters a token covers, so no loss mask can be made"
        )
    several = ends if isinstance(ends, (list, tuple, set, frozenset)) else [ends]
    own = [i for i in several if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    own += [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if not tokenizer.chat_template:
        if chat == "on":
            raise LoraError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: take chat auto or off"
            )
        return Conventions(tokenizer, False, "it has no template", frozenset(own), system=system)
    try:
        parts, asked, whole = _tried(tokenizer)
    except Exception as error:  # of a template that somebody else wrote
        if chat == "on":
            raise LoraError(
                f"the chat template of {tokenizer.name_or_path!r} does not take a user's turn: {error}"
            ) from error
        return Conventions(tokenizer, False, f"its template fails: {error}", frozenset(own), system=system)
    close = _first_special(tokenizer, whole.rpartition(ANSWERED)[2])
    on = chat == "on" or (chat == "auto" and close in own)
    why = {"on": "as told", "off": "as told"}.get(chat) or (
        f"its turns end with {tokenizer.convert_ids_to_tokens(close)}, "
        f"{'where' if on else 'and'} the model ends{'' if on else ' otherwise'}"
        if close is not None
        else "its template ends no turn with a token of its own"
    )
    before = whole.rpartition(ANSWERED)[0]
    lead = before.removeprefix(asked) if before.startswith(asked) else ""
    takes, inserted = _system_of(tokenizer, parts)
    return Conventions(
        tokenizer,
        on,
        why,
        frozenset([*own, close] if on and close is not None else own),
        close,
        lead if lead.isspace() else "",
        takes,
        inserted,
        system,
        parts,
    )


def _tried(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, str, str]:
    """Whether the template takes parts, a question through it, and the question with an answer.

    Raises:
        ValueError: what was said is not in it, whichever way.
    """
    user, assistant = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
    for parts in (False, True):
        try:
            asked = templated(tokenizer, [user], True, parts)
            whole = templated(tokenizer, [user, assistant], False, parts)
        except Exception:  # of a template that somebody else wrote
            if parts:
                raise
            continue
        if ASKED in asked and ASKED in whole and ANSWERED in whole:
            return parts, asked, whole
    raise ValueError("what is said does not stand in what it makes")


def templated(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], asked: bool, parts: bool = False
) -> str:
    """Turns through the template, without thinking where it can be told so, and without tools."""
    said: list[dict[str, Any]] = [
        {**t, "content": [{"type": "text", "text": t["content"]}]} if parts else dict(t) for t in turns
    ]
    how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": asked, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template(said, **how))
    except (TypeError, UndefinedError):  # one that counts its tools
        return str(tokenizer.apply_chat_template(said, tools=[], **how))


def _first_special(tokenizer: PreTrainedTokenizerBase, tail: str) -> int | None:
    """The first added token of what a template writes after an answer."""
    added = tokenizer.added_tokens_decoder
    special = {*added, *tokenizer.all_special_ids}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return next((int(i) for i in ids if i in special), None)


def _system_of(tokenizer: PreTrainedTokenizerBase, parts: bool) -> tuple[bool, str]:
    """Whether the template takes a system turn, and what it inserts where there is none."""
    user = {"role": "user", "content": ASKED}
    bare = templated(tokenizer, [user], False, parts)
    try:
        told = templated(tokenizer, [{"role": "system", "content": TOLD}, user], False, parts)
    except Exception:  # raise_exception('System role not supported')
        return False, ""
    before, found, after = told.partition(TOLD)
    if not found:
        return False, ""
    if bare.startswith(before) and bare.endswith(after) and len(bare) >= len(before) + len(after):
        return True, bare[len(before) : len(bare) - len(after)].strip()
    return True, ""


def ends_of(model: Any) -> list[int]:
    """End ids of a model's generation config: none, one or several."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if isinstance(found, Tensor):
        found = found.tolist()
    several = found if isinstance(found, (list, tuple)) else [found]
    return [i for i in several if isinstance(i, int)]
