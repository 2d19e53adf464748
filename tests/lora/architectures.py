"""Every causal-LM architecture that transformers has, tiny and random, against transformers and PEFT.

    python -m tests.lora.architectures [NAME …] [--json docs/results/architectures.json]

For every row of :data:`TABLE` a tiny model is made and written to a folder, and loaded as a user would:

- loss: rows of three adapters (one of them none) side by side, some longer than any window, against each row
  alone through plain transformers, with the adapter by PEFT;
- train: three adapters side by side, one step and four, against PEFT and ``torch.optim.AdamW``, each alone;
- generate: greedy text of prompts of four lengths, with and without adapters, against ``generate`` of one;
- export: the logits that PEFT gives with the written adapter.

A row is *right* where all of it is, *refused* where loading says in a sentence why not, else *wrong*.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from seal.lora.adapter import Adapter, target_modules
from seal.lora.capacity import Room
from seal.lora.files import save_peft
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.records import Example, LoraError, ModelSpec, Prompt, Recipe, Sampling
from seal.lora.sample import ask
from seal.lora.slots import slots_of
from seal.lora.tokens import Row
from seal.lora.train import Job, train_adapters

END, PAD = 0, 1
RANK, ALPHA = 4, 8.0
NEW = 16
"""Tokens that are written."""

# ------------------------------------------------------------------------------------------------ the table

DROP = object()  # "leave this field at its default"
GENERIC = dict(
    vocab_size=256, hidden_size=32, d_model=32, n_embd=32, emb_dim=32, embedding_dim=32,
    intermediate_size=48, ffn_dim=48, n_inner=48, dff=48, d_inner=48, dim_ff=48, decoder_ffn_dim=48, encoder_ffn_dim=48,
    feed_forward_size=48, ffn_hidden_size=48,
    num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, decoder_layers=2, encoder_layers=2, num_decoder_layers=2,
    num_encoder_layers=2, num_blocks=2,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4,
    attention_heads=4, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
    num_key_value_heads=2, head_dim=8, rotary_dim=4,
    max_position_embeddings=64, n_positions=64, n_ctx=64, max_seq_len=64, max_target_positions=64, context_length=64,
    sliding_window=8, attention_chunk_size=8, window_size=8, attention_window_size=8, sliding_window_size=8, local_attention=8,
    bos_token_id=None, eos_token_id=0, pad_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None, sep_token_id=None,
    cls_token_id=None,
    initializer_range=0.2, init_std=0.2,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, moe_num_experts=4,
    moe_k=2, moe_topk=2, shared_expert_intermediate_size=16, shared_intermediate_size=16, moe_num_shared_experts=1, n_group=1,
    topk_group=1, n_shared_experts=1, first_k_dense_replace=1, expert_ffn_hidden_size=16, zero_expert_num=2, intermediate_size_mlp=48,
    kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, qk_head_dim=16,
    index_head_dim=16, index_n_heads=16, index_topk=8, o_groups=2, o_lora_rank=16,
    use_sliding_window=True, max_window_layers=1, is_decoder=True, is_encoder_decoder=False,
    mamba_d_state=16, mamba_n_heads=8, mamba_d_head=8, mamba_chunk_size=8, chunk_size=8, state_size=16, ssm_state_size=16,
    use_mamba_kernels=False, mamba_num_heads=8, mamba_head_dim=8, mamba_d_ssm=64, n_groups=2,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_head_dim=8,
    linear_num_heads=4, embedding_size=32, input_embedding_size=32, output_embedding_size=32, word_embed_proj_dim=32,
    lru_width=32, dim_head=8, kv_channels=8,
    vocab_size_per_layer_input=256, hidden_size_per_layer_input=8, laurel_rank=8, num_kv_shared_layers=0,
)  # fmt: skip


def make_config(model_type, over=None):
    """A tiny config: GENERIC where the class has the field, the row's own settings over it."""
    cls = CONFIG_MAPPING[model_type]
    fields = {f.name for f in dataclasses.fields(cls)}
    kw = {k: v for k, v in GENERIC.items() if k in fields}
    for k, v in ((over() if callable(over) else over) or {}).items():
        if v is DROP:
            kw.pop(k, None)
        else:
            kw[k] = v
    return cls(**kw)


def sub(model_type, **over):
    """A nested tiny config, as a dict."""
    return make_config(model_type, over).to_dict()


def cut(n, *kinds):
    """n layers of alternating kinds."""
    return dict(num_hidden_layers=n, layer_types=[kinds[i % len(kinds)] for i in range(n)])


