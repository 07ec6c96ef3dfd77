"""The order of an activation's axes, for layers where it is not (batch, tokens, features).

Shapes do not show the order: four rows of four tokens look the same either way. If one of torch's own modules, or the
way that a layer is called, shows it, choices of tokens and values of samples are refused rather than applied along the
wrong dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mi_crow_lightning.hooks.passes.channels import LAST, Channels

__all__ = ["Axes", "axes_of", "axes_of_call"]


class Axes(Enum):
    """The way that a layer arranges tokens; the value describes it in messages."""

    USUAL = "(batch, tokens, features)"
    TIME_FIRST = "(tokens, batch, features), because batch_first=True is not set"
    TOKENS_FIRST = "(tokens, batch, features)"
    STREAMS_FIRST = "(streams, batch, tokens, features)"
    STREAMS_LATER = "(batch, tokens, streams, features)"
    CHANNELS_FIRST = "(batch, channels, positions)"
    PACKED = "the tokens of a PackedSequence in one row, by time step"
    ROUTED = "the tokens routed to its experts, in one row and in another order"

    def of(self, x: Tensor) -> Axes:
        """Return the axes of one activation: tokens in one row have two dimensions, other orders have three."""
        if self is Axes.USUAL:
            return self
        in_one_row = self in (Axes.PACKED, Axes.ROUTED)
        return self if in_one_row or x.dim() == (3 if self.streams is None else 4) else Axes.USUAL

    @property
    def samples_first(self) -> bool:
        """Whether the first dimension holds the samples, or all tokens, one sample after the other."""
        return self in (Axes.USUAL, Axes.CHANNELS_FIRST, Axes.STREAMS_LATER)

    @property
    def tokens_first(self) -> bool:
        """Whether the tokens are in the first dimension, and the samples in the second."""
        return self in (Axes.TIME_FIRST, Axes.TOKENS_FIRST)

    @property
    def streams(self) -> int | None:
        """The dimension of the samples where a token has several streams; ``None`` if nothing is known of streams."""
        return _STREAMS.get(self)


_STREAMS = {Axes.STREAMS_LATER: 0, Axes.STREAMS_FIRST: 1}

# Classes of transformers, by module and name, whose layers arrange tokens in another way.
_LAYERS = {
    "modeling_xlnet.XLNetLayer": Axes.TOKENS_FIRST,
    "modeling_fsmt.EncoderLayer": Axes.TOKENS_FIRST,
    "modeling_fsmt.DecoderLayer": Axes.TOKENS_FIRST,
}
_INSIDE = {"modeling_xlnet.XLNetModel": Axes.TOKENS_FIRST}  # the model itself gives (batch, tokens, features)
_BLOCKS = {  # of the block itself alone
    "modeling_gemma3n.Gemma3nTextDecoderLayer": Axes.STREAMS_FIRST,
    "modeling_deepseek_v4.DeepseekV4DecoderLayer": Axes.STREAMS_LATER,
    "modeling_hy_v4.HYV4DecoderLayer": Axes.STREAMS_LATER,
}


def axes_of(name: str, layer: nn.Module, ancestors: Sequence[nn.Module], channels: Channels = LAST) -> Axes:
    """Return the axes that follow from a layer's name, class and ancestors.

    Args:
        name: its name; a layer below a module ``experts`` is called with the tokens that are routed there.
        layer: the layer.
        ancestors: the modules that hold it.
        channels: where its activation's channels are.

    Examples:
        >>> axes_of("rnn", nn.LSTM(2, 2), []).value
        '(tokens, batch, features), because batch_first=True is not set'
    """
    if "experts" in name.split(".")[:-1]:
        return Axes.ROUTED
    if channels.by_dims[3] == -2:
        return Axes.CHANNELS_FIRST
    if any(_is_time_first(module) for module in (layer, *ancestors)):
        return Axes.TIME_FIRST
    block, of_layer, _ = _listed(type(layer))
    around = [_listed(type(module)) for module in ancestors]
    known = (block, of_layer, *(axes for _, axes, _ in around), *(axes for _, _, axes in around))
    return next((axes for axes in known if axes is not None), Axes.USUAL)


_Listed: TypeAlias = tuple[Axes | None, Axes | None, Axes | None]
_of_classes: WeakKeyDictionary[type[nn.Module], _Listed] = WeakKeyDictionary()


def _listed(cls: type[nn.Module]) -> _Listed:
    """Return the axes that each of the tables has for a class, or for a class that it inherits from."""
    found = _of_classes.get(cls)
    if found is None:
        names = [f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for kind in cls.__mro__]
        block, of_layer, inside = (
            next((table[name] for name in names if name in table), None) for table in (_BLOCKS, _LAYERS, _INSIDE)
        )
        found = _of_classes[cls] = (block, of_layer, inside)
    return found


def axes_of_call(axes: Axes, args: tuple[Any, ...]) -> Axes:
    """Return the axes of one call of a layer that usually has the given ones."""
    return Axes.PACKED if args and isinstance(args[0], PackedSequence) else axes


def _is_time_first(module: nn.Module) -> bool:
    """Return whether this is a torch module whose input and output have the tokens in the first dimension."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return any(_is_time_first(layer) for layer in module.layers)
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        return not module.self_attn.batch_first
    return isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)) and not module.batch_first
