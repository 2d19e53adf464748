"""A GGUF file's tokenizer as one of the tokenizers library, and the other way.

A file names how text is cut before it is merged (``tokenizer.ggml.pre``), and each reader has its own table of
what the name means. Here a name that is not in the table is refused: a tokenizer that cuts otherwise gives other
ids for the same text, and nobody notices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from seal.lora.records import LoraError

Json = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CUTS: dict[str, tuple[str, str | None, bool, bool]] = {
    # name: how text is cut first, its pattern, whether text is normalised (NFC), whether whole words go before merges
    "gpt-2": ("bytes", None, False, False),
    "smollm": ("digits", None, False, False),
    "llama-bpe": ("pattern", LLAMA3, False, True),
    "qwen2": ("pattern", QWEN2, True, False),
}
"""As the tokenizers of those models do it themselves."""
SAME_CUT = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
"""Other names under which llama.cpp cuts alike."""


PROOF = (
    "return  2 + 34",
    "It's 1995–2001, don't CAN'T",
    "def f(x):\n    return x**2\n\n\t\tpass\r\n",
    "Zoë naïve 日本語 кошка 🎉 ½ ² ٣",
    "  lead and trail  ",
    "a\u00a0b \u00a05",
)
"""Texts that tokenizers of different cuts read differently."""


def tokenizer_of(meta: Json, kind: str) -> PreTrainedTokenizerFast:
    """Build the tokenizer that a file describes.

    Args:
        meta: the file's settings, with all of ``tokenizer.…``.
        kind: the file's architecture.

    Raises:
        LoraError: it has none, or one of a kind that is not known here.
    """
    tokens, types = meta.get("tokenizer.ggml.tokens"), meta.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) for t in tokens):
        raise LoraError("it has no tokenizer")
    tokens = _respelled(tokens, kind)
    if not all(tokens):
        raise LoraError("one of its tokens is empty")
    if types is None and meta.get("tokenizer.ggml.model") == "llama":
        raise LoraError("its tokenizer does not say which of its pieces are bytes")
    if types is None:
        types = [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise LoraError(f"it has {len(tokens)} tokens, and types of another number")
    model = meta.get("tokenizer.ggml.model")
    if model == "gpt2":
        inner = _byte_level(meta, tokens)
    elif model == "llama":
        inner = _sentencepiece(meta, tokens, types, kind)
    else:
        raise LoraError(f"its tokenizer is of the kind {str(model)[:40]!r}, which is not read here")
    for at, (token, type_) in enumerate(zip(tokens, types, strict=True)):
        if type_ in (CONTROL, USER) and inner.token_to_id(token) == at:
            added = AddedToken(token, special=type_ == CONTROL, normalized=False)
            (inner.add_special_tokens if type_ == CONTROL else inner.add_tokens)([added])
    if inner.get_vocab_size() != len(tokens):
        raise LoraError(
            f"its tokenizer has {len(tokens)} tokens, of which {inner.get_vocab_size()} are different"
        )
    roles = {
        f"{role}_token": tokens[own]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (own := _id(meta, f"tokenizer.ggml.{key}_token_id", len(tokens))) is not None
    }
    pre = SAME_CUT.get(str(meta.get("tokenizer.ggml.pre")), str(meta.get("tokenizer.ggml.pre")))
    _add_ends(inner, meta, roles, model == "llama" or pre == "llama-bpe")  # so does llama.cpp, unless told
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, add_prefix_space=False, **roles
    )
    if isinstance(template := meta.get("tokenizer.chat_template"), str):
        fast.chat_template = template
    return fast


def must_load_alike(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """
    Raises:
        LoraError: what transformers loads from a folder is not the tokenizer that was saved there: by a model's kind
            it takes a class of its own, which may cut text in another way.
    """
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in PROOF:
        if loaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise LoraError(
                f"its tokenizer is none of its kind: transformers ({type(loaded).__name__}) reads {text!r} otherwise"
            )


def _id(meta: Json, key: str, n: int) -> int | None:
    found = meta.get(key)
    if found is None:
        return None
    if not isinstance(found, int) or not 0 <= found < n:
        raise LoraError(f"its {key} is {str(found)[:40]}, and it has {n} tokens")
    return found


def ends_in(meta: Json) -> list[int]:
    """The ids that a file says its texts and turns end at."""
    tokens = meta.get("tokenizer.ggml.tokens")
    n = len(tokens) if isinstance(tokens, list) else 0
    keys = (f"tokenizer.ggml.{key}_token_id" for key in ("eos", "eot", "eom"))
    return list(dict.fromkeys(i for key in keys if (i := _id(meta, key, n)) is not None))


def _byte_level(meta: Json, tokens: list[str]) -> Tokenizer:
    pre = meta.get("tokenizer.ggml.pre")
    name = SAME_CUT.get(str(pre), str(pre))
    if name not in CUTS:
        known = ", ".join(sorted({*CUTS, *SAME_CUT}))
        raise LoraError(
            f"its tokenizer cuts text in the way {str(pre)[:40]!r}, which is not known here ({known} are)"
        )
    merges = meta.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.count(" ") == 1 for m in merges):
        raise LoraError("its tokenizer has no merges")
    vocabulary = {t: i for i, t in enumerate(tokens)}
    pairs = [tuple(m.split(" ")) for m in merges]
    return _with_cut(_bpe(vocabulary, pairs, ignore_merges=CUTS[name][3]), name)


def _bpe(vocabulary: dict[str, int], merges: list[Any], **how: Any) -> BPE:
    try:
        return BPE(vocab=vocabulary, merges=merges, **how)
    except Exception as error:  # of the tokenizers library: its one kind
        raise LoraError(f"its merges are not of its vocabulary: {error}") from error


def _with_cut(model: BPE, name: str) -> Tokenizer:
    how, pattern, normalised, _ = CUTS[name]
    inner = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how != "pattern")
    first: list[Any] = []
    if how == "digits":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif pattern:
        first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level
    if normalised:
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    return inner


def _respelled(tokens: list[str], kind: str) -> list[str]:
    """Gemma's files write several spaces as such, its vocabulary as pieces."""
    if not kind.startswith("gemma"):
        return tokens
    return ["▁" * len(t) if " " in t and not t.strip() else t for t in tokens]


