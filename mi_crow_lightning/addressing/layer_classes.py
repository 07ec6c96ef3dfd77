"""torch's classes of layers: where the channels of their activations are, and how many there are.

This is the one table; what reads it are the rule for channels, the widths that vectors must have, and the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["AFTER_SAMPLES", "LAST", "Declaration", "Declared", "declaration_of", "declared"]

LAST = 0
"""The place of channels that are the last dimension."""
AFTER_SAMPLES = -1
"""The place of channels that are dimension 1, however many dimensions follow."""


class Declared(NamedTuple):
    """A layer's channels, as its class and its attributes declare them.

    Attributes:
        place: how many dimensions of positions follow the channels; `LAST`, or `AFTER_SAMPLES`.
        width_in: how many channels its input has; ``None`` where the class does not say, 0 while it is lazy.
        width_out: how many its output has.
        unbatched: whether the layer takes a sample alone, without a dimension of samples.
        own_forward: whether a subclass overrides torch's forward, and may return something else.
        may_move: whether such a subclass may well have its channels elsewhere, as norms of images do.
    """

    place: int
    width_in: int | None
    width_out: int | None
    unbatched: bool = True
    own_forward: bool = False
    may_move: bool = False


class Declaration(NamedTuple):
    """A class's part of what its layers declare; for the attributes see `Declared`.

    Attributes:
        width_in: from a layer to how many channels its input has.
        width_out: from a layer to how many its output has.
        needs_width: whether a layer without ``width_out`` says nothing of its channels at all.
    """

    place: int
    width_in: Callable[[Any], int | None]
    width_out: Callable[[Any], int | None]
    unbatched: bool = True
    own_forward: bool = False
    may_move: bool = False
    needs_width: bool = False

    def of(self, layer: nn.Module) -> Declared | None:
        """Return what a layer of the class declares; ``None`` if it says nothing."""
        if not self.speaks_for(layer):
            return None
        widths = self.width_in(layer), self.width_out(layer)
        return Declared(self.place, *widths, self.unbatched, self.own_forward, self.may_move)

    def speaks_for(self, layer: nn.Module) -> bool:
        """Return whether a layer of the class says where its channels are."""
        return not self.needs_width or self.width_out(layer) is not None


def _attribute(name: str) -> Callable[[Any], int | None]:
    return lambda layer: getattr(layer, name, None)


def _nothing(layer: Any) -> None:
    return None


def _both(place: int, name: str, **options: bool) -> Declaration:
    return Declaration(place, _attribute(name), _attribute(name), **options)


def _norm() -> Declaration:
    # One that normalises several dimensions says nothing of channels.
    return Declaration(LAST, _normalized, _normalized, may_move=True, needs_width=True)


def _normalized(layer: Any) -> int | None:
    return layer.normalized_shape[0] if len(layer.normalized_shape) == 1 else None


def _query(layer: nn.MultiheadAttention) -> int | None:
    return layer.embed_dim if layer.embed_dim == layer.kdim == layer.vdim else None


def _hidden(layer: nn.RNNBase) -> int:
    return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)


def _one(place: int, given: str, made: str) -> Declaration:
    return Declaration(place, _attribute(given), _attribute(made))


_CLASSES: dict[type, Declaration] = {
    nn.Linear: _one(LAST, "in_features", "out_features"),
    nn.Bilinear: _one(LAST, "in1_features", "out_features"),
    nn.Embedding: Declaration(LAST, _nothing, _attribute("embedding_dim")),
    nn.EmbeddingBag: Declaration(LAST, _nothing, _attribute("embedding_dim")),
    nn.MultiheadAttention: Declaration(LAST, _query, _attribute("embed_dim")),
    nn.RNNBase: Declaration(LAST, _attribute("input_size"), _hidden),
    nn.LayerNorm: _norm(),
    nn.RMSNorm: _norm(),
    nn.BatchNorm1d: _both(1, "num_features", unbatched=False, may_move=True),
    _BatchNorm: _both(AFTER_SAMPLES, "num_features", may_move=True),
    nn.GroupNorm: _both(AFTER_SAMPLES, "num_channels", may_move=True),
}

_POOLS = ("MaxPool", "MaxUnpool", "AvgPool", "LPPool", "FractionalMaxPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
_PADS = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")


def _add(stems: tuple[str, ...], of_positions: Callable[[int], Declaration]) -> None:
    for stem in stems:
        for positions in (1, 2, 3):
            if hasattr(nn, f"{stem}{positions}d"):
                _CLASSES[getattr(nn, f"{stem}{positions}d")] = of_positions(positions)


_add(("Conv", "ConvTranspose"), lambda positions: _one(positions, "in_channels", "out_channels"))
_add(("InstanceNorm", "LazyInstanceNorm"), lambda positions: _both(positions, "num_features", may_move=True))
_add((*_POOLS, *_PADS), lambda positions: Declaration(positions, _nothing, _nothing, may_move=True))


def declared(layer: nn.Module) -> Declared | None:
    """Return what a layer's class declares of its channels; ``None`` for a class that is not in the table.

    Examples:
        >>> declared(nn.Conv2d(3, 8, 3))
        Declared(place=2, width_in=3, width_out=8, unbatched=True, own_forward=False, may_move=False)
        >>> declared(nn.ReLU()) is None
        True
    """
    declaration = declaration_of(type(layer))
    return None if declaration is None else declaration.of(layer)


# Asked of every layer of a model; classes that a user makes may go again.
_found: WeakKeyDictionary[type[nn.Module], Declaration | None] = WeakKeyDictionary()


def declaration_of(cls: type[nn.Module]) -> Declaration | None:
    """Return a class's part of what its layers declare; ``None`` if it is not in the table."""
    if cls not in _found:
        _found[cls] = _look_up(cls)
    return _found[cls]


def _look_up(cls: type[nn.Module]) -> Declaration | None:
    base = next((one for one in cls.__mro__ if one in _CLASSES), None)
    if base is None:
        return _linear_of_gpt2(cls)
    by_torch: Any = next(one for one in cls.__mro__ if one.__module__.startswith("torch.nn."))
    return _CLASSES[base]._replace(own_forward=cls.forward is not by_torch.forward)


def _linear_of_gpt2(cls: type[nn.Module]) -> Declaration | None:
    """Return what GPT-2's linear layer declares, whose class in transformers is named like a convolution."""
    conv = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv is None or not issubclass(cls, conv):
        return None
    return _one(LAST, "nx", "nf")._replace(own_forward=cls.forward is not conv.forward)
