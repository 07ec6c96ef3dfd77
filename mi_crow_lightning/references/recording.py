"""Making a reference from a stream of activations, and comparing a later stream with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from mi_crow_lightning._tables import count
from mi_crow_lightning.errors import ReferenceMismatch
from mi_crow_lightning.metrics.drift import compared, partial_divergence, sketch_matrix
from mi_crow_lightning.references.reference import LOGITS, DriftReference, refuse_other_sketches, same_layer
from mi_crow_lightning.references.sketches import Kept, Sketches, sample_of

__all__ = ["Comparison", "Matrices", "Pairs", "Recording", "sketched"]

LIKELIEST = 64
"""How many of the likeliest next tokens a reference keeps."""


class Matrices:
    """The matrices of sketches, by width, made when they are first asked for.

    Args:
        size: how many numbers a sketch has.
        seed: equal seeds give equal matrices.
        known: matrices that are there already, by width.
    """

    def __init__(self, size: int, seed: int, known: Mapping[int, Tensor] | None = None) -> None:
        self.size, self.seed = size, seed
        self.by_width: dict[int, Tensor] = dict(known or {})
        self._there: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def of(self, x: Tensor) -> Tensor:
        """Return the matrix ``(D, k)`` for tokens ``(n, D)``, where they are."""
        key = (x.shape[-1], x.device, x.dtype)
        if key not in self._there:
            with torch.inference_mode(False):
                self._there[key] = self.plain(x.shape[-1]).to(x.device, x.dtype)
        return self._there[key]

    def plain(self, width: int) -> Tensor:
        """Return the matrix ``(D, k)`` for tokens of a width, float32 on the CPU."""
        if width not in self.by_width:
            with torch.inference_mode(False):
                self.by_width[width] = sketch_matrix(width, self.size, self.seed)
        return self.by_width[width]


class Pairs(NamedTuple):
    """Tokens beside those of a reference.

    Attributes:
        places: ``(n,)``, which of the given tokens the reference has.
        cosines: ``(n,)``.
        ratios: ``(n,)``, of norms.
        sketches: ``(n, 2k)``, of the tokens and of the reference.
    """

    places: Tensor
    cosines: Tensor
    ratios: Tensor
    sketches: Tensor


class Recording:
    """A reference in the making.

    Args:
        matrices: of the sketches.
        most: how many tokens are kept at each layer.
    """

    def __init__(self, matrices: Matrices, most: int) -> None:
        self.matrices = matrices
        self._most = most
        self._kept: dict[str, Kept] = {}
        self._widths: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def add(self, layer: str, x: Tensor, keys: Tensor, ids: Tensor) -> None:
        """Add the tokens ``(n, D)`` of one pass."""
        kept, wanted = self._wanted(layer, keys)
        self._widths[layer] = x.shape[-1]
        norms, values = sketched(x.index_select(0, wanted), self.matrices)
        kept.add(Sketches(keys[wanted], ids[wanted], norms, values, keys.new_zeros(len(wanted), 0)))

    def add_logits(self, logits: Tensor, keys: Tensor, ids: Tensor) -> None:
        """Add the logits ``(n, V)`` of one pass."""
        kept, wanted = self._wanted(LOGITS, keys)
        likely = log_softmax(logits.index_select(0, wanted).float(), -1).topk(min(LIKELIEST, logits.shape[-1]), -1)
        unused = likely.values.new_zeros(len(wanted))
        kept.add(Sketches(keys[wanted], ids[wanted], unused, likely.values, likely.indices))

    def finished(self, model: str, tokens: str, blocks: Mapping[str, int | None], samples: int) -> DriftReference:
        """Return the reference."""
        found = {layer: kept.finished() for layer, kept in self._kept.items()}
        layers = {layer: sketches for layer, sketches in found.items() if sketches is not None}
        matrices = {width: self.matrices.by_width[width] for width in set(self._widths.values())}
        facts = dict(model=model, tokens=tokens, samples=samples, widths=self._widths, counts=self.counts)
        of_layers = {layer: blocks.get(layer) for layer in self._widths}
        return DriftReference(layers, matrices, blocks=of_layers, **facts)  # type: ignore[arg-type]

    def _wanted(self, layer: str, keys: Tensor) -> tuple[Kept, Tensor]:
        kept = self._kept.setdefault(layer, Kept(self._most))
        self.counts[layer] = self.counts.get(layer, 0) + len(keys)
        return kept, kept.wanted(keys)


class Comparison:
    """A stream of activations beside a reference, token by token.

    Args:
        reference: the reference.
        matrices: of the sketches.
    """

    def __init__(self, reference: DriftReference, matrices: Matrices) -> None:
        self.reference, self.matrices = reference, matrices
        self.counts: dict[str, int] = {}
        self._there: dict[tuple[str, torch.device], Sketches] = {}

    def pairs(self, layer: str, x: Tensor, keys: Tensor, ids: Tensor) -> Pairs:
        """Return the tokens ``(n, D)`` of one pass that the reference has.

        Raises:
            ReferenceMismatch: the reference lacks the layer, or is of another width or of other texts.
        """
        name = same_layer(layer, self.reference)
        if layer not in self.counts:
            refuse_other_sketches(layer, x.shape[-1], self.matrices.plain(x.shape[-1]), name, self.reference)
        places, held = self._held(layer, self.reference.layers[name], keys, ids)
        norms, values = sketched(x.index_select(0, places), self.matrices)
        others = held.values.to(values.dtype)
        cosines, ratios = compared(values, others, torch.stack([norms, held.norms.to(norms.dtype)]))
        return Pairs(places, cosines, ratios, torch.cat([values, others], 1))

    def divergences(self, logits: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
        """Return how far the next-token distributions of ``logits`` ``(n, V)`` are from the reference's, ``(m,)``."""
        if self.reference.logits is None:
            return logits.new_zeros(0)
        places, held = self._held(LOGITS, self.reference.logits, keys, ids)
        own = log_softmax(logits.index_select(0, places).float(), -1).gather(1, held.indices)
        return partial_divergence(own, held.values)

    def refuse_other_counts(self, tokens: str) -> None:
        """Refuse a loader that gave more or fewer tokens than the reference's.

        Args:
            tokens: which positions were read, as text.

        Raises:
            ReferenceMismatch: it did.
        """
        for layer, seen in self.counts.items():
            there = self.reference.counts.get(LOGITS if layer == LOGITS else same_layer(layer, self.reference), seen)
            if there != seen:
                why = "drift is measured on the loader that the reference was made with"
                if tokens != self.reference.tokens:
                    why = f"it was made with tokens={self.reference.tokens}, and tokens={tokens} are read now"
                raise ReferenceMismatch(
                    f"the loader gave {count(seen, 'token')} at {layer!r}, and the reference is of {there:,}: {why}"
                )

    def _held(self, layer: str, sketches: Sketches, keys: Tensor, ids: Tensor) -> tuple[Tensor, Sketches]:
        """Return the given tokens that the reference has, and what it has of them."""
        key = (layer, keys.device)
        if key not in self._there:
            self._there[key] = Sketches(*(part.to(keys.device) for part in sketches))
        self.counts[layer] = self.counts.get(layer, 0) + len(keys)
        places, found = self._there[key].places(keys)
        held = self._there[key].at(found)
        other = (ids[places] != held.ids).nonzero()[:, 0]
        if len(other):
            loader, sample = (int(one) for one in sample_of(keys[places[other[0]]]))
            raise ReferenceMismatch(
                f"sample {sample} of dataloader {loader} has other tokens than the reference's: drift is measured on "
                "the loader that the reference was made with, in the same order (shuffle=False)"
            )
        return places, held


def sketched(x: Tensor, matrices: Matrices) -> tuple[Tensor, Tensor]:
    """Return the norms ``(n,)`` of tokens ``(n, D)``, and their sketches ``(n, k)``."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.linalg.vector_norm(x, dim=-1), x @ matrices.of(x)