S, F, L, C = "sliding_attention", "full_attention", "linear_attention", "chunked_attention"
MLA = dict(num_key_value_heads=4)
VIS = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    image_size=8,
    patch_size=4,
)

MULTIPLIERS = dict(
    embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.2
)

OVER = {  # what a model type needs over GENERIC
    "afmoe": cut(4, S, F) | dict(num_dense_layers=1), "axk1": MLA, "axk2": MLA,
    "bailing_hybrid": cut(4, L, F) | MLA | dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"]),
    "bamba": cut(4, "linear_attention", F) | dict(layer_types=DROP, attn_layer_indices=[1, 3]),
    "beam": cut(4, S, F) | dict(mlp_layer_types=["dense", "dense", "sparse", "sparse"]),
    "codegen": {}, "cohere2": cut(4, S, F), "cohere2_moe": cut(4, S, F), "cohere_compass_text": cut(2, F) | dict(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}),
    "cwm": cut(4, F, S) | dict(bos_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "dbrx": dict(attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0), ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2)),
    "deepseek_v2": MLA | dict(num_hidden_layers=3), "deepseek_v3": MLA | dict(num_hidden_layers=3), "deepseek_v32": MLA, "glm_moe_dsa": MLA,
    "deepseek_v4": {}, "dots1": cut(4, F, S), "dots3_note_text": MLA, "exaone4": cut(4, S, F), "exaone_moe": cut(4, S, F),
    "flint": cut(4, F, S), "gemma2": cut(4, S, F), "gemma3_text": cut(4, S, F), "gemma3n_text": cut(4, S, F) | dict(num_kv_shared_layers=0, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0]),
    "gemma4_text": cut(4, S, F), "gemma4_unified_text": cut(4, S, F), "glm4_moe_lite": MLA,
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]), "gpt_oss": cut(4, S, F) | dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "granite": MULTIPLIERS, "granitemoe": MULTIPLIERS, "granitemoeshared": MULTIPLIERS, "granite_swa": cut(4, F, S) | MULTIPLIERS, "granitemoe_swa": cut(4, F, S) | MULTIPLIERS,
    "granitemoehybrid": cut(4, "linear_attention", F) | dict(position_embedding_type="rope") | MULTIPLIERS,
    "inkling2_text": cut(4, "hybrid_sliding", "hybrid"), "inkling_text": cut(4, "hybrid_sliding", "hybrid"),
    "jamba": dict(num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1), "kimi_linear": cut(4, L, F) | MLA | dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"]),
    "kolibri1": cut(4, S, F), "laguna": cut(4, F, S) | dict(num_attention_heads_per_layer=None, mlp_layer_types=["dense", "sparse", "dense", "sparse"]),
    "lfm2": cut(4, "conv", F), "lfm2_moe": cut(4, "conv", F) | dict(num_dense_layers=1), "lfm3": cut(4, "conv", F, S),
    "llama4_text": cut(4, C, F) | dict(no_rope_layers=[1, 0, 1, 0], floor_scale=8, attn_scale=0.1, interleave_moe_layer_step=2),
    "longcat_flash": MLA, "mamba2": dict(hidden_size=32, num_heads=8, head_dim=8), "mellum": cut(4, F, S), "mimo_v2_flash": cut(4, F, S) | dict(mlp_layer_types=["dense", "sparse", "dense", "sparse"]),
    "ministral": cut(4, S, F), "minimax": cut(4, L, F) | dict(block_size=8),
    "minimax_m3_vl_text": dict(num_hidden_layers=3, mlp_layer_types=["dense", "sparse", "sparse"]),
    "modernbert-decoder": cut(4, S, F) | dict(local_attention=16, bos_token_id=0, sep_token_id=0, cls_token_id=0),
    "nemotron_h": {}, "olmo3": cut(4, S, F), "olmo_hybrid": cut(4, L, F), "qwen2": cut(4, F, S), "qwen2_moe": cut(4, S, F), "qwen3": cut(4, F, S),
    "qwen3_5_text": cut(4, L, F), "qwen3_5_moe_text": cut(4, L, F), "qwen3_next": cut(4, L, F), "qwen4_exp_text": cut(4, L, "indexed_attention") | dict(indexer_n_heads=16, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=2),
    "recurrent_gemma": dict(num_hidden_layers=3, block_types=["recurrent", "recurrent", "attention"]),
    "reformer": dict(axial_pos_embds_dim=(8, 24), axial_pos_shape=(8, 8), attention_head_size=8, local_attn_chunk_length=8, lsh_attn_chunk_length=8, attn_layers=["local", "lsh"], num_buckets=2, hash_seed=0),
    "smollm3": cut(4, S, F) | dict(no_rope_layers=[1, 1, 1, 0]), "vaultgemma": cut(4, S, F),
    "xmod": dict(default_language="en_XX", languages=["en_XX"]), "youtu": MLA, "xlstm": dict(hidden_size=64, embedding_dim=64, num_heads=2, chunk_size=16, qk_dim_factor=1.0),
    "zamba": dict(num_hidden_layers=4, layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"], num_key_value_heads=4, n_mamba_heads=2),
    "zamba2": dict(num_hidden_layers=4, layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"], num_key_value_heads=4, n_mamba_heads=8, mamba_ngroups=1, adapter_rank=8),
    "zaya": cut(4, "hybrid_sliding", "hybrid") | dict(num_experts_per_tok=1, router_hidden_size=16),
    "phimoe": {}, "roc_bert": dict(pronunciation_vocab_size=20, shape_vocab_size=20, pronunciation_embed_dim=8, shape_embed_dim=8),
    "gemma3": lambda: dict(text_config=sub("gemma3_text", **cut(4, S, F)), vision_config=VIS, mm_tokens_per_image=4, image_token_index=250, boi_token_index=251, eoi_token_index=252),
    "gemma4": lambda: dict(text_config=sub("gemma4_text", **cut(4, S, F)), vision_config=None, audio_config=None, image_token_id=250, boi_token_id=251, eoi_token_id=252, audio_token_id=253, boa_token_id=254, eoa_token_index=255, video_token_id=249),
    "gemma4_unified": lambda: dict(text_config=sub("gemma4_unified_text", **cut(4, S, F)), image_token_id=250, boi_token_id=251, eoi_token_id=252, audio_token_id=253, boa_token_id=254, eoa_token_index=255, video_token_id=249),
    "fuyu": lambda: dict(text_config=sub("persimmon"), image_token_id=250, patch_size=4, image_size=8),
    "emu3": lambda: dict(text_config=sub("emu3_text_model", bos_token_id=0), vq_config=dict(embed_dim=8, codebook_size=16, latent_channels=8, base_channels=32, channel_multiplier=[1], num_res_blocks=1, attn_resolutions=[], hidden_size=8, num_attention_heads=1), vocabulary_map={"<image>": 200, **{f"<|visual token {i:06d}|>": 201 + i for i in range(16)}}),
    "mllama": lambda: dict(text_config=sub("mllama_text_model", bos_token_id=0, num_hidden_layers=4, cross_attention_layers=[2], rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_global_layers=1, attention_heads=4, image_size=8, patch_size=4, max_num_tiles=1, vision_output_dim=64, supported_aspect_ratios=[[1, 1]], intermediate_layers_indices=[0]), image_token_index=250),
    "llama4": lambda: dict(text_config=sub("llama4_text", **(cut(4, C, F) | dict(no_rope_layers=[1, 0, 1, 0], floor_scale=8, interleave_moe_layer_step=2))), vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32), image_token_index=250, boi_token_index=251, eoi_token_index=252),
    "qwen3_5": lambda: dict(text_config=sub("qwen3_5_text", **cut(4, L, F)), vision_config=dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32, patch_size=4, num_position_embeddings=16), image_token_id=250, video_token_id=251, vision_start_token_id=252, vision_end_token_id=253),
    "qwen3_5_moe": lambda: dict(text_config=sub("qwen3_5_moe_text", **cut(4, L, F)), vision_config=dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32, patch_size=4, num_position_embeddings=16), image_token_id=250, video_token_id=251, vision_start_token_id=252, vision_end_token_id=253),
    "qwen4_exp": lambda: dict(text_config=sub("qwen4_exp_text", **OVER["qwen4_exp_text"]), vision_config=dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32, patch_size=4, num_position_embeddings=16), image_token_id=250, video_token_id=251, vision_start_token_id=252, vision_end_token_id=253),
    "got_ocr2": lambda: dict(text_config=sub("qwen2", **cut(2, F)), vision_config=dict(hidden_size=32, output_channels=32, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4, mlp_dim=48, global_attn_indexes=[0]), image_token_index=250),
    "git": dict(vision_config=VIS),
    "phi4_multimodal": dict(vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4, crop_size=8, image_token_id=250), audio_config=dict(hidden_size=32, intermediate_size=48, num_blocks=1, num_attention_heads=4, audio_token_id=251, ext_pw_out_channel=32, nemo_conv_channels=32, nemo_final_size=32), num_key_value_heads=2, sliding_window=None, original_max_position_embeddings=64),
    "trocr": {}, "whisper": dict(max_source_positions=16, num_mel_bins=8, begin_suppress_tokens=None, suppress_tokens=None),
    "blt": dict(vocab_size=260, patcher_config=dict(vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, sliding_window=8),
                encoder_config=dict(vocab_size=260, hidden_size=32, hidden_size_global=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=48),
                decoder_config=dict(vocab_size=260, hidden_size=32, hidden_size_global=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=48),
                global_config=dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=48), encoder_hash_byte_group_vocab=64, encoder_hash_byte_group_size=[3]),
    "gemma4_assistant": lambda: dict(text_config=sub("gemma4_text", **cut(4, S, F), hidden_size_per_layer_input=0, vocab_size_per_layer_input=0, num_kv_shared_layers=4), backbone_hidden_size=32),
    "falcon_h1": dict(embedding_multiplier=2.0, lm_head_multiplier=0.5, key_multiplier=0.7, attention_out_multiplier=0.6, attention_in_multiplier=1.3, ssm_in_multiplier=0.8, ssm_out_multiplier=0.9), "minicpm3": MLA | dict(scale_emb=3, dim_model_base=16), "bloom": {}, "mpt": {}, "falcon": dict(num_kv_heads=2), "opt": {}, "xlnet": dict(attn_type="uni"), "xlm": dict(causal=True, is_encoder=True),
}  # fmt: skip

