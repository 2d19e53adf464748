"""Models that cannot stand in one sequence, and what is refused when it is loaded. Architecture by architecture:
``test_used_architectures.py``, and the record that ``python -m tests.lora.architectures`` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from seal.lora.adapter import target_modules
from seal.lora.capacity import Room
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, LoraError, ModelSpec, Prompt, Query, Recipe, Sampling
from seal.lora.sample import ask
from seal.lora.score import log_likelihood
from seal.lora.train import Job, in_passes, train_adapters
from tests import tiny
from tests.lora import architectures
from tests.lora.architectures import USED

RECORD = Path(__file__).parents[2] / "docs/results/architectures.json"


def test_the_record_has_no_architecture_that_is_silently_wrong() -> None:
    record = json.loads(RECORD.read_text())
    assert record["wrong"] == 0 and not [r for r in record["rows"] if r["verdict"] == "wrong"]
    assert all(r["why"] for r in record["rows"] if r["verdict"] in ("refused", "not made"))
    right = {r["architecture"] for r in record["rows"] if r["verdict"] == "right"}
    assert set(USED) <= right and len(right) > 150


SIZES = {
    "vocab_size": 98, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": None,
    "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def encoder_decoder() -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=98, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
            pad_token_id=1, bos_token_id=2, eos_token_id=0, decoder_start_token_id=0, forced_eos_token_id=None,
        )
    )  # fmt: skip


def text_to_text() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=98, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    )


def encoder() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertLMHeadModel(
        BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64, initializer_range=0.3)
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (encoder_decoder, "an encoder with a decoder"),
        (text_to_text, "an encoder with a decoder"),
        (encoder, "no causal language model"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_in_a_sentence(
    made: object, words: str, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match=words) as told:
        load_model(saved(made(), tmp_path))  # type: ignore[operator]
    assert "\n" not in str(told.value)


def test_a_file_that_lacks_weights_is_not_filled_up_with_random_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = tiny.save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(LoraError, match=f"lack 1 weights.*{lost}"):
        load_model(name)


def alibi() -> Model:
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=98,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return Model(BloomForCausalLM(config), tiny.tokenizer(), "tiny")


def test_what_cannot_stand_in_one_sequence_stands_side_by_side() -> None:
    policy = alibi()
    assert not policy.nature.packs
    rows = [architectures.row_of(n, n, 98) for n in (5, 17, 9)]
    lines = policy.pack([rows[:2], rows[2:]])
    assert lines.beside and lines.ids.shape == (4, 32) and lines.n_real == 31
    assert policy.tokens_of([rows[:2], rows[2:]]) == 2 * 2 * 17
    with pytest.raises(ValueError, match="one sequence"), policy.losses(architectures_pack(rows)):
        pass


def architectures_pack(rows: object) -> object:
    from seal.lora.packing import pack

    return pack([rows], "cpu")  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen3"])
def test_16_bit_weights_pack_where_fp32_ones_do(name: str, tmp_path: Path) -> None:
    """They round too much to be told from each row alone; what stands before a row must not matter."""
    with architectures.our_tokenizer():
        architectures.make(name, tmp_path)
        for dtype in ("float32", "bfloat16"):
            spec = ModelSpec(name=str(tmp_path), dtype=dtype, threads=None)  # type: ignore[arg-type]
            assert load_model(spec).nature.packs, dtype
    assert load_model(ModelSpec(name="atlas", dtype="bfloat16", threads=None)).nature.packs


@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2", "gpt_oss", "bloom", "falcon_h1"])
def test_16_bit_weights_do_not_pack_where_fp32_ones_do_not(name: str, tmp_path: Path) -> None:
    with architectures.our_tokenizer():
        architectures.make(name, tmp_path)
        assert not load_model(ModelSpec(name=str(tmp_path), dtype="bfloat16", threads=None)).nature.packs


def test_side_by_side_a_pass_holds_what_the_room_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rows take filled up is counted, of several jobs together and of one; the outcome is the same."""
    policy, widths = alibi(), []
    whole = Model.pack
    monkeypatch.setattr(Model, "pack", lambda self, b: widths.append(self.tokens_of(b)) or whole(self, b))  # type: ignore[func-returns-value]
    texts = ["short", "a row that is a good deal longer than that", "and one more"]
    recipe = Recipe(rank=2, targets=("query_key_value",), learning_rate=1e-2, steps=3, batch_size=3)
    jobs = [Job(tuple(Example(t + str(k)) for t in texts), recipe, k) for k in range(3)]
    roomy = train_adapters(policy, jobs, Room(3, 4096))
    widths.clear()
    tight = train_adapters(policy, jobs, Room(3, 100))
    assert max(widths) <= 100
    for a, b in zip(roomy, tight, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
    assert len(in_passes(policy_rows(policy, texts), 100, lambda rows: policy.tokens_of([rows]))) == 2


def policy_rows(policy: Model, texts: list[str]) -> list[object]:
    from seal.lora.tokens import encode_example

    return [encode_example(Example(t), policy.conventions) for t in texts]  # type: ignore[return-value]


def test_dropout_stays_off_where_activations_are_recomputed(tmp_path: Path) -> None:
    """transformers' own switch asks for the training mode, in which OPT and its like drop out."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = OPTConfig(
        vocab_size=98, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, dropout=0.5, bos_token_id=2, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    policy = Model(OPTForCausalLM(shape), tiny.tokenizer(), "tiny")
    job = Job((Example("to be learnt"),), Recipe(rank=2, steps=2, learning_rate=1e-2), 0)
    kept, again = (train_adapters(policy, [job], Room(1, 100, r))[0] for r in (False, True))
    assert kept.loss == pytest.approx(again.loss, abs=1e-6)


def test_rows_beyond_a_learned_table_of_positions_are_one_sentence() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=98, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0
    )
    policy = Model(GPT2LMHeadModel(config), tiny.tokenizer(), "tiny")
    assert policy.context == 64
    with pytest.raises(LoraError, match="64 positions"):
        policy.pack([[architectures.row_of(65, 0, 98)]])
    whole = log_likelihood(policy, [None], [[Query(Prompt("x" * 40), "y" * 20)]])
    assert whole[0][0] < 0
    with pytest.raises(LoraError, match="context holds 64"):
        log_likelihood(policy, [None], [[Query(Prompt("x" * 60), "y" * 20)]])
    rows = [architectures.row_of(n, n, 98) for n in (64, 60, 63)]
    with policy.losses(policy.pack([rows])) as (_, each):
        assert len(each) == 63 + 59 + 62, "what fills up is beyond no table"


def test_only_the_language_model_is_adapted_and_no_router() -> None:
    with_vision = architectures.make_config(*architectures.TABLE["gemma3"][:2])
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(with_vision)
    names = target_modules(model, "all-linear")
    assert names and not [n for n in names if "vision" in n or "projector" in n]
    router = AutoModelForCausalLM.from_config(architectures.make_config("phimoe"))
    assert {n.rsplit(".", 1)[-1] for n in target_modules(router, "all-linear")} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    shared = AutoModelForCausalLM.from_config(
        architectures.make_config(*architectures.TABLE["deepseek_v3"][:2])
    )
    assert not [n for n in target_modules(shared, "all-linear") if n.endswith("gate_proj")]
    with pytest.raises(LoraError, match="gate_proj"):
        target_modules(shared, ("gate_proj",))


def test_a_layer_that_changes_its_input_in_place_can_be_trained() -> None:
    """Clipped queries, as OLMo has: what a layer gives is no view of something else."""
    config = LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: out.clamp_(-0.1, 0.1))
    policy = Model(model, tiny.tokenizer(), "tiny")
    (outcome,) = train_adapters(policy, [Job((Example("some text"),), Recipe(rank=2, steps=2), 0)])
    assert outcome.adapter is not None
    assert ask(policy, [outcome.adapter], [[Prompt("a")]], Sampling(4))


def test_a_model_that_reads_no_padded_prompts_reads_one_length_at_a_time(tmp_path: Path) -> None:
    """Llama 4 counts positions otherwise where a prompt is filled up; a model that keeps its state in itself
    loses track of rows that leave."""
    with architectures.our_tokenizer():
        architectures.make("llama4_text", tmp_path / "a")
        policy = load_model(ModelSpec(name=str(tmp_path / "a"), threads=None))
        architectures.make("recurrent_gemma", tmp_path / "b")
        with pytest.raises(LoraError, match="go on from a cache"):
            load_model(ModelSpec(name=str(tmp_path / "b"), threads=None))
    assert not policy.nature.pads
    prompts = [Prompt(architectures.text_of(n, n)) for n in (3, 20, 11)]
    together = ask(policy, [None], [prompts], Sampling(12))[0]
    assert together == [ask(policy, [None], [[p]], Sampling(12))[0][0] for p in prompts]
