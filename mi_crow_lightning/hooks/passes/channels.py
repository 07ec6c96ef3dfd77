"""The dimension of an activation's channels, as far as the layer and the activation's shape show it.

A value is made once for each place of a hook, by `channels_of` in ``layer_channels.py``. Where the layer's class says
which dimension it is, a call only looks it up in a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from torch import Tensor

__all__ = ["BY_DIMENSIONS", "LAST", "Channels", "first_after", "known", "near", "of_container"]

Table: TypeAlias = tuple[int | None, ...]

_NUMBERS = range(65)  # of dimensions that a tensor of torch can have


@dataclass(frozen=True)
class Channels:
    """Where the channels of a layer's activation are. Dimensions are negative, counted from the end.

    Attributes:
        by_dims: the dimension for activations of 0, 1, 2, ... dimensions; ``None`` where the shape must show it.
        guess: the dimension to take where the shape does not show it either.
        width: how many channels there are, for the shape to show them; ``None`` if that is not known.
        images: the number of dimensions from which on the guess holds unless the shape contradicts it.
        must_agree: whether the shape, where it contradicts such a guess, shows nothing.
        is_quiet: whether the guess needs no warning where the shape shows nothing.
        given: the dimension that the user gave, if any.
    """

    by_dims: Table
    guess: tuple[int, ...]
    width: int | None = None
    images: int = len(_NUMBERS)
    must_agree: bool = False
    is_quiet: bool = False
    given: int | None = None

    def of(self, x: Tensor, pass_shape: tuple[int | None, int | None] = (None, None), width: int | None = None) -> int:
        """Return the dimension of the channels, negative; 0 if neither the layer nor the shape shows it.

        It is also 0 if ``x`` does not have the dimension that the user gave.

        Args:
            x: the activation.
            pass_shape: rows and tokens that the model was called with: an activation that begins so has tokens, and
                its channels are last.
            width: how many channels are expected, where the layer does not say.
        """
        dim = self.by_dims[x.dim()]
        return dim if dim is not None else self._by_shape(x, pass_shape, width)

    def _by_shape(self, x: Tensor, pass_shape: tuple[int | None, int | None], width: int | None) -> int:
        n = x.dim()
        if self.given is not None or x.is_nested:  # a nested tensor has no shape
            return 0 if self.given is not None else -1
        if tuple(x.shape[:2]) == pass_shape:
            return -1
        wanted = self.width if self.width is not None else width
        if wanted is None:
            return self.guess[n] if self.is_quiet else 0
        guess = self.guess[n]
        fits = [dim for dim in sorted({-1, 1 - n, guess}) if x.size(dim) == wanted]
        if n >= self.images and (guess in fits or not fits):
            return guess
        if len(fits) == 1 and not (n >= self.images and self.must_agree):
            return fits[0]
        return guess if self.is_quiet and not fits else 0


def known(dim: int) -> Channels:
    """Return the channels of a layer for which the user gave the dimension.

    Examples:
        >>> known(1).by_dims[:5]
        (None, None, -1, -2, -3)
    """
    table = tuple((dim if dim < 0 else dim - n) if -n <= dim < n else None for n in _NUMBERS)
    return Channels(table, (-1,) * len(_NUMBERS), given=dim)


@cache
def first_after(spatial: int | None, unbatched: bool = True) -> Channels:
    """Return the channels of a torch layer that has them before its positions.

    Args:
        spatial: how many dimensions of positions follow them; ``None`` where they are always dimension 1.
        unbatched: whether the layer takes one sample alone, too.

    Examples:
        >>> first_after(2).by_dims[3:5]
        (-3, -3)
        >>> first_after(1, unbatched=False).by_dims[2:4]
        (-1, -2)
    """
    if spatial is None:
        return _exact(lambda n: 1 - n)
    return _exact(lambda n: -1 - spatial if unbatched or n > spatial + 1 else -1)


def _exact(place: Callable[[int], int]) -> Channels:
    dims = tuple(place(n) if -n <= place(n) < 0 else -1 for n in _NUMBERS)
    return Channels(dims, dims)


LAST = Channels((-1,) * len(_NUMBERS), (-1,) * len(_NUMBERS))
"""The channels of ``nn.Linear`` and its kind."""

_GUESS = tuple(-3 if n == 4 else -1 for n in _NUMBERS)
BY_DIMENSIONS = Channels(tuple(-1 if n < 4 else None for n in _NUMBERS), _GUESS, is_quiet=True)
"""Where nothing is known of the layer: dimension 1 of four, otherwise the last."""


def of_container(like: Channels, width: int | None, kinds: set[bool]) -> Channels:
    """Return the channels of a module that holds layers, from the one of them that is nearest to its activation.

    A module may move dimensions, so that layer's number of channels must show where they are. Only these need no such
    proof: activations of up to three dimensions where all layers have their channels last, and images whose nearest
    layer has them before the positions.

    Args:
        like: the channels of that layer.
        width: how many it has.
        kinds: whether a layer has its channels last, for all layers in the module.
    """
    if kinds == {True}:
        return Channels(BY_DIMENSIONS.by_dims, like.guess, width, is_quiet=True)
    by_dims = tuple(-1 if n < 3 else None for n in _NUMBERS)
    return Channels(by_dims, like.guess, width, _images_of(like), kinds == {False})


def near(like: Channels, width: int | None, kinds: set[bool]) -> Channels:
    """Return the channels of a module without layers, such as an activation function, from a layer near it.

    Args:
        like: the channels of the layer that is called before it, as far as is known.
        width: how many it has.
        kinds: whether a layer has its channels last, for all layers of the module around them.
    """
    if like.guess[3] == -1 and kinds <= {True}:
        return Channels(BY_DIMENSIONS.by_dims, _GUESS, width, is_quiet=True)
    return of_container(like, width, kinds | {False})


def _images_of(like: Channels) -> int:
    """Return the least number of dimensions of a batch of images, or volumes, of a layer; a sequence is neither."""
    return next((n for n in (4, 5) if like.guess[n] == 1 - n), len(_NUMBERS))
