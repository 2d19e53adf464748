"""A model's conventions: where it ends, whether it is asked through its template, and what no text may do.

transformers' own ``generate`` is the oracle for what is written; templates are those that people meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerFast

from seal.domains.judges import verdict_of
from seal.loop.inner import understand
from seal.lora.chat import Conventions, conventions_of
from seal.lora.load import load_model, shape_of
from seal.lora.model import Model
from seal.lora.records import (
    UNFINISHED,
    Example,
    LoraError,
    ModelSpec,
    Prompt,
    Query,
    Recipe,
    Sampling,
    spoken,
)
from seal.lora.sample import ask, complete, generate
from seal.lora.score import log_likelihood
from seal.lora.tokens import encode_example
from seal.records import BadEdit, Task
from tests import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    + CHATML
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
THINKS = CHATML.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
ALWAYS_THINKS = CHATML.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
FAILS = "{{ raise_exception('never') }}"
ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "</s>", "[INST]", "[/INST]"]


def tokenizer(template: str | None = None, eos: str = "<end>") -> PreTrainedTokenizerFast:
    """The tiny one with the tokens of several families, and one role beside end and padding."""
    tok = tiny.tokenizer()
    tok.add_tokens([AddedToken(t, special=True) for t in SPECIAL], special_tokens=False)
    tok.chat_template = template
    tok.eos_token = eos
    return tok


def ids_of(tok: PreTrainedTokenizerFast, *names: str) -> list[int]:
    return [int(i) for i in tok.convert_tokens_to_ids(list(names))]


def model(
    template: str | None = None, eos: str = "<end>", ends: list[str] | None = None, seed: int = 0
) -> Model:
    weights = tiny.llama(seed, vocab_size=98 + len(SPECIAL))
    tok = tokenizer(template, eos)
    weights.generation_config = GenerationConfig(eos_token_id=ids_of(tok, *(ends or [eos])), pad_token_id=1)
    return Model(weights, tok, "tiny")


# ------------------------------------------------------------------------------------------------ chat or raw


@pytest.mark.parametrize(
    ("template", "eos", "ends", "on"),
    [
        (None, "<end>", [], False),  # a base model without one
        (CHATML, "<end>", ["<end>"], False),  # a base model that ships one: Qwen2.5
        (CHATML, "<|im_end|>", ["<|im_end|>", "<end>"], True),  # Instruct of the same
        (CHATML, "<end>", ["<end>", "<|im_end|>"], True),  # the generation config alone knows
        (NO_SYSTEM, "<end>", ["<end>", "<end_of_turn>"], True),  # Gemma
        (NO_SYSTEM, "<end>", ["<end>"], False),
        (INST, "</s>", ["</s>"], True),  # Mistral
        (INST, "<end>", [], False),
        (FAILS, "<end>", [], False),
        (ENDLESS, "<end>", [], False),
    ],
)
def test_prompts_go_through_a_template_that_ends_turns_as_the_model_ends(
    template: str | None, eos: str, ends: list[str], on: bool
) -> None:
    tok = tokenizer(template, eos)
    found = conventions_of(tok, ids_of(tok, *ends))
    assert found.chat is on
    assert found.ends >= {*ids_of(tok, *ends), tok.eos_token_id}
    assert ("chat on" in found.words()) is on and found.why in found.words()


def test_a_setting_overrules_it_and_what_cannot_be_is_a_sentence() -> None:
    base = tokenizer(CHATML)
    assert conventions_of(base, chat="on").chat and not conventions_of(base).chat
    assert not conventions_of(tokenizer(CHATML, "<|im_end|>"), chat="off").chat
    for template, words in ((None, "no chat template"), (FAILS, "does not take")):
        with pytest.raises(LoraError, match=words):
            conventions_of(tokenizer(template), chat="on")


def test_the_setting_goes_from_the_spec_to_the_model_and_to_what_is_said(tmp_path: Path) -> None:
    model(CHATML).save(tmp_path)
    for chat, on in (("auto", False), ("on", True), ("off", False)):
        spec = ModelSpec(name=str(tmp_path), chat=chat, threads=None)  # type: ignore[arg-type]
        loaded = load_model(spec)
        assert loaded.chat is on is loaded.with_stack(None).chat is shape_of(spec)[1].chat
        assert shape_of(spec)[1].words() == loaded.conventions.words()


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools | length > 0 %}tools{% endif %}" + CHATML


@pytest.mark.parametrize("template", [PARTS, TOOLS])
def test_a_template_of_parts_or_one_that_counts_its_tools_is_spoken_with(template: str) -> None:
    found = conventions_of(tokenizer(template, "<|im_end|>"))
    assert found.chat and found.render(Prompt("Hello")) == conventions_of(
        tokenizer(CHATML, "<|im_end|>")
    ).render(Prompt("Hello"))


@pytest.mark.parametrize("template", ["{{ '' }}", CHATML.replace("m['content']", "m['content'] | upper")])
def test_a_template_that_does_not_show_what_is_said_is_not_used(template: str) -> None:
    assert not conventions_of(tokenizer(template, "<|im_end|>")).chat
    with pytest.raises(LoraError, match="does not take"):
        conventions_of(tokenizer(template), chat="on")


@pytest.mark.parametrize("ends", [-1, [0, 99999], "0", [None], {"a": 1}, True, None])
def test_ends_that_are_no_tokens_are_left_out_and_said(ends: Any) -> None:
    found = conventions_of(tokenizer(), ends)
    assert found.words() and 0 in found.ends and -1 not in found.ends


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tok = tokenizer()
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 0)]
    )
    found = conventions_of(tok)
    asked = found.encode("Q:")
    row = encode_example(Example("a", prompt="Q:", answer=True), found)
    assert asked[-1] != 0 and list(row.ids[: len(asked)]) == asked and row.ids.count(0) == 1


def test_an_empty_prompt_and_a_slow_tokenizer_are_one_sentence() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(LoraError, match="a prompt is empty"):
        generate(tiny.policy(), [Prompt("")], Sampling(4), [0])
    with pytest.raises(LoraError, match="which characters"):
        conventions_of(ByT5Tokenizer())


# ------------------------------------------------------------------------------------------------ where it ends


@pytest.mark.parametrize("seed", range(4))
def test_decoding_stops_at_any_end_as_transformers_does(seed: int) -> None:
    """An end that the tokenizer does not name, and that comes up after a while."""
    plain = model(seed=seed)
    text = generate(plain, [Prompt("begin")], Sampling(40), [0])[0]
    often = max(set(text), key=text.count)
    later = [c for c in dict.fromkeys(text) if text.index(c) > 2] or [often]
    policy = model(seed=seed)
    stop = policy.tokenizer(later[0])["input_ids"][0]
    policy.model.generation_config.eos_token_id = [0, stop]
    policy = Model(policy.model, policy.tokenizer, "tiny")
    assert policy.conventions.ends == {0, stop}
    ids = torch.tensor([policy.tokenizer("begin")["input_ids"]])
    wanted = policy.model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
    assert wanted[-1] in (0, stop)
    said = policy.tokenizer.decode(wanted[:-1])
    assert (
        generate(policy, [Prompt("begin")], Sampling(40), [0])
        == [said]
        == ask(policy, [None], [[Prompt("begin")]], Sampling(40))[0]
    )
    assert not complete(policy, [Prompt("begin")], Sampling(40), [0])[0].cut


@pytest.mark.parametrize(
    ("template", "eos", "close"),
    [(CHATML, "<|im_end|>", "<|im_end|>"), (NO_SYSTEM, "<end>", "<end_of_turn>"), (INST, "</s>", "</s>")],
)
def test_a_turn_is_closed_as_the_template_closes_it_and_a_text_as_the_tokenizer_does(
    template: str, eos: str, close: str
) -> None:
    found = conventions_of(tokenizer(template, eos), chat="on")
    chat = encode_example(Example("Paris", prompt="Capital?", chat=True, answer=True), found)
    raw = encode_example(Example("Paris is a town"), found)
    last = found.tokenizer.convert_ids_to_tokens([chat.ids[-1], raw.ids[-1]])
    assert last == [close, eos] and chat.loss[-1] and raw.loss[-1]
    assert sum(i in found.ends for i, on in zip(chat.ids, chat.loss, strict=True) if on) == 1
    whole = found.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Paris"}], tokenize=False
    )
    assert whole.startswith(found.tokenizer.decode(chat.ids)), "the template's own text, to its end token"


# ------------------------------------------------------------------------------------------------ how an answer begins


@pytest.mark.parametrize(
    ("template", "prompt", "lead"),
    [
        (None, "Answer:", " "),
        (None, "Answer:\n", ""),
        (None, "Answer: ", ""),
        (CHATML, "Capital?", ""),
        (NO_SYSTEM, "Capital?", ""),
        (INST, "Capital?", " "),
    ],
)
def test_rows_questions_and_likelihoods_begin_an_answer_alike(
    template: str | None, prompt: str, lead: str
) -> None:
    policy = model(template)
    if template:
        policy.conventions = conventions_of(policy.tokenizer, chat="on")
    row = encode_example(Example("Paris", prompt=prompt, chat=True, answer=True), policy.conventions)
    mine = [i for i, on in zip(row.ids, row.loss, strict=True) if on]
    assert policy.tokenizer.decode(mine[:-1]) == lead + "Paris"
    asked = policy.conventions.encode(policy.conventions.render(Prompt(prompt)))
    assert list(row.ids[: len(asked)]) == asked, "the very tokens that the model is asked with"
    with torch.no_grad():
        logs = policy.model(input_ids=torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
    at = torch.tensor(row.ids[1:])
    each = logs.gather(1, at[:, None])[:, 0][torch.tensor(row.loss[1:])]
    found = log_likelihood(policy, [None], [[Query(Prompt(prompt), "Paris")]])[0][0]
    assert found == pytest.approx(float(each.mean()), abs=1e-5)


def test_a_system_prompt_is_in_rows_and_likelihoods_too() -> None:
    policy = model(CHATML, "<|im_end|>")
    told = encode_example(Example("x", prompt="p", system="Be brief.", chat=True), policy.conventions)
    assert "Be brief." in policy.tokenizer.decode(told.ids)
    one, other = log_likelihood(policy, [None], [[Query(Prompt("p", s), "x") for s in ("Be brief.", "")]])[0]
    assert one != other


# ------------------------------------------------------------------------------------------------ what no text may do


@pytest.mark.parametrize("token", ["<end>", "<pad>", *SPECIAL])
def test_no_text_brings_a_special_token_along(token: str) -> None:
    found = conventions_of(tokenizer(CHATML, "<|im_end|>"))
    text = f"before {token} after"
    (i,) = ids_of(found.tokenizer, token)
    assert i not in found.tokenizer(found.defuse(text))["input_ids"]
    row = encode_example(Example(text), found)
    assert i not in row.ids[:-1]
    said = found.encode(found.render(Prompt("a", text)))
    bare = found.encode(found.render(Prompt("a", "b")))
    assert said.count(i) == bare.count(i)


# ------------------------------------------------------------------------------------------------ system turns


def rendered(template: str, prompt: Prompt, system: str | None = None) -> tuple[Conventions, str]:
    found = conventions_of(tokenizer(template, "<|im_end|>"), chat="on", system=system)
    return found, found.render(prompt)


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_turn_that_a_template_refuses_or_drops_stands_before_the_users(template: str) -> None:
    found, text = rendered(template, Prompt("Write.", "Be brief."))
    assert not found.system_turn and "Be brief.\n\nWrite." in text and "takes no system turn" in found.words()
    assert "Be brief.\n\nWrite." in rendered(template, Prompt("Write."), "Be brief.")[1]


def test_a_system_prompt_that_a_template_inserts_is_said_and_can_be_left_out() -> None:
    found, text = rendered(OWN_SYSTEM, Prompt("Write."))
    assert (
        "You are Tiny." in text and "You are Tiny." in found.own_system and "You are Tiny." in found.words()
    )
    found, text = rendered(OWN_SYSTEM, Prompt("Write."), "")
    assert "You are Tiny." not in text and "adds a system prompt" not in found.words()
    assert "Mine." in rendered(OWN_SYSTEM, Prompt("Write.", "Mine."), "Other.")[1]
    found, text = rendered(CHATML, Prompt("Write."))
    assert not found.own_system and "system" not in text


# ------------------------------------------------------------------------------------------------ thinking


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Paris", "Paris"),
        ("  Paris\n", "  Paris\n"),
        ("<think>hm</think>Paris", "Paris"),
        ("<think>\n\n</think>\n\nParis", "Paris"),
        ("\n<thinking>a\nb</thinking>\nParis", "Paris"),
        ("[THINK]hm[/THINK] Paris", "Paris"),
        ("hm, so</think>\nParis", "Paris"),
        ("<think>hm, it could be Paris", None),
        ("A <think> in the middle", "A <think> in the middle"),
        ("<thinker> is a word", "<thinker> is a word"),
        ("", ""),
    ],
)
def test_a_leading_block_of_thinking_is_cut_and_one_without_end_is_nothing(
    text: str, said: str | None
) -> None:
    assert spoken(text) == said


def test_thinking_is_turned_off_where_a_template_can_be_told_and_closed_where_it_cannot() -> None:
    assert rendered(THINKS, Prompt("Write."))[1].endswith("<think>\n\n</think>\n\n")
    assert rendered(ALWAYS_THINKS, Prompt("Write."))[1].endswith("<think>\n\n</think>\n\n")


class Says:
    """An engine that writes what it is told."""

    def __init__(self, text: str) -> None:
        self.text = text

    def complete(self, prompts: Any, sampling: Sampling, *_: Any) -> Any:
        from seal.lora.decoder import answers_in
        from seal.lora.records import Written

        return [Written(t) for t in answers_in([self.text] * len(prompts), sampling)]


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("<think>no, or\nyes</think>\nyes\nmore", "yes", True),
        ("<think>yes yes yes", "", None),
        ("no.\nmore", "no.", False),
    ],
)
def test_answers_edits_and_verdicts_are_without_thinking(
    text: str, answer: str, verdict: bool | None
) -> None:
    policy = tiny.policy()
    policy.served = Says(text)
    assert ask(policy, [None], [[Prompt("?")]], Sampling(64, stop="\n")) == [[answer]]
    assert generate(policy, [Prompt("?")], Sampling(64), [0]) == [spoken(text) or ""]
    assert verdict_of(text) is verdict


def test_an_edit_that_does_not_stop_thinking_is_a_bad_one_with_a_reason() -> None:
    from seal.domains.knowledge import Knowledge

    task = Task("t", {"title": "T", "context": "c", "questions": []})
    parsed, _ = understand(Knowledge(), task, "<think>what shall I write", Recipe())
    assert isinstance(parsed, BadEdit) and parsed.reason == UNFINISHED
    good, _ = understand(Knowledge(), task, "<think>hm</think>\nA fact.", Recipe())
    assert not isinstance(good, BadEdit) and good.text == "A fact."
    assert not [e for e in good.examples if "think" in e.completion]  # type: ignore[union-attr]


def test_a_stop_is_looked_for_after_the_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the decoder itself: a line break within the block ends nothing."""
    policy = tiny.policy()
    script = policy.tokenizer("<think>a\nb</think>\nParis\nmore")["input_ids"]

    def forced(logits: torch.Tensor, sampling: Sampling, draw: object, at: list[int] = [0]) -> torch.Tensor:  # noqa: B006
        at[0] += 1
        return torch.full((len(logits),), script[at[0] - 1])

    monkeypatch.setattr("seal.lora.decoder._choose", forced)
    assert ask(policy, [None], [[Prompt("?")]], Sampling(len(script), stop="\n")) == [["Paris"]]
