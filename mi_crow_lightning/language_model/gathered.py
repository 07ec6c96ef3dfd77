"""Gather what the detectors on a model hold, by layer, as a store keeps it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.store.store import TensorMetadata

__all__ = ["clear", "gathered"]


def gathered(
    layers: Layers, detectors: Iterable[Detector] | None = None
) -> tuple[dict[str, dict[str, Any]], TensorMetadata]:
    """Return ``metadata`` and ``tensor_metadata`` of detectors, by layer, then by key.

    Of a list of tensors, as ``keep="all"`` holds it, each has a key with its number: ``"activations_0"``.

    Args:
        layers: the registry that the detectors are in.
        detectors: the detectors; by default all.

    Raises:
        ValueError: two detectors hold the same key of the same layer.
    """
    metadata: dict[str, dict[str, Any]] = {}
    tensors: TensorMetadata = {}
    for detector in _detectors(layers) if detectors is None else detectors:
        names = [site.match.name for site in layers.sites(detector)]
        _add(metadata, _by_layer(detector.metadata, names, detector), detector)
        _add(tensors, _one_by_one(_by_layer(detector.tensor_metadata, names, detector)), detector)
    return metadata, tensors


def clear(layers: Layers) -> None:
    """Let every detector forget its metadata and its tensors."""
    for detector in _detectors(layers):
        getattr(detector, "clear_captured", lambda: None)()  # what it counts beside them
        detector.metadata.clear()
        detector.tensor_metadata.clear()


def _detectors(layers: Layers) -> list[Detector]:
    return [hook for hook in layers.get_detectors() if isinstance(hook, Detector)]


def _by_layer(held: dict[str, Any], names: Collection[str], detector: Detector) -> Iterator[tuple[str, str, Any]]:
    """Go through ``(layer, key, value)``. What a detector on several layers holds of all of them is under its ID."""
    for key, value in held.items():
        if len(names) > 1 and isinstance(value, dict) and set(value) <= set(names):
            yield from ((layer, key, one) for layer, one in value.items())
        else:
            yield (next(iter(names)) if len(names) == 1 else detector.id), key, value


def _one_by_one(held: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for layer, key, value in held:
        if isinstance(value, list):
            yield from ((layer, f"{key}_{i}", one) for i, one in enumerate(value))
        else:
            yield layer, key, value


def _add(found: dict[str, dict[str, Any]], held: Iterable[tuple[str, str, Any]], detector: Detector) -> None:
    for layer, key, value in held:
        of_layer = found.setdefault(layer, {})
        if key in of_layer:
            raise ValueError(
                f"two detectors hold {key!r} of {layer!r}, and a store keeps one: the second is {detector!r}. Save the "
                "batches of one before the other is registered, or let your own detector use another key"
            )
        of_layer[key] = value