SKIP = {  # not built here, and why
    "dots3_note": "a multimodal wrapper whose vision tower is large by default; its text model is dots3_note_text",
    "moss_transcribe_diarize": "speech to text; its language model is qwen3",
    "musicgen": "codes of audio, not text", "musicgen_melody": "codes of audio, not text",
    "gemma3n": "its vision tower needs the package timm; its text model is gemma3n_text",
    "gemma4_assistant": "a draft head that reads another model's cache", "gemma4_unified_assistant": "a draft head that reads another model's cache",
    "blt": "plain transformers fails on a tiny BltConfig (no num_hidden_layers for its cache)",
    "emu3": "AutoModelForCausalLM reads whole checkpoints alone: see 'emu3: whole checkpoint'",
    "mllama": "AutoModelForCausalLM reads whole checkpoints alone: see 'mllama: whole checkpoint'",
}  # fmt: skip
ROPE = dict(rope_theta=10000.0)
VARIANTS = {  # name: (model type, settings over those of the type, options)
    "llama: vocab 251": ("llama", dict(vocab_size=251), dict(vocab=251)),
    "llama: tied, biases": ("llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True), {}),
    "llama: dropout 0.3": ("llama", dict(attention_dropout=0.3), {}),
    "llama: llama3 rope": ("llama", dict(rope_parameters=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, **ROPE)), {}),
    "llama: linear rope": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, **ROPE)), {}),
    "llama: yarn": ("llama", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, **ROPE)), {}),
    "llama: dynamic ntk": ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=4.0, **ROPE)), {}),
    "llama: dynamic ntk, original 16": ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=4.0, original_max_position_embeddings=16, **ROPE)), {}),
    "llama: longrope, original 16": ("llama", dict(rope_parameters=dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=16, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0], **ROPE)), {}),
    "phi3: longrope, original 16": ("phi3", dict(sliding_window=None, original_max_position_embeddings=16, rope_parameters=dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=16, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0], **ROPE)), {}),
    "phi3: no window": ("phi3", dict(sliding_window=None), {}),
    "mistral: no window": ("mistral", dict(sliding_window=None), {}),
    "qwen2: no window": ("qwen2", dict(use_sliding_window=False, num_hidden_layers=2, layer_types=None), {}),
    "gemma2: no caps": ("gemma2", dict(attn_logit_softcapping=None, final_logit_softcapping=None), {}),
    "gemma3_text: final cap": ("gemma3_text", dict(final_logit_softcapping=5.0), {}),
    "gemma3_text: bidirectional": ("gemma3_text", dict(use_bidirectional_attention=True), {}),
    "gemma3n_text: shared kv": ("gemma3n_text", dict(num_hidden_layers=6, layer_types=[S, F, S, F, S, F], num_kv_shared_layers=2, activation_sparsity_pattern=[0.5] + [0.0] * 5, intermediate_size=[48] * 6), {}),
    "gemma4_text: shared kv": ("gemma4_text", dict(num_hidden_layers=6, layer_types=[S, F, S, F, S, F], num_kv_shared_layers=2), {}),
    "gemma4_text: experts": ("gemma4_text", dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16), {}),
    "falcon: alibi": ("falcon", dict(alibi=True), {}),
    "falcon: new decoder": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2), {}),
    "falcon: biases, serial": ("falcon", dict(bias=True, parallel_attn=False, multi_query=False, num_kv_heads=4), {}),
    "mpt: learned positions": ("mpt", dict(attn_config=dict(alibi=False)), {}),
    "gpt_neox: serial": ("gpt_neox", dict(use_parallel_residual=False), {}),
    "gpt_bigcode: multi head": ("gpt_bigcode", dict(multi_query=False), {}),
    "stablelm: qk norm, parallel": ("stablelm", dict(qk_layernorm=True, use_parallel_residual=True, use_qkv_bias=True), {}),
    "opt: projected embeddings": ("opt", dict(word_embed_proj_dim=16), {}),
    "opt: norm after": ("opt", dict(do_layer_norm_before=False), {}),
    "cohere: logits scaled, qk norm": ("cohere", dict(logit_scale=0.25, use_qk_norm=True), {}),
    "deepseek_v2: no q lora": ("deepseek_v2", dict(q_lora_rank=None), {}),
    "deepseek_v3: yarn": ("deepseek_v3", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0, **ROPE)), {}),
    "gpt_oss: yarn": ("gpt_oss", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=16, **ROPE)), {}),
    "gpt_oss: no windows": ("gpt_oss", dict(num_hidden_layers=2, layer_types=[F, F]), {}),
    "olmo: clipped qkv": ("olmo", dict(clip_qkv=0.5), {}),
    "persimmon: qk norm": ("persimmon", dict(qk_layernorm=True), {}),
    "bert: not a decoder": ("bert", dict(is_decoder=False), {}),
    "roberta: not a decoder": ("roberta", dict(is_decoder=False), {}),
    "xlnet: bidirectional": ("xlnet", dict(attn_type="bi"), {}),
    "doge: experts": ("doge", dict(is_moe=True, num_experts=4, num_experts_per_tok=2), {}),
    "zamba2: adapters, rope": ("zamba2", dict(use_shared_attention_adapter=True, use_mem_rope=True, num_mem_blocks=2), {}),
    "qwen3_moe: dense layer between": ("qwen3_moe", dict(num_hidden_layers=3, mlp_only_layers=[1]), {}),
    "jetmoe: kv": ("jetmoe", dict(num_key_value_heads=2), {}),
    "deepseek_v4: without its grouped layer": ("deepseek_v4", {}, dict(targets=("q_a_proj", "q_b_proj", "kv_proj", "o_b_proj", "gate_proj", "up_proj", "down_proj"))),
    "llama4_text: without its router": ("llama4_text", {}, dict(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))),
    "llama4_text: real temperature floor": ("llama4_text", dict(floor_scale=8192), dict(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))),
    "phimoe: without its router": ("phimoe", {}, dict(targets=("q_proj", "k_proj", "v_proj", "o_proj"))),
    "deepseek_v32: index_topk beyond the rows": ("deepseek_v32", dict(index_topk=64), {}),
    "gpt_oss: window beyond the rows": ("gpt_oss", dict(sliding_window=64), {}),
    "mllama: whole checkpoint": ("mllama", OVER["mllama"], dict(wrap="MllamaForConditionalGeneration")),
    "emu3: whole checkpoint": ("emu3", OVER["emu3"], dict(wrap="Emu3ForConditionalGeneration")),
    "llama4: whole checkpoint": ("llama4", OVER["llama4"], dict(wrap="Llama4ForConditionalGeneration", targets=("q_proj", "k_proj", "v_proj", "o_proj"))),
    "qwen3_5: whole checkpoint": ("qwen3_5", OVER["qwen3_5"], dict(wrap="Qwen3_5ForConditionalGeneration")),
    "got_ocr2: whole checkpoint": ("got_ocr2", OVER["got_ocr2"], dict(wrap="GotOcr2ForConditionalGeneration")),
    "mistral3 (no causal LM)": ("mistral3", lambda: dict(text_config=sub("mistral", sliding_window=None), vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4), image_token_index=250), dict(wrap="Mistral3ForConditionalGeneration")),
    "llama: 4 end tokens": ("llama", {}, dict(eos=[0, 5, 6, 7])),
}  # fmt: skip


