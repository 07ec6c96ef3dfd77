"""The rule for channels: the layer's class says which dimension they are.

It is written down for users in ``docs/reference/models.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.nn.modules import activation, dropout
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing import layer_classes
from mi_crow_lightning.addressing.layer_classes import Declaration, declaration_of
from mi_crow_lightning.hooks.passes.channels import (
    BY_DIMENSIONS,
    LAST,
    Channels,
    first_after,
    known,
    near,
    of_container,
)
from mi_crow_lightning.hooks.passes.neighbours import Family, Once

__all__ = ["Around", "channels_of"]

_ELEMENTWISE = (
    nn.Identity,
    *(getattr(activation, name) for name in activation.__all__ if name not in ("GLU", "MultiheadAttention")),
    *(getattr(dropout, name) for name in dropout.__all__),
)


class Around:
    """The modules around the layers of a model, each looked at once however many of them are asked about.

    Attributes:
        layers: the layers in a module whose classes say where their channels are.
        kinds: whether a layer has its channels last, for each of them.
        called: the children of a module that may move dimensions.
        holding: those among them that hold layers.
    """

    def __init__(self) -> None:
        self.layers: Once[list[_Layer]] = Once(self._layers_in)
        self.kinds: Once[set[bool]] = Once(lambda module: _kinds(self.layers(module)))
        self.called = Once(partial(Family, passed_over=_is_elementwise))
        self.holding = Once(partial(Family, passed_over=lambda child: _is_elementwise(child) or not self.layers(child)))
        self._classes: dict[type, _Class | None] = {}

    def layer(self, module: nn.Module) -> _Layer | None:
        """Return what a module's class says of its channels; ``None`` if it says nothing."""
        cls = type(module)
        if cls not in self._classes:
            self._classes[cls] = _Class.of(cls)
        known = self._classes[cls]
        return None if known is None or not known.declaration.speaks_for(module) else _Layer(known, module)

    def _layers_in(self, module: nn.Module) -> list[_Layer]:
        found: list[_Layer] = []
        self._gather(module, found)
        return found

    def _gather(self, module: nn.Module, found: list[_Layer]) -> None:
        layer = self.layer(module)
        if layer is None:
            for child in module._modules.values():
                if child is not None:
                    self._gather(child, found)
        elif layer.width_out is not None:
            found.append(layer)


class _Class(NamedTuple):
    """A class that says where its layers' channels are.

    Attributes:
        declaration: what it says.
        channels: where they are.
        moves: whether its forward is not torch's, and may move dimensions.
    """

    declaration: Declaration
    channels: Channels
    moves: bool

    @classmethod
    def of(cls, kind: type[nn.Module]) -> _Class | None:
        found = declaration_of(kind)
        if found is None:
            return None
        return cls(found, _channels_at(found.place, found.unbatched), found.own_forward and found.may_move)


class _Layer(NamedTuple):
    """A layer whose class says where its channels are; its widths are read when they are asked for."""

    cls: _Class
    module: nn.Module

    @property
    def channels(self) -> Channels:
        return self.cls.channels

    @property
    def width_in(self) -> int | None:
        return self.cls.declaration.width_in(self.module)

    @property
    def width_out(self) -> int | None:
        return self.cls.declaration.width_out(self.module)


def channels_of(
    path: Sequence[nn.Module], before: bool = False, given: int | None = None, around: Around | None = None
) -> Channels:
    """Return where the channels of a layer's activation are.

    Args:
        path: the modules from the root to the layer, the layer last.
        before: whether the activation is the layer's input rather than its output.
        given: the dimension that the user gave, instead of what the layer shows.
        around: what was found out about other layers of the model, where there are any.

    Examples:
        >>> import torch
        >>> convolution = nn.Conv2d(3, 8, 3)
        >>> channels_of([convolution]).of(convolution(torch.zeros(2, 3, 9, 9)))
        -3
        >>> channels_of([nn.Linear(3, 8)]).of(torch.zeros(2, 9, 9, 8))
        -1
    """
    if given is not None:
        return known(given)
    around = around or Around()
    module = path[-1]
    while _is_sequential(module) and (inner := _end_of(module, before)) is not None:
        path, module = [*path, inner], inner
    own = _own(module, before, around)
    if own is not None:
        return own
    width = _width_of_weights(module)
    if width is not None:
        return near(LAST, width, {True})
    return _of_neighbour(path, around)


def _own(module: nn.Module, before: bool, around: Around) -> Channels | None:
    """Return what the module's class, or the layers in it, show."""
    layer = around.layer(module)
    if layer is not None and not layer.cls.moves:
        return layer.channels
    layers = around.layers(module)
    if not layers:
        return None
    nearest = layers[0 if before else -1]
    width = nearest.width_in if before else nearest.width_out
    return of_container(nearest.channels, width or None, around.kinds(module))  # 0: it is lazy, and not known yet


def _of_neighbour(path: Sequence[nn.Module], around: Around) -> Channels:
    """Return the channels of a module that leaves dimensions as they are: those of the layer that is called before it.

    The order of calls is known in an ``nn.Sequential``; in another module it is probably that of registration.
    """
    in_order = _is_elementwise(path[-1])
    for depth in range(len(path) - 1, 0, -1):
        parent, child = path[depth - 1], path[depth]
        in_order = in_order and _is_sequential(parent)
        if in_order and (earlier := around.called(parent).last_before(child)) is not None:
            return channels_of([*path[:depth], earlier], around=around)
        if in_order and (later := around.called(parent).first_after(child)) is not None:
            return channels_of([later], before=True, around=around)
        if (holder := around.holding(parent).last_before(child)) is not None:
            layer = around.layers(holder)[-1]
            return near(layer.channels, layer.width_out, around.kinds(parent))
    return BY_DIMENSIONS


def _kinds(layers: Iterable[_Layer]) -> set[bool]:
    """Return whether a layer has its channels last, for each of some layers; both where it may move dimensions."""
    return {kind for one in layers for kind in ((one.channels is LAST,) if not one.cls.moves else (True, False))}


def _is_elementwise(module: nn.Module) -> bool:
    return isinstance(module, _ELEMENTWISE)


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _end_of(sequential: nn.Module, before: bool) -> nn.Module | None:
    """Return the module at the beginning or the end that is not elementwise; ``None`` if there is none."""
    children = list(sequential.children())
    ordered = children if before else children[::-1]
    return next((child for child in ordered if not _is_elementwise(child)), None)


def _channels_at(place: int, unbatched: bool) -> Channels:
    if place == layer_classes.LAST:
        return LAST
    return first_after(None if place == layer_classes.AFTER_SAMPLES else place, unbatched)


def _width_of_weights(module: nn.Module) -> int | None:
    """Return the number of channels that all parameters of a module without children have, as in norms of users."""
    parameters = list(module.parameters())
    if not parameters or any(map(is_lazy, parameters)) or any(True for _ in module.children()):
        return None
    shapes = [parameter.shape for parameter in parameters]
    width = max(shapes[0], default=0)
    return width if all(max(shape, default=0) == shape.numel() == width for shape in shapes) else None
