"""Tags: the names of readings in a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["STAGES", "TaggedReadings", "stage_segment", "tag", "tag_by_block"]

TaggedReadings: TypeAlias = Sequence[tuple[str, Reading]]
"""The readings of one step, each with its tag."""

# Training has no segment, so that its tags stay short: they are looked at most.
_SEGMENTS = {"train": "", "validate": "val/", "test": "test/", "predict": "predict/"}

STAGES: tuple[str, ...] = tuple(_SEGMENTS)
"""The stages that a tag can be made for."""


def tag(reading: Reading, stage: str, prefix: str = "activations", dataloader_idx: int | None = None) -> str:
    """Name a reading: ``<prefix>_<name>/<layer>``, and ``<prefix>/<layer>`` for a layer's ``histogram``.

    TensorBoard makes a section of all tags with the same text before the first slash, so each statistic is one
    section with a chart per layer.

    Args:
        reading: the reading to name.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``. The last three put ``val/``, ``test/`` or
            ``predict/`` before the layer.
        prefix: the detector's name. Two detectors that measure the same layer need different names.
        dataloader_idx: the dataloader, where each has its own readings: it ends the tag, as with ``self.log``.

    Returns:
        The tag.

    Raises:
        ValueError: ``stage`` is not one of the four.

    Examples:
        >>> mean = Reading("h.0.mlp", "mean", 0.5)
        >>> tag(mean, "train")
        'activations_mean/h.0.mlp'
        >>> tag(mean, "validate", prefix="attention")
        'attention_mean/val/h.0.mlp'
        >>> tag(mean, "validate", dataloader_idx=1)
        'activations_mean/val/h.0.mlp/dataloader_idx_1'
    """
    segment = stage_segment(stage)
    # The value decides, not `kind`: a detector that forgot to set the kind still gets the right picture.
    of_layer = isinstance(reading.value, Histogram) and reading.name == "histogram"
    section = prefix if of_layer else f"{prefix}_{reading.name}"
    return f"{section}/{segment}{reading.layer}{_suffix(dataloader_idx)}"


def tag_by_block(name: str, stage: str, prefix: str, dataloader_idx: int | None = None) -> str:
    """Name a curve over the blocks.

    Examples:
        >>> tag_by_block("auroc", "validate", "contrast")
        'contrast_auroc/by_block/val'
    """
    return f"{prefix}_{name}/by_block/{stage_segment(stage)}".rstrip("/") + _suffix(dataloader_idx)


def _suffix(dataloader_idx: int | None) -> str:
    return "" if dataloader_idx is None else f"/dataloader_idx_{dataloader_idx}"


def stage_segment(stage: str) -> str:
    """Return the part of a tag before the layer's name, e.g. ``"val/"``; it is empty for training.

    Args:
        stage: one of `STAGES`.

    Raises:
        ValueError: ``stage`` is not one of `STAGES`.

    Examples:
        >>> stage_segment("validate")
        'val/'
    """
    if stage not in _SEGMENTS:
        raise ValueError(f"stage={stage!r} is not known: choose one of {', '.join(map(repr, STAGES))}")
    return _SEGMENTS[stage]