def _sentencepiece(meta: Json, tokens: list[str], types: list[int], kind: str) -> Tokenizer:
    """A vocabulary of SentencePiece: pieces with scores, of which the best pair is merged first. Merges in
    their order come to the same."""
    gemma = kind.startswith("gemma")
    scores = meta.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(s, float) for s in scores)
    ):
        raise LoraError("its tokenizer has no scores")
    best = [-float(i) for i in range(len(tokens))] if gemma else [float(s) for s in scores]
    ids = {t: i for i, t in enumerate(tokens)}
    plain = {t for t, type_ in zip(tokens, types, strict=True) if type_ in (NORMAL, USER, UNUSED)}
    merges = []
    for i, token in enumerate(tokens):
        if types[i] in (NORMAL, USER) and len(token) <= 64:
            halves = ((token[:k], token[k:]) for k in range(1, len(token)))
            merges += [(-best[i], i, ids[a], ids[b], a, b) for a, b in halves if a in plain and b in plain]
    unknown = next((t for t, type_ in zip(tokens, types, strict=True) if type_ == UNKNOWN), None)
    model = _bpe(
        ids,
        [(a, b) for *_, a, b in sorted(merges)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in types,
    )
    inner = Tokenizer(model)
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", not gemma))
    inner.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    tail = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return inner


def _add_ends(inner: Tokenizer, meta: Json, roles: dict[str, str], begun: bool) -> None:
    """What a tokenizer puts around every text."""
    parts: dict[str, bool] = {}
    for role, always in (("bos", begun), ("eos", False)):
        parts[role] = meta.get(f"tokenizer.ggml.add_{role}_token", always)
        if not isinstance(parts[role], bool):
            raise LoraError(f"its tokenizer.ggml.add_{role}_token is neither true nor false")
        if parts[role] and f"{role}_token" not in roles:
            raise LoraError(f"it is to add a {role} token to every text, and names none")
    if not any(parts.values()):
        return
    before = [roles["bos_token"]] if parts["bos"] else []
    after = [roles["eos_token"]] if parts["eos"] else []
    inner.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=[(t, inner.token_to_id(t)) for t in dict.fromkeys([*before, *after])],
    )


def settings_of_tokenizer(tokenizer: PreTrainedTokenizerBase, n: int, close: int | None) -> Json:
    """The other way: what a file says of a tokenizer of byte-level BPE.

    Args:
        n: rows of the embedding; tokens that the tokenizer lacks are filled up as unused.
        close: the token that ends a turn, where it is not the end of a text.

    Raises:
        LoraError: it is of another kind, or cuts text in a way that is not known here.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    name = _cut_of(whole)
    if name is None:
        raise LoraError(
            f"the tokenizer of {tokenizer.name_or_path!r} cuts text in a way that has no name here "
            f"({', '.join(CUTS)} have): write whole weights (--merge FOLDER), and take llama.cpp's converter"
        )
    for added in tokenizer.added_tokens_decoder.values():
        if added.lstrip or added.rstrip or added.single_word:
            raise LoraError(
                f"the token {added.content!r} takes white space beside it, which no GGUF file says"
            )
    tokens, types = [f"[PAD{i}]" for i in range(n)], [UNUSED] * n
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        tokens[i], types[i] = added.content, CONTROL if added.special else USER
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        "eot": close if close != tokenizer.eos_token_id else None,
    }
    plain = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    around = list(tokenizer("x")["input_ids"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(m) for m in whole["model"]["merges"]],
        **{f"tokenizer.ggml.{k}_token_id": int(i) for k, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": around[:1] == [tokenizer.bos_token_id]
        and around[: len(plain)] != plain,
        "tokenizer.ggml.add_eos_token": around[-1:] == [tokenizer.eos_token_id],
        "tokenizer.ggml.add_space_prefix": False,
        **({"tokenizer.chat_template": t} if isinstance(t := tokenizer.chat_template, str) else {}),
    }


def _cut_of(whole: Json) -> str | None:
    """The name of how a tokenizer of the library cuts text."""
    model = whole["model"]
    if model["type"] != "BPE" or whole["decoder"] is None or whole["decoder"]["type"] != "ByteLevel":
        return None
    if any(model.get(k) for k in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    for name in CUTS:
        made = json.loads(_with_cut(BPE(), name).to_str())
        alike = all(_essence(made[k]) == _essence(whole[k]) for k in ("normalizer", "pre_tokenizer"))
        if alike and bool(model.get("ignore_merges")) == CUTS[name][3]:
            return name
    return None


def _essence(part: Any) -> Any:
    """A part of a tokenizer without what changes no ids, and lists of one as their one."""
    if isinstance(part, dict):
        inner = part.get("pretokenizers") or part.get("normalizers")
        if inner and len(inner) == 1:
            return _essence(inner[0])
        return {k: _essence(v) for k, v in part.items() if k not in ("trim_offsets",)}
    return [_essence(x) for x in part] if isinstance(part, list) else part