def table() -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """By name: the model type, its settings, and what else."""
    rows: dict[str, tuple[str, Any, dict[str, Any]]] = {
        mt: (mt, OVER.get(mt, {}), {}) for mt in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if mt not in SKIP
    }
    for name, (mt, over, options) in VARIANTS.items():
        if mt in CONFIG_MAPPING:
            rows[name] = (mt, over if callable(over) else {**OVER.get(mt, {}), **over}, options)
    return rows


TABLE = table()
USED = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "glm4", "granite", "olmo2", "cohere2",
    "gpt_neox", "smollm3", "deepseek_v3", "qwen3_moe", "gpt_oss", "llama4_text", "bloom", "falcon: alibi", "qwen3_5_text",
    "lfm2", "falcon_h1", "qwen3_5: whole checkpoint", "olmo: clipped qkv", "phi3: longrope, original 16",
)  # fmt: skip
"""Those that are tried by the tests too."""


# ------------------------------------------------------------------------------------------------ what is tried


def tokenizer(vocab: int = 256) -> PreTrainedTokenizerFast:
    """A character each, all of them printable: what a random model writes can be read back to the token."""
    letters = [*range(33, 127), 32, 10, *range(0x100, 0x180), *range(0x391, 0x3A1), *range(0x410, 0x450)]
    vocabulary = {"<end>": END, "<pad>": PAD, **{chr(c): i + 2 for i, c in enumerate(letters[: vocab - 2])}}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="?"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


