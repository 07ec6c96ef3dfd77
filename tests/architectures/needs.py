"""Values that a tiny configuration needs beside those that its sizes' names give, by its model type."""

from __future__ import annotations

from typing import Any

_MIXED = ["linear_attention", "full_attention"] * 2
_ONE_HEAD_FOR_EACH_KEY = {"num_key_value_heads": 4}
_OF_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2}
_HEAD = {"head_dim": 8}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_HALF_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}}
_ONE_TILE = {"image_grid_pinpoints": [[56, 56]]}  # the size of a picture that its patches give
_FEW_IMAGE_TOKENS = {"mm_tokens_per_image": 4}
_INDEXER = {"indexer_budget": 16, "indexer_compress_ratio": 4, "indexer_head_dim": 8, "indexer_kv_heads": 1}

NEEDS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "bailing_hybrid": {
        "layer_types": _MIXED,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
        "num_nextn_predict_layers": 0,
    },
    "bamba": _OF_MAMBA | {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_nb_functions": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "donut-swin": {"embed_dim": 24},
    "dots3_note": _ONE_HEAD_FOR_EACH_KEY,
    "dots3_note_text": _ONE_HEAD_FOR_EACH_KEY,
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "gemma3": _FEW_IMAGE_TOKENS,
    "glm4v_moe_text": _HALF_MROPE,
    "glm4v_text": _MROPE,
    "glm_ocr_text": _MROPE,
    "glmga_text": _MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "granitemoehybrid": _OF_MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _MIXED, "num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "llava_next": _ONE_TILE,
    "llava_next_video": _ONE_TILE,
    "llava_onevision": _ONE_TILE,
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 48, "zero_expert_num": 2, "qk_head_dim": 16},
    "mamba2": {"expand": 2, "num_heads": 8, "head_dim": 8},
    "ministral": _HEAD,
    "mllama_vision_model": {"intermediate_layers_indices": [1], "vision_output_dim": 64, "num_global_layers": 2},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2},
    "qwen4_exp_text": _HEAD
    | _INDEXER
    | {"indexer_n_heads": 2, "ngram_vocab_size_base": 64, "ple_embed_dim": 32, "hc_lowrank": 8},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 9},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 9},
    "shieldgemma2": _FEW_IMAGE_TOKENS,
    "swin": {"embed_dim": 24},
    "swin2sr": {"embed_dim": 24},
    "swinv2": {"embed_dim": 24},
    "t5gemma2": _FEW_IMAGE_TOKENS,
    "t5gemma2_encoder": _FEW_IMAGE_TOKENS,
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "vivit": {"num_frames": 4},
    "wav2vec2-bert": {"vocab_size": 128},
    "wav2vec2-conformer": {"vocab_size": 128},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "zamba": {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "num_key_value_heads": 4,
    },
}

# Values for one kind of one architecture.
OF_KIND: dict[tuple[str, str], dict[str, Any]] = {
    ("causal", "reformer"): {"is_decoder": True},
    ("causal", "xmod"): {"is_decoder": True},
}
