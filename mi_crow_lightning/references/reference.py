"""The reference: sketches of some tokens at each layer, with the model, the choice of tokens and the loader's size."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import one_line, place, whole_number
from mi_crow_lightning._foreign_files import one_error
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._tables import count, listed_names
from mi_crow_lightning.errors import ReferenceFileError, ReferenceMismatch
from mi_crow_lightning.metrics.drift import (
    LayerChange,
    compared,
    empty_row,
    merge_drift,
    pair_row,
    partial_divergence,
    read_change,
)
from mi_crow_lightning.references.file import read, write
from mi_crow_lightning.references.sketches import Sketches, sample_of
from mi_crow_lightning.references.table import DriftTable, LayerDrift, SampleDrift

__all__ = ["LOGITS", "DriftReference", "as_row", "drift", "refuse_other_sketches", "same_layer"]

LOGITS = "logits"
"""The name under which a reference keeps the model's next-token distributions."""

_SAMPLES = 10  # of each layer, in a table


class DriftReference:
    """Sketches of some of the tokens that a model saw in one pass over a loader. `DriftDetector` makes it.

    Args:
        layers: by name of the layer, what is kept there; under `LOGITS` the next-token distributions.
        matrices: by width of a layer, ``(D, k)``, what its tokens were multiplied by.
        model: name of the model.
        tokens: which positions were read, as text.
        widths: how wide each layer is.
        blocks: the block of each layer, where known.
        samples: how many samples the loader gave.
        counts: how many tokens were seen at each layer, kept or not.

    Raises:
        ReferenceFileError: a file's parts do not fit one another.

    Examples:
        >>> DriftReference({}, {}, model="gpt2", samples=8)
        DriftReference(model='gpt2', 0 layers, 0 tokens of 8 samples)
    """

    def __init__(
        self,
        layers: Mapping[str, Sketches],
        matrices: Mapping[int, Tensor],
        *,
        model: str = "",
        tokens: str = "all",
        widths: Mapping[str, int] | None = None,
        blocks: Mapping[str, int | None] | None = None,
        samples: int = 0,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.layers = {layer: sketches.cpu() for layer, sketches in layers.items() if layer != LOGITS}
        self.logits = layers[LOGITS].cpu() if LOGITS in layers else None
        self.matrices = {width: matrix.detach().cpu() for width, matrix in matrices.items()}
        self.model, self.tokens = str(model), str(tokens)
        self.widths, self.blocks = dict(widths or {}), dict(blocks or {})
        self.samples = whole_number("samples", samples, 0)
        self.counts = dict(counts or {})

    @property
    def size(self) -> int:
        """How many numbers a sketch has, ``k``."""
        return next((matrix.shape[1] for matrix in self.matrices.values()), 0)

    @property
    def nbytes(self) -> int:
        """The bytes that its tensors take."""
        held = [*self.layers.values(), *([self.logits] if self.logits is not None else [])]
        parts = [part for sketches in held for part in sketches]
        return sum(part.numel() * part.element_size() for part in (*parts, *self.matrices.values()))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the reference to one safetensors file, whole or not at all.

        Raises:
            OSError: the file cannot be written; its earlier content is kept.
        """
        facts = {name: getattr(self, name) for name in ("model", "tokens", "widths", "blocks", "samples", "counts")}
        logits = {LOGITS: self.logits} if self.logits is not None else {}
        write(place("path", path), self.layers | logits, self.matrices, facts)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> DriftReference:
        """Read a reference that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ReferenceFileError: it holds something else, or is damaged.
        """
        where = Path(place("path", path))
        layers, matrices, facts = read(where)
        with one_error(where, ReferenceFileError):
            return cls(layers, matrices, **_checked_facts(facts))._consistent()

    def _consistent(self) -> DriftReference:
        """Refuse sketches that the matrices did not make."""
        if self.widths.keys() != self.layers.keys() or not set(self.widths.values()) <= self.matrices.keys():
            raise ValueError("it lacks the width of a layer, or the matrix of a width")
        sizes = {matrix.shape[1] for matrix in self.matrices.values()}
        sizes |= {sketches.values.shape[1] for sketches in self.layers.values()}
        if len(sizes) > 1:
            raise ValueError(f"its sketches have sizes {sorted(sizes)}, and all must have one")
        return self

    def __repr__(self) -> str:
        tokens = max((len(sketches.keys) for sketches in self.layers.values()), default=0)
        kept = f"{count(len(self.layers), 'layer')}, {count(tokens, 'token')} of {count(self.samples, 'sample')}"
        return f"DriftReference(model={cut(repr(self.model), 80)}, {kept})"


def drift(before: DriftReference, after: DriftReference, *, components: int = 4) -> DriftTable:
    """Compare two references of the same texts: how far each layer moved from one to the other.

    Args:
        before: the one that drift is measured from.
        after: the other.
        components: how many leading components the angle is between.

    Returns:
        One row for each layer, in the order of ``after``.

    Raises:
        TypeError: one is not a `DriftReference`.
        ReferenceMismatch: the layers, their widths, the sketches or the texts differ.
    """
    for name, value in (("before", before), ("after", after)):
        if not isinstance(value, DriftReference):
            raise TypeError(f"{name}={shown(value)} must be a DriftReference, such as DriftDetector.reference() gives")
    components = whole_number("components", components, 1)
    rows, samples = [], []
    for layer, sketches in after.layers.items():
        name, width = same_layer(layer, before), after.widths[layer]
        refuse_other_sketches(layer, width, after.matrices[width], name, before)
        other = before.layers[name]
        _refuse_other_texts(layer, sketches, other)
        change, cosines = _change(sketches, other, width, after.size, components)
        if change is not None:
            rows.append(as_row(layer, after.blocks.get(layer), change))
            samples += _samples(layer, sketches.keys, cosines)
    return DriftTable(rows, samples, _logit_kl(before, after))


def as_row(layer: str, block: int | None, change: LayerChange) -> LayerDrift:
    """Return a layer's row of a table."""
    return LayerDrift(
        layer, block, change.cosine, change.cosine_min, change.norm_ratio, change.cka, change.angle, change.tokens
    )


def same_layer(layer: str, reference: DriftReference) -> str:
    """Return the reference's name of a layer: the same one, or one that ends in the same way.

    Names differ in their beginning where a model stands inside another module.

    Raises:
        ReferenceMismatch: it has no such layer, or several.
    """
    if layer in reference.layers:
        return layer
    ends = [name for name in reference.layers if f".{name}".endswith(f".{layer}") or f".{layer}".endswith(f".{name}")]
    if len(ends) != 1:
        raise ReferenceMismatch(
            f"the reference has {len(ends)} layers of the name {layer!r}: it is of "
            f"{listed_names(reference.layers) or 'none'}. Watch the layers that the reference was made at."
        )
    return ends[0]


def _change(
    own: Sketches, other: Sketches, width: int, size: int, components: int
) -> tuple[LayerChange | None, Tensor]:
    norms = torch.stack([own.norms, other.norms]).double()
    cosines, ratios = compared(own.values.double(), other.values.double(), norms)
    if not len(cosines):
        return None, cosines
    row = pair_row(cosines, ratios, width, torch.cat([own.values, other.values], 1))
    return read_change(merge_drift(torch.stack([empty_row(size), row])), components), cosines


def refuse_other_sketches(layer: str, width: int, matrix: Tensor, name: str, reference: DriftReference) -> None:
    """Refuse to compare sketches that were made in another way.

    Args:
        layer: the layer.
        width: how wide it is.
        matrix: what its tokens are multiplied by.
        name: the layer's name in the reference.
        reference: the reference.

    Raises:
        ReferenceMismatch: the width, or the matrix, is another.
    """
    there = reference.widths[name]
    if there != width:
        raise ReferenceMismatch(
            f"{layer!r} is {width} wide, and the reference's {name!r} {there}: it is of another model"
        )
    if not torch.equal(reference.matrices[there], matrix.cpu()):
        raise ReferenceMismatch(
            f"the tokens at {layer!r} are not sketched as the reference's: make both with the same sketch_size and seed"
        )


def _refuse_other_texts(layer: str, own: Sketches, other: Sketches) -> None:
    if not torch.equal(own.keys, other.keys) or not torch.equal(own.ids, other.ids):
        raise ReferenceMismatch(
            f"the two references are of other texts at {layer!r}: {len(own.keys)} and {len(other.keys)} tokens are "
            "kept. Make both with the same loader, in the same order, and the same max_tokens."
        )


def _samples(layer: str, keys: Tensor, cosines: Tensor) -> list[SampleDrift]:
    """Return the samples with the smallest mean cosine."""
    loaders, samples = sample_of(keys)
    both, inverse = torch.stack([loaders, samples]).unique(dim=1, return_inverse=True)
    sums = torch.zeros(both.shape[1], dtype=torch.float64).index_add(0, inverse, cosines)
    means = sums / torch.bincount(inverse, minlength=both.shape[1])
    order = means.argsort()[:_SAMPLES].tolist()
    found = both.T.tolist()
    return [SampleDrift(layer, means[i].item(), found[i][0], found[i][1], None, None, None) for i in order]


def _logit_kl(before: DriftReference, after: DriftReference) -> float | None:
    own, other = after.logits, before.logits
    if own is None or other is None or not len(own.keys):
        return None
    _refuse_other_texts(LOGITS, own, other)
    same = own.indices[:, :, None] == other.indices[:, None, :]  # (n, m, m)
    of_other = other.values.gather(1, same.int().argmax(2))
    return partial_divergence(own.values, of_other, same.any(2)).mean().item()


def _checked_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a file."""
    found: dict[str, Any] = {}
    for name in ("model", "tokens"):
        found[name] = one_line(name, facts[name]) if facts[name] else ""
    found["samples"] = whole_number("samples", facts["samples"], 0)
    for name, least in (("counts", 0), ("widths", 1)):
        found[name] = {str(key): whole_number(name, value, least) for key, value in facts[name].items()}
    found["blocks"] = {
        str(key): None if value is None else whole_number("blocks", value, 0) for key, value in facts["blocks"].items()
    }
    return found