@contextlib.contextmanager
def our_tokenizer() -> Iterator[None]:
    """transformers has tokenizers of its own for some model types; it is not those that are tried here."""
    before = AutoTokenizer.from_pretrained
    AutoTokenizer.from_pretrained = staticmethod(
        lambda where, *_, **__: PreTrainedTokenizerFast.from_pretrained(where)
    )
    try:
        yield
    finally:
        AutoTokenizer.from_pretrained = before


def text_of(n: int, seed: int) -> str:
    rng = random.Random(seed)
    return "".join(chr(rng.choice([c for c in range(35, 127) if c not in (60, 62, 92)])) for _ in range(n))


def row_of(n: int, seed: int, vocab: int = 256) -> Row:
    rng = random.Random(seed)
    ids = tuple(rng.randrange(2, min(vocab, 240)) for _ in range(n))
    return Row(ids, (False, *[True] * (n - 1)))


def shake(model: Any) -> None:
    """Noise on what an initialisation leaves at 0 or 1: biases, norms, sinks take part then."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and (p.ndim <= 1 or p.numel() <= 4 or float(p.std()) < 1e-6):
                p.add_(0.1 * torch.randn(p.shape, generator=rng))
        kept = set(model.state_dict())
        for name, b in model.named_buffers():
            if name in kept and b.is_floating_point() and not bool(b.any()):
                b.add_(0.05 * torch.randn(b.shape, generator=rng))


def make(name: str, folder: Path) -> None:
    """The tiny model of a row, on disk."""
    model_type, over, options = TABLE[name]
    config = make_config(model_type, over)
    torch.manual_seed(0)
    whole = options.get("wrap")
    model = (
        getattr(transformers, whole)(config) if whole else AutoModelForCausalLM.from_config(config)
    ).eval()
    shake(model)
    model.generation_config = GenerationConfig(
        eos_token_id=options.get("eos", END), pad_token_id=PAD, bos_token_id=None
    )
    model.save_pretrained(folder)
    tokenizer(options.get("vocab") or 256).save_pretrained(folder)


def fresh(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def some_adapter(modules: dict[str, Any], seed: int, size: float) -> Adapter:
    """Random, and B not zero, so that every gradient counts from the first step."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, m in modules.items():
        bound = 1 / math.sqrt(m.in_features)
        a = torch.empty(RANK, m.in_features).uniform_(-bound, bound, generator=rng)
        weights[name] = (a, torch.empty(m.out_features, RANK).uniform_(-size, size, generator=rng))
    return Adapter(RANK, ALPHA, weights)


