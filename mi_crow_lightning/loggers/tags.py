"""The name under which a reading is found in a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["STAGES", "TaggedReadings", "stage_segment", "tag", "tag_by_block"]

TaggedReadings: TypeAlias = Sequence[tuple[str, Reading]]
"""The readings of one step, each with the tag it is written under."""

# Training has no segment of its own: its tags stay short, and they are the ones most often looked at.
_SEGMENTS = {"train": "", "validate": "val/", "test": "test/", "predict": "predict/"}

STAGES: tuple[str, ...] = tuple(_SEGMENTS)
"""The stages a tag can be made for."""


def tag(reading: Reading, stage: str, prefix: str = "activations") -> str:
    """Name a reading: ``<prefix>_<name>/<layer>``, and ``<prefix>/<layer>`` for a layer's ``histogram``.

    TensorBoard makes one section of all that stands before the first slash, so each statistic is one
    section with a chart per layer.

    Args:
        reading: what is to be named.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``. The last three put ``val/``,
            ``test/`` or ``predict/`` before the layer.
        prefix: the detector's name; two detectors that measure the same layer need distinct ones.

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
    """
    segment = stage_segment(stage)
    # The value decides, not `kind`: a detector that forgot to name the kind still gets the right picture.
    of_layer = isinstance(reading.value, Histogram) and reading.name == "histogram"
    section = prefix if of_layer else f"{prefix}_{reading.name}"
    return f"{section}/{segment}{reading.layer}"


def tag_by_block(name: str, stage: str, prefix: str) -> str:
    """Name a curve over the blocks.

    Examples:
        >>> tag_by_block("auroc", "validate", "contrast")
        'contrast_auroc/by_block/val'
    """
    return f"{prefix}_{name}/by_block/{stage_segment(stage)}".rstrip("/")


def stage_segment(stage: str) -> str:
    """Return what a stage puts before the layer's name, e.g. ``"val/"``; empty for training.

    Args:
        stage: one of `STAGES`.

    Raises:
        ValueError: ``stage`` is not one of them.

    Examples:
        >>> stage_segment("validate")
        'val/'
    """
    if stage not in _SEGMENTS:
        raise ValueError(f"unknown stage {stage!r}; allowed: {', '.join(map(repr, STAGES))}")
    return _SEGMENTS[stage]
