"""Roles of a block's parts: one table of the names that transformers, timm and torch give them."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped

__all__ = ["ROLES", "part_in_role", "roles_of"]

_HOLDERS_OF_EXPERTS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mixer")

# The first name that a block has counts.
ROLES: dict[str, tuple[str, ...]] = {
    "attn": (
        *("self_attn", "attn", "self_attention", "attention", "layer.0.SelfAttention"),
        *("temporal_block", "mixer"),
    ),
    "mlp": (
        *("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mlp_block"),
        *("layer.1.DenseReluDense", "layer.2.DenseReluDense", "mixer"),
        # No module holds the MLP of these blocks: its last linear layer returns what the MLP returns.
        *("fc2", "output.dense", "linear2"),
    ),
    "norm": (
        *("norm", "input_layernorm", "ln_1", "layer_norm1", "norm1", "layernorm_before", "self_attn_layer_norm"),
        *("layer_norm", "input_layer_norm", "attention_norm", "layer.0.layer_norm", "attention.output.LayerNorm"),
        "temporal_pre_norm",
    ),
    "cross_attn": (
        *("cross_attn", "crossattention", "cross_attention", "encoder_attn", "multihead_attn"),
        "layer.1.EncDecAttention",
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
    return not isinstance(module, nn.ModuleList)  # which is never called
