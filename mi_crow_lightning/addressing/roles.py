"""Roles of a block's parts: one table of the names that transformers, timm and torch give them."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped

__all__ = ["ROLES", "part_in_role", "roles_of", "shared_part"]

_HOLDERS_OF_EXPERTS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mixer")

# The first name that a block has counts.
ROLES: dict[str, tuple[str, ...]] = {
    "attn": (
        *("self_attn", "attn", "self_attention", "attention", "layer.0.SelfAttention"),
        *(
            "temporal_block",
            "mixer",
            "multi_head_attention",
            "rel_attn",
            "shared_transf.self_attn",
            "shared_transformer.self_attn",
        ),
    ),
    "mlp": (
        "ffn_output",  # ALBERT's, whose "ffn" is the first linear layer of two
        *("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe", "mlp_block"),
        *("layer.1.DenseReluDense", "layer.2.DenseReluDense", "mixer"),
        *("shared_transf.feed_forward", "shared_transformer.feed_forward"),
        # No module holds the MLP of these blocks: its last linear layer returns what the MLP returns.
        *("fc2", "output.dense", "output_query.dense", "linear2"),
    ),
    "norm": (
        *("norm", "input_layernorm", "ln_1", "layer_norm1", "norm1", "layernorm_before", "self_attn_layer_norm"),
        *(
            "norm_1",
            "layernorm1",
            "layernorm_1",
            "layer_norm_1",
            "rms_norm1",
            "norm_sublayer1",
            "input_rmsnorm",
            "ln_attn",
        ),
        *("attn_norm", "attention_layernorm", "attention_layer_norm", "pre_attention_layer_norm", "sa_layer_norm"),
        *("pre_sa_norm", "operator_norm"),
        *("layer_norm", "input_layer_norm", "attention_norm", "layer.0.layer_norm", "attention.output.LayerNorm"),
        *("attention.LayerNorm", "attention.ln"),
        *("temporal_pre_norm", "shared_transf.input_layernorm", "shared_transformer.input_layernorm"),
        "post_attention_layernorm",  # where attention has no norm before it
    ),
    "cross_attn": (
        *("cross_attn", "crossattention", "cross_attention", "encoder_attn", "multihead_attn"),
        *("layer.1.EncDecAttention", "encoder_decoder_attention"),
    ),
    "router": tuple(f"{holder}.{name}" for holder in _HOLDERS_OF_EXPERTS for name in ("router", "gate")),
    "expert": tuple(f"{holder}.experts" for holder in _HOLDERS_OF_EXPERTS),
}

# Hybrid models give parts of different kinds one name: only the class says what a part is.
_NAMES_OF_MANY_KINDS = ("mixer", "temporal_block")
_WORDS_IN_CLASSES = {"attn": ("attention", "attn"), "mlp": ("mlp", "moe", "feedforward")}


def part_in_role(tree: ModuleTree, block: str, role: str) -> str | None:
    """Return the name of the part of ``block`` that has the role, if there is one."""
    named = (f"{block}.{part}" for part in ROLES.get(role, ()))
    return next((name for name in named if name in tree.modules and _has_role(tree, name, role)), None)


def shared_part(tree: ModuleTree, block: str, role: str) -> str | None:
    """Return the first name of the part in the role that ``block`` shares with an earlier block, if it does."""
    return next(
        (tree.aliases[name] for part in ROLES.get(role, ()) if (name := f"{block}.{part}") in tree.aliases), None
    )


def roles_of(tree: ModuleTree, block: str) -> dict[str, str]:
    """Return the names of the parts of ``block`` by role."""
    return {role: name for role in ROLES if (name := part_in_role(tree, block, role)) is not None}


def _has_role(tree: ModuleTree, name: str, role: str) -> bool:
    holder, _, last = name.rpartition(".")
    module = unwrapped(tree.modules[name])
    if last in _NAMES_OF_MANY_KINDS:
        class_name = type(module).__name__.lower()
        return any(word in class_name for word in _WORDS_IN_CLASSES[role])
    if role == "router":  # a dense MLP may call a projection its gate
        return f"{holder}.experts" in tree.modules
    if role == "norm" and isinstance(module, nn.Identity):  # a place that a block leaves empty
        return False
    return not isinstance(module, nn.ModuleList)  # which is never called
