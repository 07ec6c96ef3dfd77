"""Features of sparse autoencoders in SAELens' format: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

``W_dec`` (d_sae, D) holds one decoder row for each feature, and the configuration the place in the model that the
autoencoder was trained on: ``metadata.hook_name`` since SAELens 6, ``hook_name`` or ``hook_point`` before (read in
SAELens 6.54.12, ``saes/sae.py``, ``loading/pretrained_sae_loaders.py``).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._foreign_files import Damaged, from_json, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.store.safetensors_file import Header, opened, read_header
from mi_crow_lightning.vectors.formats.hook_points import layer_of
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["from_sae"]

_CONFIGURATION, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_LONGEST_CONFIGURATION = 2**24  # bytes


def from_sae(folder: str | PathLike[str], feature: int, *, layer: str | None = None) -> SteeringVector:
    """Return the direction that a feature of a sparse autoencoder writes: its decoder row.

    Args:
        folder: holds ``cfg.json`` and ``sae_weights.safetensors``.
        feature: which, from 0.
        layer: name of the layer whose output it belongs to; read from the configuration if left out.

    Returns:
        One direction, as long as the row is. The layer is named ``"block:N"``, ``"block:N.mlp"``, ``"block:N.attn"``,
        or as in the configuration where that names a module; see `SteeringVector.fitted_to`.

    Raises:
        FileNotFoundError: a file is missing.
        VectorFileError: a file is not what it should be, or its place in the model is not the output of a layer.
        IndexError: there is no such feature.
    """
    folder = Path(folder)
    for name in (_CONFIGURATION, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {named(folder)}: an autoencoder of SAELens has {_CONFIGURATION} and "
                f"{_WEIGHTS} in one folder"
            )
    with one_error(folder / _CONFIGURATION, VectorFileError):
        place = _place(folder / _CONFIGURATION)
        address = layer if layer is not None else layer_of(place.hook_name)
    with one_error(folder / _WEIGHTS, VectorFileError):
        features = _features(read_header(folder / _WEIGHTS), place.width)
        row = _row(folder / _WEIGHTS, feature) if _is_one_of(feature, features) else None
    if row is None:
        raise IndexError(f"no feature {feature!r}: the autoencoder has {features}, 0 to {features - 1}")
    facts = {"sae_feature": feature, "sae_hook_name": place.hook_name, "sae_model_name": place.model}
    metadata = {name: value for name, value in facts.items() if value is not None}
    return SteeringVector({address: row}, method="sae_decoder", metadata=metadata)


class _Place(NamedTuple):
    """The place in the model, as a configuration has it; ``None`` for what it does not say."""

    hook_name: str | None
    model: str | None
    width: int | None


def _place(path: Path) -> _Place:
    if (size := path.stat().st_size) > _LONGEST_CONFIGURATION:
        raise Damaged(f"has {size} bytes, and a configuration has at most {_LONGEST_CONFIGURATION}")
    read = from_json(path.read_bytes())
    if not isinstance(read, dict) or not isinstance(read.get("metadata", {}), dict):
        raise Damaged("does not hold a JSON object with the autoencoder's configuration")
    facts = {**read, **read.get("metadata", {})}
    hook_name, model, width = (
        facts.get("hook_name", facts.get("hook_point")),
        facts.get("model_name"),
        facts.get("d_in"),
    )
    for name, value, kind in (("hook_name", hook_name, str), ("model_name", model, str), ("d_in", width, int)):
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Damaged(f"has {shortened(repr(value))} as {name}, which must be of the type {kind.__name__}")
        str(value).encode()  # half of a surrogate pair could not be written again
    return _Place(hook_name, model, width)


def _features(weights: Header, width: int | None) -> int:
    """Return how many features the decoder has."""
    if "W_dec" not in weights.shapes:
        raise Damaged(f"holds {shortened(str(sorted(weights.shapes)))}, and not 'W_dec'")
    shape = weights.shapes["W_dec"]
    if len(shape) != 2 or not all(shape) or (width is not None and shape[1] != width):
        raise Damaged(
            f"has shape {shortened(str(shape))} of 'W_dec', and (d_sae, {'D' if width is None else width}) is needed"
        )
    return shape[0]


def _row(weights: Path, feature: int) -> Tensor:
    with opened(weights) as file:
        row: Tensor = file.get_slice("W_dec")[feature]  # (D,)
    if not row.is_floating_point() or not torch.isfinite(row := row.float()).all():
        raise Damaged(f"has a row {feature} of 'W_dec' that does not hold finite numbers of a float type")
    return row


def _is_one_of(feature: object, features: int) -> bool:
    return isinstance(feature, int) and not isinstance(feature, bool) and 0 <= feature < features