def by_peft(folder: Path, adapter: Adapter | None) -> tuple[Any, list[Tensor]]:
    """A model with these weights in PEFT's adapter, and its parameters, A and B by module."""
    base = fresh(folder)
    if adapter is None:
        return base, []
    config = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=sorted(adapter.weights))
    model = peft.get_peft_model(base, config).eval()
    named = dict(model.named_parameters())
    pairs = []
    with torch.no_grad():
        for n, (a, b) in adapter.weights.items():
            for part, values in (("A", a), ("B", b)):
                pairs.append(named.pop(f"base_model.model.{n}.lora_{part}.default.weight"))
                pairs[-1].copy_(values)
    assert not [n for n in named if "lora_" in n], "PEFT adapts other modules"
    return model, pairs


def loss_alone(model: Any, row: Row) -> Tensor:
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1].float()
    return cross_entropy(logits, torch.tensor(row.ids[1:], dtype=torch.long), reduction="none")


# ------------------------------------------------------------------------------------------------ the checks


def losses(model: Model, folder: Path, adapters: Sequence[Adapter | None], vocab: int) -> float:
    """The largest difference of a token's loss."""
    most = model.context
    widths = [[23, 5, 1], [40, 9, 2], [17, 31]]
    lines = [
        [row_of(min(n, most), 100 * k + j, vocab) for j, n in enumerate(w)] for k, w in enumerate(widths)
    ]
    room = slots_of(model.runner, adapters, model.device)
    packed = model.pack(lines)
    inside = (
        room.attached(model.runner.dtype, rectangle=packed.rectangle) if room else contextlib.nullcontext()
    )
    with torch.no_grad(), inside, model.losses(packed) as (_, each):
        alone = []
        for adapter, line in zip(adapters, lines, strict=True):
            reference, _ = by_peft(folder, adapter)
            alone += [loss_alone(reference, r) for r in line]
        return float((each.float() - torch.cat(alone)).abs().max())


