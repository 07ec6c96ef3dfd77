"""The place of the tokens in an activation of four dimensions: several streams of one text, or a token in parts.

Such an activation is a sequence of the pass's tokens if ``(B, T)`` stands in one place among its leading dimensions:
first, ``(B, T, S, D)``, or behind the streams, ``(S, B, T, D)``. Anything else, such as ``(B, H, T, D)``, is not one.
"""

from __future__ import annotations

from itertools import combinations

from torch import Tensor

from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts

__all__ = ["of_all_streams", "one_stream", "place_of_tokens"]


def place_of_tokens(x: Tensor, facts: PassFacts, axes: Axes = Axes.USUAL) -> int | None:
    """Return the dimension of the samples in an activation whose next dimension holds the tokens.

    Args:
        x: an activation of four dimensions or more.
        facts: the facts of the pass.
        axes: the order of the layer's dimensions, if its class shows it.

    Returns:
        0 or 1; ``None`` if the shape shows no place, or several: with as many streams as samples, it does not show
        which of both come first.
    """
    lead, shape = x.shape[:-1], (facts.rows, facts.tokens)
    if axes.tokens_first:
        return None
    if axes.streams is not None:
        return axes.streams if lead[axes.streams : axes.streams + 2] == shape else None
    places = [pair for pair in combinations(range(len(lead)), 2) if (lead[pair[0]], lead[pair[1]]) == shape]
    return places[0][0] if places in ([(0, 1)], [(1, 2)]) else None


def one_stream(x: Tensor, place: int) -> Tensor:
    """Return one stream of an activation, ``(B, T, D)`` if it has four dimensions."""
    return x[0] if place == 1 else x[:, :, 0]


def of_all_streams(mask: Tensor, x: Tensor, place: int) -> Tensor:
    """Return a mask ``(B, T)`` for all streams of an activation: ``(S, B, T)`` where these come first."""
    return mask if place == 0 else mask.expand(len(x), -1, -1)
