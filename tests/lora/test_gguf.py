"""GGUF files: what is read is what llama.cpp computes, what is written it reads, and what is not understood is
refused by its name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from seal.lora.adapter import Adapter, init_adapter, target_modules
from seal.lora.gguf import kinds
from seal.lora.gguf.read import convert
from seal.lora.gguf.tokens import CUTS, _with_cut
from seal.lora.gguf.write import write_adapter, write_model
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import LoraError, Recipe
from tests.llamacpp import LlamaCpp

TEXT = (
    "The keeper of the light counts 12 ships, 345 gulls and 6789 waves. It's late; they've gone, haven't they?\n"
    "def add(a, b):\n    return a  +  b  # 3.14\n\n\tRésumé — naïve café, 2 × 3 ≤ 7. Größe, 日本語の文, кошка.\n"
)
TEXTS = (
    "return  2",
    "a  b   12  3.14\n\n\n 7",
    "Zoë's café — 1995–2001, don't CAN'T I'LL",
    "日本語 テスト 123",
    "def f(x):\n    return x**2  # 22\n\t\tpass",
    "🎉🎊 emoji1 2",
    "  lead 1",
    "trail 1  ",
    "\r\n\r\nx\r\n 5",
    "٣٤٥ ½ ² x²",
    "<|im_start|>user\nhi 5<|im_end|>\n",
    "a\u00a0b \u00a05",
    "x" * 40 + " " * 20 + "9",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
ROPE = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "llama3": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **kinds.LLAMA3},
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "rope_parameters": ROPE["default"]},
    "llama, untied": {"tie_word_embeddings": False, "rope_parameters": ROPE["linear"]},
    "qwen2, yarn": {"tie_word_embeddings": True, "rope_parameters": ROPE["yarn"]},
    "llama, 3.1": {"tie_word_embeddings": False, "rope_parameters": ROPE["llama3"]},
    "qwen2": {"tie_word_embeddings": True, "rope_parameters": ROPE["default"]},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32, "rope_parameters": ROPE["default"]},
    "gemma": {"tie_word_embeddings": True, "num_key_value_heads": 1, "rope_parameters": ROPE["default"]},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 16, "rope_parameters": ROPE["default"]},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "num_hidden_layers": 6,
        "rope_parameters": {
            "full_attention": ROPE["linear"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


def tokenizer(cut: str = "smollm") -> PreTrainedTokenizerFast:
    """A small byte-level vocabulary, learnt from :data:`TEXT`."""
    core = _with_cut(models.BPE(ignore_merges=CUTS[cut][3]), cut)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    roles = {
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
        "pad_token": SPECIAL[2],
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **roles)
    fast.chat_template = TEMPLATE
    return fast


def tiny(name: str, cut: str = "", **changes: Any) -> Model:
    words = tokenizer(cut or ("qwen2" if name.startswith("qwen") else "smollm"))
    torch.manual_seed(0)
    settings = {
        **SMALL,
        "vocab_size": len(words),
        "eos_token_id": 2,
        "bos_token_id": 1,
        **SHAPES[name],
        **changes,
    }
    config = AutoConfig.for_model(name.split(",", maxsplit=1)[0], **settings)
    weights = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases that are not what they begin as
        for key, p in weights.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * (0.1 if "norm" in key else 0.3))
    return Model(weights, words, name)


def adapter_of(model: Model, rank: int = 4) -> Adapter:
    recipe = Recipe(rank=rank, alpha=6, targets="all-linear")
    fresh = init_adapter(target_modules(model.model, "all-linear"), recipe, 0)
    noise = torch.Generator().manual_seed(1)
    moved = {n: (a, torch.randn(b.shape, generator=noise) * 0.3) for n, (a, b) in fresh.weights.items()}
    return Adapter(rank, 6.0, moved)


def next_logs(model: Model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.runner(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


def shows(model: Model, token: int) -> bool:
    text = model.tokenizer.decode([token], skip_special_tokens=True)
    return bool(text) and "\ufffd" not in text


def must_agree(model: Model, file: Path, lora: Path | None = None) -> None:
    """llama.cpp gives the same likelihoods, but for its tables of exponentials and the like."""
    ids = model.tokenizer(TEXT)["input_ids"][:60]
    while not shows(model, int(next_logs(model, ids).argmax())):
        ids = ids[:-1]  # of half a character, or of what it does not print, it gives no likelihood
    theirs, mine = LlamaCpp(file, lora, 256).likeliest(ids, 10), next_logs(model, ids)
    for token, log in theirs.items():
        assert log == pytest.approx(float(mine[token]), abs=1e-2)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_written_is_what_llama_cpp_computes_and_what_is_read_again(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    write_model(model, tmp_path / "m.gguf")
    must_agree(model, tmp_path / "m.gguf")
    write_adapter(adapter_of(model), model, tmp_path / "a.gguf")
    must_agree(model.plus(adapter_of(model)), tmp_path / "m.gguf", tmp_path / "a.gguf")
    (tmp_path / "again").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "again")
    again = load_model(str(tmp_path / "again"))
    for key, p in model.model.named_parameters():
        assert torch.allclose(again.model.get_parameter(key), p, atol=1e-6), key
    ids = model.tokenizer(TEXT)["input_ids"]
    assert again.tokenizer(TEXT)["input_ids"] == ids
    assert torch.allclose(next_logs(again, ids), next_logs(model, ids), atol=1e-4)
    assert again.conventions.ends == model.conventions.ends
    assert again.chat == model.chat
    assert again.conventions.control == model.conventions.control
    assert again.tokenizer.all_special_tokens == model.tokenizer.all_special_tokens


@pytest.mark.parametrize("cut", CUTS)
def test_a_tokenizer_cuts_as_llama_cpp_does(cut: str, tmp_path: Path) -> None:
    model = tiny("llama", cut)
    write_model(model, tmp_path / "m.gguf")
    (tmp_path / "again").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "again")
    read = load_model(str(tmp_path / "again")).tokenizer
    theirs = LlamaCpp(tmp_path / "m.gguf", context=64)
    for text in TEXTS:
        ids = read(text, add_special_tokens=False)["input_ids"]
        assert ids == model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs.tokens(text), text
        assert read.decode(ids) == text


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantised_weights_are_read_exactly(kind: str, tmp_path: Path) -> None:
    model = tiny("llama")
    write_model(model, tmp_path / "m.gguf")
    type_ = gguf.GGMLQuantizationType[kind]
    quantise(tmp_path / "m.gguf", tmp_path / "q.gguf", type_)
    (tmp_path / "read").mkdir()
    convert(tmp_path / "q.gguf", tmp_path / "read")
    mine = load_model(str(tmp_path / "read"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="q.gguf", dtype=torch.float32)
    for key, p in theirs.named_parameters():
        assert torch.equal(mine.model.get_parameter(key), p), key
    assert not torch.equal(mine.model.get_parameter(key), model.model.get_parameter(key)) or p.ndim == 1


def quantise(source: Path, to: Path, kind: Any) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(to, "llama")
    keep_settings(reader, writer)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if data.ndim > 1:
            writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    finish(writer)


def keep_settings(reader: Any, writer: Any, but: Any = ()) -> None:
    """All settings of a file but some, into another."""
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in but:
            of = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], of)


def finish(writer: Any) -> None:
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_model(tiny("llama"), path)
    return path


def changed(source: Path, to: Path, **settings: Any) -> Path:
    """The same file with some settings otherwise; ``None``: without it."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(to, settings.pop("architecture", "llama"))
    tensors = settings.pop("tensors", {})
    keep_settings(reader, writer, settings)
    for key, value in settings.items():
        if value is not None:
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](
                    key, value
                )
    there = {t.name: np.array(t.data) for t in reader.tensors} | tensors
    for name, data in there.items():
        if data is not None:
            writer.add_tensor(name, data)
    finish(writer)
    return to


