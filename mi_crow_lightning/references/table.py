"""Drift as a table: one row for each layer, with the samples that moved most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, legible
from mi_crow_lightning.figures.drift import plot_drift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DriftTable", "LayerDrift", "SampleDrift", "SampleTable"]


class LayerDrift(NamedTuple):
    """How far the activations of one layer are from those of a reference.

    Attributes:
        layer: the layer's name.
        block: the block that the layer is or lies in; ``None`` where that is not known.
        cosine: the mean over tokens of the cosine with the same token of the reference.
        cosine_min: the smallest cosine.
        norm_ratio: the mean over tokens of ``norm(x) / norm(reference)``.
        cka: linear CKA, from 0 to 1 (an estimate may lie a little outside).
        angle: the largest principal angle between the leading components of both, in degrees.
        tokens: the number of tokens.
    """

    layer: str
    block: int | None
    cosine: float
    cosine_min: float
    norm_ratio: float
    cka: float
    angle: float
    tokens: int


class SampleDrift(NamedTuple):
    """How far one sample's tokens are from those of a reference at one layer.

    Attributes:
        layer: the layer's name.
        cosine: the mean over the sample's tokens.
        dataloader_idx: the dataloader that the sample is from.
        sample: its number in the loader's order, from 0; ``None`` where only the batch is known.
        step: the number of steps before its batch; ``None`` where that is not known.
        batch_idx: the index of its batch in the epoch; ``None`` where that is not known.
        row: its row in the batch; ``None`` where that is not known.
    """

    layer: str
    cosine: float
    dataloader_idx: int
    sample: int | None
    step: int | None
    batch_idx: int | None
    row: int | None


class SampleTable(Table[SampleDrift]):
    """The samples that moved most: a list of `SampleDrift`, for each layer those with the smallest cosine first."""

    _columns: ClassVar[Mapping[str, str]] = {
        "layer": NAMES,
        "cosine": NUMBERS,
        "dataloader_idx": WHOLE,
        "sample": WHOLE_OR_NONE,
        "step": WHOLE_OR_NONE,
        "batch_idx": WHOLE_OR_NONE,
        "row": WHOLE_OR_NONE,
    }

    def at(self, layer: str) -> SampleTable:
        """Return the samples at one layer."""
        return SampleTable([row for row in self if row.layer == layer])

    def summary(self) -> str:
        """Return how many there are, in one line."""
        return f"{count(len(self), 'sample')} that moved most"


class DriftTable(Table[LayerDrift]):
    """How far each layer moved from a reference: a list of `LayerDrift`.

    ``to_pandas()`` has the columns ``block``, ``layer``, ``cosine``, ``cosine_min``, ``norm_ratio``, ``cka``, ``angle``
    and ``tokens``.

    Args:
        rows: one for each layer.
        samples: those that moved most, at each layer.
        logit_kl: the mean over tokens of the KL divergence of the model's next-token distribution from the
            reference's, in nats; ``None`` if the model's output has no logits.

    Examples:
        >>> first = LayerDrift("h.0", 0, 1.0, 1.0, 1.0, 1.0, 0.0, 8)
        >>> DriftTable([first, LayerDrift("h.1", 1, 0.9, 0.5, 1.1, 0.8, 9.0, 8)])
        <drift at 2 layers: most at 'h.1', with cosine 0.9, norm ratio 1.1, CKA 0.8 and angle 9 degrees over 8 tokens>
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "layer": NAMES,
        "cosine": NUMBERS,
        "cosine_min": NUMBERS,
        "norm_ratio": NUMBERS,
        "cka": NUMBERS,
        "angle": NUMBERS,
        "tokens": WHOLE,
    }

    def __init__(
        self, rows: Iterable[LayerDrift] = (), samples: Iterable[SampleDrift] = (), logit_kl: float | None = None
    ) -> None:
        super().__init__(rows)
        self.samples = SampleTable(samples)
        self.logit_kl = logit_kl

    def moved_most(self) -> LayerDrift:
        """Return the row with the smallest mean cosine.

        Raises:
            ValueError: there are no rows.
        """
        if not self:
            raise ValueError("the table has no rows: no layer was compared")
        return min(self, key=lambda row: row.cosine)

    def drivers(self, layer: str | None = None) -> SampleTable:
        """Return the samples that moved most at a layer; left out, at the layer that moved most.

        Raises:
            ValueError: there are no rows, or none of that layer.
        """
        layers = [row.layer for row in self]
        if layer is not None and layer not in layers:
            raise not_known("layer", layer, layers)
        return self.samples.at(self.moved_most().layer if layer is None else layer)

    def summary(self) -> str:
        """Return which layer moved most, in one line."""
        if not self:
            return "drift: no layers"
        most, layers = self.moved_most(), count(len(self), "layer")
        numbers = f"cosine {most.cosine:.4g}, norm ratio {most.norm_ratio:.4g}, CKA {most.cka:.4g}"
        logits = "" if self.logit_kl is None else f"; logits: KL {self.logit_kl:.4g} nats"
        return (
            f"drift at {layers}: most at {legible(most.layer)!r}, with {numbers} and angle {most.angle:.3g} degrees "
            f"over {count(most.tokens, 'token')}{logits}"
        )

    def plot(self, *, ax: Any = None) -> tuple[Figure, Axes]:
        """Draw the rows over the layers, see `mi_crow_lightning.figures.plot_drift`."""
        return plot_drift(self, ax=ax)
