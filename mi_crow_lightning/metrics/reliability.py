"""The figures that say how far a direction extracted from two classes can be relied on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, legible
from mi_crow_lightning.metrics.flips import LEVEL

__all__ = ["Reliability", "ReliabilityTable"]


class Reliability(NamedTuple):
    """How far the differences of pairs agree at one layer, and whether chance would make as much of them.

    Attributes:
        layer: the layer's name.
        coherence: the mean cosine of the differences of pairs with their mean, see `PairAgreement`; of ``n`` random
            differences about ``1 / sqrt(n)``. nan without pairs.
        pairwise: the mean cosine of two differences; of random ones 0 on average. nan without pairs.
        anti_steerable: the share of pairs whose own difference points against the mean of the others; of random ones
            about one half or more. nan without pairs.
        p_value: how often flipped signs of the differences (without pairs: labels dealt out again) make as much of a
            difference at any of the layers, see `p_values`. nan if there are too few to say.
        n: the number of pairs; without pairs, of samples.
        block: the block that the layer is or lies in; ``None`` where that is not known.
    """

    layer: str
    coherence: float
    pairwise: float
    anti_steerable: float
    p_value: float
    n: int
    block: int | None = None

    @property
    def is_random(self) -> bool:
        """Whether the direction is not better than chance; False also where there are too few samples to say."""
        return self.p_value >= LEVEL


class ReliabilityTable(Table[Reliability]):
    """The reliability of a direction by layer: a list of `Reliability`.

    ``to_pandas()`` has the columns ``block``, ``layer``, ``coherence``, ``pairwise``, ``anti_steerable``, ``p_value``
    and ``n``.

    Examples:
        >>> weak, strong = Reliability("h.2", 0.25, 0.01, 0.5, 0.4, 16), Reliability("h.3", 0.75, 0.6, 0.0, 0.01, 16)
        >>> ReliabilityTable([weak, strong])
        <reliability at 2 layers of 16 pairs: best 'h.3', with coherence 0.75; 1 layer not better than random>
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "layer": NAMES,
        "coherence": NUMBERS,
        "pairwise": NUMBERS,
        "anti_steerable": NUMBERS,
        "p_value": NUMBERS,
        "n": WHOLE,
    }

    def best(self) -> Reliability:
        """Return the row with the smallest ``p_value``; among equals, with the largest ``coherence``."""
        return min(self, key=lambda row: (_or(row.p_value, 1.0), -_or(row.coherence, 0.0)))

    def summary(self) -> str:
        """Return how reliable the best layer's direction is, in one line."""
        if not self:
            return "reliability: no layers"
        best, with_pairs = self.best(), not math.isnan(self[0].coherence)
        start = f"reliability at {count(len(self), 'layer')} of {count(best.n, 'pair' if with_pairs else 'sample')}"
        if with_pairs:
            start += f": best {legible(best.layer)!r}, with coherence {best.coherence:.3g}"
        random = sum(row.is_random for row in self)
        too_few = all(math.isnan(row.p_value) for row in self)
        return start + ("; too few to judge" if too_few else f"; {count(random, 'layer')} not better than random")


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value