NOT_UNDERSTOOD: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"architecture": "mamba"}, "of the kind 'mamba'"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "a setting": ({"llama.attention.sinks": 4}, "llama.attention.sinks"),
    "positions": ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
    "a number that is none": ({"llama.rope.freq_base": float("nan")}, "freq_base"),
    "no width": ({"llama.attention.head_count": 4000}, "odd.gguf"),
    "a window that is none": ({"llama.attention.sliding_window": "wide"}, "sliding_window"),
    "an empty token": ({"tokenizer.ggml.tokens": ["", *(f"t{i}" for i in range(383))]}, "empty"),
    "tokens that are none": ({"tokenizer.ggml.tokens": 5}, "has 0 tokens"),
    "an end that is a word": ({"tokenizer.ggml.add_bos_token": "false"}, "neither true nor false"),
    "a weight twice": ({"tensors": {"blk.00.attn_q.weight": np.ones((64, 64), np.float32)}}, "blk.00"),
    "a type": ({"tensors": {"output_norm.weight": np.ones(64, np.float64)}}, "odd.gguf"),
    "half a rotation": ({"llama.rope.dimension_count": 8}, "size of a head"),
    "no layers": ({"llama.block_count": None}, "llama.block_count"),
    "too many layers": ({"llama.block_count": 100_000}, "llama.block_count"),
    "a layer less": ({"llama.block_count": 1}, "weights that such a model has not"),
    "a layer more": ({"llama.block_count": 3}, "lacks 9 weights"),
    "another width": ({"llama.feed_forward_length": 128}, "of shape"),
    "a cut": ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
    "a tokenizer": ({"tokenizer.ggml.model": "t5"}, "'t5'"),
    "no tokenizer": ({"tokenizer.ggml.tokens": None, "tokenizer.ggml.eos_token_id": None}, "no tokenizer"),
    "fewer tokens": ({"tokenizer.ggml.tokens": ["a"] * 300}, "types of another number"),
    "no merges": ({"tokenizer.ggml.merges": None}, "no merges"),
    "tokens twice": ({"tokenizer.ggml.tokens": ["a"] * len(tokenizer())}, "merges are not of its vocabulary"),
    "an end that is none": ({"tokenizer.ggml.eos_token_id": 4000}, "eos_token_id is 4000"),
    "one of several": ({"split.count": 3}, "one of several parts"),
    "an adapter": ({"general.type": "adapter"}, "no model but 'adapter'"),
    "a tensor": ({"tensors": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, "blk.0.attn_sinks.weight"),
    "a bias": ({"tensors": {"blk.1.attn_q.bias": np.ones(64, np.float32)}}, "has not"),
    "not a number": ({"tensors": {"output_norm.weight": np.full(64, np.nan, np.float32)}}, "not finite"),
    "frequencies": ({"tensors": {"rope_freqs.weight": np.full(8, 1.5, np.float32)}}, "rope_freqs"),
    "no embedding": ({"tensors": {"token_embd.weight": None}}, "token_embd"),
}