def training(model: Model, folder: Path, starts: Sequence[Adapter], targets: Any) -> float:
    """The largest difference of a step's loss, over four steps, of three jobs side by side."""
    widths = [(22, 6, 11), (35, 1, 14, 9), (5, 4, 19)]
    texts = [
        [text_of(min(n, model.context - 1), 7 * k + j) for j, n in enumerate(w)] for k, w in enumerate(widths)
    ]
    worst = 0.0
    taught = {}
    for steps in (1, 4):
        recipe = Recipe(
            rank=RANK, alpha=ALPHA, targets=targets, learning_rate=5e-3, steps=steps, batch_size=64,
            schedule="constant", clip=1.0, weight_decay=0.01,
        )  # fmt: skip
        jobs = [Job(tuple(map(Example, t)), recipe, k, start=starts[k]) for k, t in enumerate(texts)]
        for k, outcome in enumerate(train_adapters(model, jobs, Room(3, 4096))):
            if k not in taught:
                taught[k] = by_adamw(folder, starts[k], [model.tokenizer(t)["input_ids"] for t in texts[k]])
            if outcome.adapter is None:
                return math.inf
            worst = max(
                worst, abs(taught[k][0] - outcome.loss[0]), abs(taught[k][steps - 1] - outcome.loss[1])
            )
    return worst


def by_adamw(folder: Path, start: Adapter, ids: Sequence[list[int]]) -> list[float]:
    """The losses of four steps by PEFT and torch, each row alone."""
    model, params = by_peft(folder, start)
    for p in params:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(params, lr=5e-3, weight_decay=0.01)
    rows = [Row((*i, END), (False, *[True] * len(i))) for i in ids]
    n = sum(len(r.ids) - 1 for r in rows)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        value = 0.0
        for row in rows:
            loss = loss_alone(model, row).sum() / n
            loss.backward()
            value += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], 1.0)
        optimizer.step()
        found.append(value)
    return found


CLOSE = 0.02
"""Two logits that are nearer than this may change places by rounding; what follows is not compared then."""


