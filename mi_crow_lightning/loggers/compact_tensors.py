"""Compact tensors: the numbers of all layers as one tensor per statistic, each histogram as a tensor of its counts.

A statistic is a float32 tensor ``(L,)``, one number per layer, ``nan`` where a layer gave none. A histogram is a
tensor ``(bins,)`` of int64 counts (float64 if they are not whole numbers). The events of a step are a tensor of texts,
see `mi_crow_lightning.loggers.run_events`. The **schema** says what the positions mean. It is JSON with the layers and,
where known, their blocks; of a histogram with the layer, its block and the bin edges. It is written beside a tensor's
first values. The tag ends in a hash of the schema, so that a run whose layers or edges change continues under another
tag instead of being misread. `read_compact` reads the tensors back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.drawing import check_edges
from mi_crow_lightning.loggers.run_events import event_schema, texts_of
from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
from mi_crow_lightning.loggers.tags import tag
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["PLUGIN", "VERSION", "CompactTensor", "compact"]

PLUGIN = "mi_crow_lightning"
"""The plugin name that TensorBoard stores with the tensors."""

VERSION = 1
"""The version of the schema, written in each schema."""


class CompactTensor(NamedTuple):
    """One tensor of a step.

    Attributes:
        tag: the tag of the readings, with ``#<hash>`` in place of the layer, or after the layer for a histogram.
        values: ``(L,)`` float32, or ``(bins,)`` int64 or float64, or ``(N, 4)`` texts of events.
        schema: the meaning of the positions, as JSON.
    """

    tag: str
    values: NDArray[Any]
    schema: str


def compact(step: LoggedStep) -> list[CompactTensor]:
    """Return the readings of a step, and its events, as compact tensors, without histograms that hold no element.

    Args:
        step: the readings.

    Examples:
        >>> two = [Reading("h.0", "rms", 1.0), Reading("h.2", "rms", 3.0)]
        >>> (tensor,) = compact(LoggedStep("train", 7, [DetectorReadings(two, ("h.0", "h.1", "h.2"), "h.*")]))
        >>> tensor.tag, tensor.values
        ('activations_rms/#...', array([ 1., nan,  3.], dtype=float32))
        >>> json.loads(tensor.schema)["layers"]
        ['h.0', 'h.1', 'h.2']
    """
    tensors = [
        tensor for detector in step.detectors for tensor in _of_detector(detector, step.stage, step.dataloader_idx)
    ]
    if step.events:
        address, schema = event_schema(step.stage, step.noted_by, VERSION)
        tensors.append(CompactTensor(address, texts_of(step.events), schema))
    return tensors


def _of_detector(detector: DetectorReadings, stage: str, dataloader_idx: int | None) -> Iterator[CompactTensor]:
    by_name: dict[str, dict[str, float]] = {}
    blocks = detector.block_of
    for layer, name, value, _ in detector.readings:
        if not isinstance(value, Histogram):
            by_name.setdefault(name, {})[layer] = value
        elif any(value.counts):
            block = blocks.get(layer)
            address, schema = _histogram_schema(detector.prefix, name, stage, layer, value.edges, dataloader_idx, block)
            check_edges(value, address)
            yield CompactTensor(address, _counts(value.counts), schema)
    watched = frozenset(detector.layers)
    for name, by_layer in by_name.items():
        # A reading may be of something other than a watched layer, such as the total of all.
        layers = detector.layers if by_layer.keys() <= watched else tuple(by_layer)
        of_layers = detector.blocks if layers is detector.layers else tuple(map(blocks.get, layers))
        address, schema = _statistic_schema(detector.prefix, name, stage, layers, dataloader_idx, of_layers)
        with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, as in a scalar
            values = np.array([by_layer.get(layer, np.nan) for layer in layers]).astype(np.float32)
        yield CompactTensor(address, values, schema)


def _counts(counts: tuple[float, ...]) -> NDArray[Any]:
    numbers = np.array(counts, dtype=np.float64)
    whole = ((np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**63)).all()
    # In the file a small whole number takes one to three bytes, and every whole number is kept exactly.
    return np.array(counts, dtype=np.int64) if whole else numbers


# Steps repeat the same schemas, and the schemas of histograms are long.
@lru_cache(maxsize=8192)
def _statistic_schema(
    prefix: str,
    name: str,
    stage: str,
    layers: tuple[str, ...],
    dataloader_idx: int | None,
    blocks: tuple[int | None, ...],
) -> tuple[str, str]:
    """Return the tag and the schema of a statistic."""
    more = _of_loader(dataloader_idx) | ({"blocks": blocks} if any(block is not None for block in blocks) else {})
    schema, digest = _json(kind="statistic", prefix=prefix, name=name, stage=stage, layers=layers, **more)
    return tag(Reading(f"#{digest}", name, 0.0), stage, prefix), schema


@lru_cache(maxsize=8192)
def _histogram_schema(
    prefix: str,
    name: str,
    stage: str,
    layer: str,
    edges: tuple[float, ...],
    dataloader_idx: int | None,
    block: int | None,
) -> tuple[str, str]:
    """Return the tag and the schema of a layer's histogram."""
    more = _of_loader(dataloader_idx) | ({} if block is None else {"block": block})
    schema, digest = _json(kind="histogram", prefix=prefix, name=name, stage=stage, layer=layer, edges=edges, **more)
    empty = Histogram((), (), 0.0, 0.0, 0.0, 0.0, 0.0)
    return f"{tag(Reading(layer, name, empty), stage, prefix, dataloader_idx)}#{digest}", schema


def _of_loader(dataloader_idx: int | None) -> dict[str, Any]:
    return {} if dataloader_idx is None else {"dataloader_idx": dataloader_idx}


def _json(**schema: Any) -> tuple[str, str]:
    text = json.dumps({"version": VERSION, **schema}, separators=(",", ":"))
    return text, hashlib.sha256(text.encode()).hexdigest()[:8]
