"""Tiny configurations of every architecture: a configuration's sizes made small by their names."""

from __future__ import annotations

from typing import Any

from tests.architectures.needs import NEEDS

WIDTH = 32
LAYERS = 4
HEADS = 4
VOCABULARY = 128
POSITIONS = 64
PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
FIRST_WORD = 16  # smaller IDs are those of special tokens

_NAMES: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd embed_dim dim word_embed_proj_dim embedding_size n_embed emb_dim embedding_dim "
        "encoder_hidden_dim hidden_dim out_hidden_size projector_hidden_size attention_hidden_size pooler_hidden_size "
        "text_hidden_size linear_hidden_size mamba_hidden_size decoder_hidden_size lru_width projection_dim "
        "output_proj_dims bottleneck_size query_pre_attn_scalar v_hidden_size cross_attention_hidden_size "
        "pooler_output_size encoder_hidden_size qformer_hidden_size backbone_hidden_size connector_intermediate_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers depth num_blocks num_transformer_layers num_hidden_groups",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "attention_heads num_encoder_attention_heads num_decoder_attention_heads linear_num_heads index_n_heads "
        "linear_num_value_heads linear_num_key_heads num_linear_heads swa_num_attention_heads mamba_num_heads "
        "num_local_experts num_experts n_routed_experts moe_num_experts num_experts_per_layer",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k top_k_experts num_expert_groups "
        "swa_num_key_value_heads mamba_n_groups num_query_groups prompt_length",
    ),
    (
        WIDTH // HEADS,
        "head_dim d_kv d_head kv_channels qk_nope_head_dim v_head_dim qk_rope_head_dim kv_lora_rank dim_head "
        "linear_head_dim linear_key_head_dim linear_value_head_dim attention_head_dim swa_head_dim swa_v_head_dim "
        "qk_head_dim index_head_dim global_head_dim attention_head_size",
    ),
    (4, "rotary_dim"),
    (
        16,
        "q_lora_rank state_size ssm_state_size mamba_d_state time_step_rank mamba_dt_rank sliding_window "
        "attention_window "
        "sliding_window_size local_attention mamba_chunk_size chunk_size o_lora_rank index_topk "
        "attention_chunk_size hidden_size_per_layer_input",
    ),
    (
        48,
        "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim moe_intermediate_size n_inner mlp_dim dim_ff "
        "shared_expert_intermediate_size ffn_hidden_size d_inner dff shared_intermediate_size dense_intermediate_size "
        "moe_shared_expert_intermediate_size decoder_intermediate_size encoder_intermediate_size mlp_hidden_size "
        "intermediate_size_mlp block_ff_dim dim_feedforward",
    ),
    (
        1,
        "first_k_dense_replace n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts "
        "num_nextn_predict_layers",
    ),
    (VOCABULARY, "vocab_size codebook_size vocab_size_per_layer_input text_vocab_size word_vocab_size"),
    (
        POSITIONS,
        "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx max_source_positions "
        "max_target_positions context_length seq_length model_max_length",
    ),
)
_BY_NAME: dict[str, int] = {name: size for size, names in _NAMES for name in names.split()}
_PATCH_OF_A_TRANSFORMER = 8  # convolutional stages, whose first patches are smaller, need a larger picture
_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
_SPECIAL |= {"image_token_id": IMAGE, "image_token_index": IMAGE}
_EMPTY = ("layer_types", "mlp_layer_types", "layers_block_type", "hybrid_override_pattern", "attn_layer_indices")


def shrunk(config_class: Any, **more: Any) -> Any:
    """Return a small configuration of a class: each size that its defaults have, by name, made small.

    Args:
        config_class: a configuration class of transformers.
        more: values that take precedence over the small ones.
    """
    config = config_class(**small_values(config_class()) | more)
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = BOS  # some classes take it, and forget it
    return config


def small_values(defaults: Any) -> dict[str, Any]:
    """Return the values that make a configuration small, those of its parts included."""
    renamed = set(getattr(type(defaults), "attribute_map", {}))
    values: dict[str, Any] = {}
    for name, value in vars(defaults).items():
        if name in renamed or name.startswith("_"):
            continue
        small = _small(name, value)
        if small is not None:
            values[name] = small
    for name in getattr(type(defaults), "sub_configs", {}):
        part = getattr(defaults, name, None)
        if part is not None and hasattr(part, "to_dict"):
            values[name] = {"model_type": part.model_type} | small_values(part)
    values |= {name: token for name, token in _SPECIAL.items() if hasattr(defaults, name) and name not in renamed}
    size, patch = vars(defaults).get("image_size"), vars(defaults).get("patch_size")
    if isinstance(size, int) and isinstance(patch, int) and patch >= _PATCH_OF_A_TRANSFORMER:
        values["image_size"] = min(size, 4 * patch)
    if _has_a_key_for_each_head(defaults):
        values["num_key_value_heads"] = HEADS
    return values | NEEDS.get(type(defaults).model_type, {})


def _has_a_key_for_each_head(defaults: Any) -> bool:
    keys = vars(defaults).get("num_key_value_heads")
    return keys is not None and keys == getattr(defaults, "num_attention_heads", None)


def _small(name: str, value: Any) -> Any:
    """Return a small value for a size; ``None`` leaves the default."""
    if isinstance(value, bool) or value is None:
        return None
    if name in _BY_NAME and isinstance(value, int):
        return min(value, _BY_NAME[name])
    if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= FIRST_WORD:
        return 4 + sum(map(ord, name)) % (FIRST_WORD - 4)
    if name in ("depths", "num_layers_per_stage") and isinstance(value, (list, tuple)):
        return type(value)(min(depth, 2) for depth in value)
    if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "mrope_section" in value:
        return value | {"mrope_section": [2, 1, 1]}
    return None