def generation(model: Model, folder: Path, adapters: Sequence[Adapter | None]) -> int:
    """Texts that differ, of prompts of four lengths under each adapter."""
    new = min(NEW, model.context // 2)
    prompts = [text_of(min(n, model.context - new), 900 + n) for n in (3, 11, 20, 33)]
    lists = [[prompts[i] for i in mine] for mine in ([0, 3], [1], [2, 1])]
    told = ask(model, adapters, [[Prompt(p) for p in mine] for mine in lists], Sampling(max_tokens=new))
    config = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=sorted(model.conventions.ends), pad_token_id=PAD,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    wrong = 0
    for adapter, mine, texts in zip(adapters, lists, told, strict=True):
        reference, _ = by_peft(folder, adapter)
        for prompt, text in zip(mine, texts, strict=True):
            ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
            with torch.no_grad():
                out = reference.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
                )
            wanted = out.sequences[0, ids.shape[1] :].tolist()
            stop = next((i for i, t in enumerate(wanted) if t in model.conventions.ends), len(wanted))
            places = [i for i, t in enumerate(wanted[:stop]) if t != PAD]  # which no text shows
            ours, theirs = model.tokenizer(text)["input_ids"], [wanted[i] for i in places]
            same = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), None)
            if same is None and len(ours) != len(theirs):
                same = min(len(ours), len(theirs))
            at = None
            if same is not None:
                at = places[same] if same < len(places) else min(stop, len(out.logits) - 1)
            if at is not None:
                top = out.logits[at][0].float().topk(2).values
                wrong += float(top[0] - top[1]) > CLOSE
    return wrong


def exported(model: Model, folder: Path, adapter: Adapter) -> float:
    """The largest difference of a logit, where PEFT loads what was written."""
    ids = torch.tensor([row_of(min(30, model.context), 8).ids])
    ids = ids % model.vocabulary
    save_peft(adapter, folder.parent / "adapter", str(folder))
    theirs = peft.PeftModel.from_pretrained(fresh(folder), str(folder.parent / "adapter")).eval()
    with torch.no_grad():
        return float(
            (model.plus(adapter).forward(input_ids=ids).logits - theirs(input_ids=ids).logits).abs().max()
        )


def examine(name: str, work: Path) -> dict[str, Any]:
    """A row of the record."""
    options = TABLE[name][2]
    found: dict[str, Any] = {
        "architecture": name,
        "loss": None,
        "train": None,
        "generate": None,
        "export": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(name, work / "model")
            fresh(work / "model")(input_ids=torch.tensor([row_of(20, 3).ids]) % (options.get("vocab") or 256))
    except Exception as error:
        why = (
            f"plain transformers cannot make it: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        )
        return {**found, "verdict": "not made", "why": why}
    try:
        with our_tokenizer(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load_model(ModelSpec(name=str(work / "model"), threads=None))
            targets = options.get("targets", "all-linear")
            modules = target_modules(model.runner, targets)
    except LoraError as error:
        return {**found, "verdict": "refused", "why": str(error).replace(str(work / "model"), name)}
    mine = [some_adapter(modules, 11, 0.15), None, some_adapter(modules, 12, 0.15)]
    starts = [some_adapter(modules, 21 + k, 0.05) for k in range(3)]
    nature = model.nature
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found["loss"] = losses(model, work / "model", mine, options.get("vocab") or 256)
        found["train"] = training(model, work / "model", starts, targets)
        found["generate"] = generation(model, work / "model", mine)
        found["export"] = exported(model, work / "model", starts[0])
    right = (
        found["loss"] < 2e-3 and found["train"] < 5e-3 and found["generate"] == 0 and found["export"] < 1e-2
    )
    how = "packed" if nature.packs else "side by side"
    how += "" if nature.pads else ", prompts of one length at a time"
    rounded = {k: round(v, 7) if isinstance(v, float) else v for k, v in found.items()}
    return {**rounded, "verdict": "right" if right else "wrong", "how": how}


# ------------------------------------------------------------------------------------------------ all of them


def in_a_fork(name: str, limit: int = 300) -> dict[str, Any]:
    """A row, in a process of its own: some architectures leave something behind, or do not return."""
    work = Path(tempfile.mkdtemp(prefix="architecture-"))
    out = work / "row.json"
    child = os.fork()
    if child == 0:
        signal.alarm(limit)
        try:
            row = examine(name, work)
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            row = {"architecture": name, "verdict": "wrong", "why": why}
        out.write_text(json.dumps(row))
        os._exit(0)
    os.waitpid(child, 0)
    found = (
        json.loads(out.read_text())
        if out.exists()
        else {"architecture": name, "verdict": "wrong", "why": "died"}
    )
    shutil.rmtree(work, ignore_errors=True)
    return dict(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for name in args.names or TABLE:
        rows.append(in_a_fork(name))
        print(json.dumps(rows[-1]), flush=True)
    counts = {v: sum(r["verdict"] == v for r in rows) for v in ("right", "refused", "not made", "wrong")}
    print(counts, file=sys.stderr)
    if args.json:
        record = {
            "command": "python -m tests.lora.architectures --json docs/results/architectures.json",
            "date": date.today().isoformat(),
            "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
            **counts,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