@pytest.mark.parametrize("what", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused_by_its_name(what: str, file: Path, tmp_path: Path) -> None:
    settings, word = NOT_UNDERSTOOD[what]
    path = changed(file, tmp_path / "odd.gguf", **settings)
    (tmp_path / "out").mkdir()
    with pytest.raises(LoraError) as told:
        convert(path, tmp_path / "out")
    assert word in str(told.value) and str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "damage", ["cut off", "cut short", "empty", "text", "counts", "other order", "rubbish"]
)
def test_a_damaged_file_is_one_sentence(damage: str, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    counts = whole[:8] + struct.pack("<QQ", 1 << 60, 1 << 60) + whole[24:]
    rubbish = (
        whole[:24] + bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)) + whole[4024:]
    )
    made = {
        "cut off": whole[: len(whole) // 2],
        "cut short": whole[:200],
        "empty": b"",
        "text": b"A story, and no model.",
        "counts": counts,
        "other order": b"GGUF" + whole[4:8][::-1] + whole[8:],
        "rubbish": rubbish,
    }
    path = tmp_path / "damaged.gguf"
    path.write_bytes(made[damage])
    (tmp_path / "out").mkdir()
    with pytest.raises(LoraError, match=r"damaged\.gguf") as told:
        convert(path, tmp_path / "out")
    assert "\n" not in str(told.value)


def test_what_a_file_cannot_say_is_not_written(tmp_path: Path) -> None:
    odd = tiny("llama", hidden_act="gelu")
    with pytest.raises(LoraError, match="hidden_act"):
        write_model(odd, tmp_path / "m.gguf")
    large = tiny("llama")
    with torch.no_grad():
        large.model.lm_head.weight[3, 3] = 1e5
    with pytest.raises(LoraError, match="float16"):
        write_model(large, tmp_path / "m.gguf", "float16")
    other = tiny("llama")
    other.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(LoraError, match="cuts text"):
        write_model(other, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_transformers_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    write_model(tiny("qwen2", "smollm"), tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(LoraError, match="Qwen2Tokenizer"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    "more",
    [
        {"attention_factor": 2.0},
        {"beta_slow": 4.0},
        {"truncate": False},
        {"mscale": 0.7, "mscale_all_dim": 0.7},
    ],
)
def test_scalings_that_a_file_would_lose_are_not_written(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="positions"):
        write_model(tiny("qwen2, yarn", rope_parameters={**ROPE["yarn"], **more}), tmp_path / "m.gguf")


def test_windows_and_activations_that_a_file_would_lose_are_not_written(tmp_path: Path) -> None:
    SHAPES["mistral"] = {"rope_parameters": ROPE["default"]}
    try:
        with pytest.raises(LoraError, match="window"):
            write_model(tiny("mistral", sliding_window=16), tmp_path / "m.gguf")
        whole = tiny("mistral", sliding_window=None)
        write_model(whole, tmp_path / "m.gguf")
        must_agree(whole, tmp_path / "m.gguf")
    finally:
        del SHAPES["mistral"]
    with pytest.raises(LoraError, match="hidden_act"):
        write_model(tiny("gemma", hidden_act="relu"), tmp_path / "g.gguf")


@pytest.mark.parametrize("cut", CUTS)
def test_a_text_begins_as_llama_cpp_begins_it(cut: str, tmp_path: Path) -> None:
    write_model(tiny("llama", cut), tmp_path / "m.gguf")
    path = changed(tmp_path / "m.gguf", tmp_path / "bare.gguf", **{"tokenizer.ggml.add_bos_token": None})
    (tmp_path / "read").mkdir()
    convert(path, tmp_path / "read")
    mine = load_model(str(tmp_path / "read")).tokenizer("a ship")["input_ids"]
    assert mine == LlamaCpp(path, context=64).tokens("a ship", around=True)


def test_an_adapter_of_a_shared_head_is_not_merged(tmp_path: Path) -> None:
    model = tiny("llama")
    head = Adapter(2, 2.0, {"lm_head": (torch.randn(2, 64), torch.randn(len(model.tokenizer), 2))})
    for write in (
        lambda: write_adapter(head, model, tmp_path / "a.gguf"),
        lambda: write_model(model.plus(head), tmp_path / "m.gguf"),
        lambda: model.plus(head).save(tmp_path / "folder"),
    ):
        with pytest.raises(LoraError, match="the embedding's too"):
            write()
    apart = tiny("llama, untied")
    write_model(apart.plus(head), tmp_path / "m.gguf")
    must_agree(apart.plus(head), tmp_path / "m.gguf")


def test_half_precision_is_near_and_says_so(tmp_path: Path) -> None:
    model = tiny("qwen3")
    write_model(model, tmp_path / "m.gguf", "float16")
    ids = model.tokenizer(TEXT)["input_ids"][:60]
    theirs, mine = LlamaCpp(tmp_path / "m.gguf", None, 256).likeliest(ids, 5), next_logs(model, ids)
    for token, log in theirs.items():
        assert log == pytest.approx(float(mine[token]), abs=0.05)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.tensor_type.name for t in reader.tensors if t.name.endswith("attn_q.weight")} == {"F16"}
    assert reader.fields["general.file_type"].contents() == 1


def test_weights_go_into_several_files_where_they_are_large(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seal.lora.gguf.read.SHARD", 40_000)
    (tmp_path / "out").mkdir()
    convert(file, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert load_model(str(tmp_path / "out")).model.num_parameters() > 0


def sentencepiece(scores_by_order: bool) -> dict[str, Any]:
    """A vocabulary of pieces with scores, bytes included, as a GGUF file has it."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        [TEXT] * 4, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    )
    merged = sorted(core.get_vocab().items(), key=lambda x: x[1])
    pieces = [t for t, _ in merged if t != "<unk>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    single = sum(len(p) == 1 for p in pieces)
    scores = [0.0] * 259 + [float(-i) if len(p) > 1 else float(-1e3 - i) for i, p in enumerate(pieces)]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    assert single < len(pieces)
    return {"tokens": tokens, "scores": scores, "types": types}


def test_pieces_with_scores_are_read_as_llama_cpp_does(tmp_path: Path) -> None:
    made = sentencepiece(True)
    words = tokenizer()
    base = tiny("llama", vocab_size=len(made["tokens"]))
    del words
    write_model(base, tmp_path / "m.gguf")
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": made["tokens"],
        "tokenizer.ggml.scores": made["scores"],
        "tokenizer.ggml.token_type": made["types"],
        "tokenizer.ggml.merges": None,
        "tokenizer.chat_template": None,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_space_prefix": None,
        "tokenizer.ggml.add_bos_token": None,
    }
    path = changed(tmp_path / "m.gguf", tmp_path / "sp.gguf", **settings)
    (tmp_path / "out").mkdir()
    convert(path, tmp_path / "out")
    read = load_model(str(tmp_path / "out")).tokenizer
    theirs = LlamaCpp(path, context=64)
    odd = "keepers lightly counted, waving gullible havens; shipshape theyre latest wavelets hightlight thenotes"
    for text in (*TEXTS, TEXT, odd, TEXT.replace("e", "ee"), TEXT.replace(" ", "")):
        if "<|" in text:
            continue
        ids = read(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs.tokens(text), text
        assert read.decode(ids, skip_special_tokens=True) == text
    assert read("a")["input_ids"][0] == 1  # begun as such models are, where the file does not say otherwise


def test_a_tokenizer_of_pieces_is_written_again_to_the_letter(tmp_path: Path) -> None:
    """Also Gemma's tokens of several spaces, which are pieces only where they are read."""
    made = sentencepiece(True)
    made["tokens"][-1] = "     "
    write_model(tiny("gemma", vocab_size=len(made["tokens"])), tmp_path / "m.gguf")
    settings = {
        "architecture": "gemma",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": made["tokens"],
        "tokenizer.ggml.scores": made["scores"],
        "tokenizer.ggml.token_type": made["types"],
        "tokenizer.ggml.merges": None,
        "tokenizer.chat_template": None,
        "tokenizer.ggml.eos_token_id": 2,
    }
    path = changed(tmp_path / "m.gguf", tmp_path / "sp.gguf", **settings)
    (tmp_path / "out").mkdir()
    convert(path, tmp_path / "out")
    again = load_model(str(tmp_path / "out"))
    assert "▁" * 5 in again.tokenizer.get_vocab()
    write_model(again, tmp_path / "again.gguf")
    first, second = (gguf.GGUFReader(p).fields for p in (path, tmp_path / "again.gguf"))
    for key in first:
        if key.startswith("tokenizer."):
            assert second[key].contents() == first[key].contents(), key
            assert second[key].types == first[key].types, key
