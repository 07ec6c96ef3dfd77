"""Warnings of directions that a few tokens or one channel make: they separate texts, and steer by something else.

A massive token need not be the first: at position 1 of 8 in 40 texts it made two thirds of a direction, whose AUROC was
1.00 as before.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mi_crow_lightning._warned import warn
from mi_crow_lightning.warnings import DoubtfulVectorWarning

__all__ = ["LEAST_TOKENS", "is_dominated", "warn_of_dominated_means", "warn_of_one_channel"]

LEAST_TOKENS = 4
"""How many tokens a text needs for one to be too many of them."""
_OF_A_TEXT = 0.5  # of the sum of norms, held by one token
_OF_TEXTS = 0.05
_OF_A_VECTOR = 0.3  # of the squared norm, held by one channel
_LEAST_CHANNELS = 64  # with fewer, a channel of an ordinary vector may hold as much


def is_dominated(largest: Tensor, total: Tensor, counts: Tensor) -> Tensor:
    """Return whether one token makes most of each text's mean.

    Args:
        largest: ``(B,)``, the largest norm of a token of each text.
        total: ``(B,)``, the sum of the norms.
        counts: ``(B,)``, how many tokens it has.
    """
    return (largest > _OF_A_TEXT * total) & (counts >= LEAST_TOKENS)


def warn_of_dominated_means(dominated: Mapping[str, int], texts: int) -> None:
    """Warn if one token dominates the means of some texts.

    Args:
        dominated: in how many texts, by layer.
        texts: how many there are.
    """
    worst = max(dominated, key=dominated.__getitem__, default=None)
    if worst is None or dominated[worst] < max(1.0, _OF_TEXTS * texts):
        return
    layers = f"{sum(count > 0 for count in dominated.values())} of {len(dominated)} layers"
    warn(
        f"in {dominated[worst]} of {texts} texts one token has more than half of the sum of all norms at {worst!r} (in "
        f"some texts at {layers}): a massive token, which dominates the text's mean and may make the direction. Give "
        "tokens='ordinary', or combine it: Tokens('ordinary') & Tokens('prompt')",
        DoubtfulVectorWarning,
        stacklevel=2,
    )


def warn_of_one_channel(directions: Mapping[str, Tensor]) -> None:
    """Warn if one channel makes a large part of a direction.

    Args:
        directions: ``(D,)`` by layer.
    """
    found: list[tuple[float, int, str]] = []
    for layer, direction in directions.items():
        squares = direction.double() ** 2
        if len(squares) >= _LEAST_CHANNELS and bool(squares.isfinite().all()) and bool(squares.any()):
            channel = int(squares.argmax())
            found.append((float(squares[channel] / squares.sum()), channel, layer))
    above = [one for one in found if one[0] > _OF_A_VECTOR]
    if not above:
        return
    share, channel, layer = max(above)
    warn(
        f"channel {channel} holds {share:.0%} of the squared norm of the direction at {layer!r} (at {len(above)} of "
        f"{len(directions)} layers one channel holds more than {_OF_A_VECTOR:.0%}). That is mostly the trace of "
        "massive tokens: a direction that separates texts by them steers by nothing that they mean. Give "
        "tokens='ordinary' and compare",
        DoubtfulVectorWarning,
        stacklevel=2,
    )
