"""The shape of what a layer returns, where its class alone tells."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.module_tree import unwrapped

__all__ = ["known_shape"]


def known_shape(layer: nn.Module) -> str | None:
    """The output's shape, open where it depends on the input; ``None`` where only a pass can tell.

    Examples:
        >>> known_shape(nn.Linear(8, 32)), known_shape(nn.Conv2d(3, 16, 3)), known_shape(nn.ReLU())
        ('(..., 32)', '(B, 16, ...)', None)
    """
    layer = unwrapped(layer)
    if type(layer) is nn.Linear:
        return f"(..., {layer.out_features})"
    if type(layer) is nn.Embedding:
        return f"(..., {layer.embedding_dim})"
    if type(layer) is nn.LayerNorm:
        return f"(..., {', '.join(map(str, layer.normalized_shape))})"
    if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return f"(B, {layer.out_channels}, ...)"
    return None
