"""The layouts of activations whose dimensions are not (batch, tokens, features).

Shapes do not show the layout: four rows of four tokens look the same either way. If one of torch's own modules, or the
way that a layer is called, shows it, choices of tokens and values of samples are refused rather than applied along the
wrong dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Layout", "layout_of", "layout_of_call"]

_CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm)


class Layout(Enum):
    """The way that a layer arranges tokens; the value describes it in messages."""

    USUAL = "(batch, tokens, features)"
    TIME_FIRST = "(tokens, batch, features), because batch_first=True is not set"
    CHANNELS_FIRST = "(batch, channels, positions)"
    PACKED = "the tokens of a PackedSequence in one row, by time step"
    ROUTED = "the tokens routed to its experts, in one row and in another order"

    def of(self, x: Tensor) -> Layout:
        """Return the layout of an activation: tokens in one row have two dimensions, other layouts have three."""
        in_one_row = self in (Layout.PACKED, Layout.ROUTED)
        return self if in_one_row or x.dim() == 3 else Layout.USUAL

    @property
    def samples_first(self) -> bool:
        """Whether the first dimension holds the samples, or all tokens, one sample after the other."""
        return self in (Layout.USUAL, Layout.CHANNELS_FIRST)


def layout_of(name: str, layer: nn.Module, ancestors: Iterable[nn.Module]) -> Layout:
    """Return the layout that follows from a layer's name, class and ancestors.

    Args:
        name: its name; a layer below a module ``experts`` is called with the tokens that are routed there.
        layer: the layer.
        ancestors: the modules that hold it.

    Examples:
        >>> layout_of("rnn", nn.LSTM(2, 2), []).value
        '(tokens, batch, features), because batch_first=True is not set'
    """
    if "experts" in name.split(".")[:-1]:
        return Layout.ROUTED
    if isinstance(layer, _CHANNELS_FIRST):
        return Layout.CHANNELS_FIRST
    time_first = any(_is_time_first(module) for module in (layer, *ancestors))
    return Layout.TIME_FIRST if time_first else Layout.USUAL


def layout_of_call(layout: Layout, args: tuple[Any, ...]) -> Layout:
    """Return the layout of one call of a layer with a given layout."""
    return Layout.PACKED if args and isinstance(args[0], PackedSequence) else layout


def _is_time_first(module: nn.Module) -> bool:
    """Return whether this is a torch module whose input and output have the tokens in the first dimension."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return any(_is_time_first(layer) for layer in module.layers)
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        return not module.self_attn.batch_first
    return isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)) and not module.batch_first
