"""How well numbers separate two classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, legible
from mi_crow_lightning.figures.separability import plot_separability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Separability", "SeparabilityTable", "separability"]


class Separability(NamedTuple):
    """The distance between the held-out samples of two classes at one layer, along one direction.

    Attributes:
        layer: the layer's name.
        auroc: the area under the ROC curve: the probability that a positive sample projects further than a
            negative one, with ties counted half. 1 is perfect, 0.5 is chance.
        n: the number of samples.
        d_prime: the difference of the class means in units of the root of the mean class variance. It ranks layers
            where ``auroc`` is 1 at several.
        block: the block that the layer is or lies in; ``None`` where that is not known.
    """

    layer: str
    auroc: float
    n: int
    d_prime: float
    block: int | None = None


class SeparabilityTable(Table[Separability]):
    """The separability of two classes by layer: a list of `Separability`.

    ``to_pandas()`` has the columns ``block``, ``layer``, ``auroc``, ``d_prime`` and ``n``.

    Examples:
        >>> SeparabilityTable([Separability("h.2", 0.75, 8, 1.0, 2), Separability("h.3", 1.0, 8, 2.5, 3)])
        <separability at 2 layers: best 'h.3', with auroc 1 and d' 2.5 on 8 samples>
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "layer": NAMES,
        "auroc": NUMBERS,
        "d_prime": NUMBERS,
        "n": WHOLE,
    }

    def best(self) -> Separability:
        """Return the row with the largest ``auroc``; among equals, with the largest ``d_prime``."""
        return max(self, key=lambda row: (row.auroc, row.d_prime))

    def summary(self) -> str:
        """Return which layer separates best, in one line."""
        if not self:
            return "separability: no layers"
        best, layers = self.best(), count(len(self), "layer")
        with_numbers = f"with auroc {best.auroc:.3g} and d' {best.d_prime:.3g} on {count(best.n, 'sample')}"
        return f"separability at {layers}: best {legible(best.layer)!r}, {with_numbers}"

    def plot(self, *, ax: Any = None) -> tuple[Figure, Axes]:
        """Draw both scores over the layers, see `mi_crow_lightning.figures.plot_separability`."""
        return plot_separability(self, ax=ax)


def separability(layer: str, scores: Tensor, label: Tensor) -> Separability:
    """Measure how well ``scores`` separate the classes.

    Args:
        layer: the layer's name.
        scores: ``(N,)``, for example projections on a direction.
        label: ``(N,)`` integers, 0 or 1.

    Raises:
        ValueError: a class is missing, or a score is not finite.

    Examples:
        >>> separability("h.3", torch.tensor([100.0, 300.0, 200.0, 400.0]), torch.tensor([0, 0, 1, 1]))
        Separability(layer='h.3', auroc=0.75, n=4, d_prime=1.0, block=None)
    """
    from torchmetrics.functional.classification import binary_auroc  # loads transformers

    scores, positive = scores.double(), label == 1
    if positive.all() or not positive.any():
        raise ValueError(
            f"{layer!r}: both classes are needed, and of {len(label)} samples {int(positive.sum())} are positive: give "
            "samples of both"
        )
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).sum())
        raise ValueError(f"{layer!r}: {bad} of {len(scores)} scores are not finite: leave those samples out")
    # Only the order counts. torchmetrics would put scores outside [0, 1] through a sigmoid, where those beyond 40
    # become equal.
    order = torch.unique(scores, return_inverse=True)[1].double() / len(scores)
    groups = scores[positive], scores[~positive]
    spread = torch.stack([group.var(unbiased=False) for group in groups]).mean().sqrt()
    d_prime = (groups[0].mean() - groups[1].mean()) / spread
    return Separability(layer, binary_auroc(order, positive.long()).item(), len(scores), d_prime.item())
