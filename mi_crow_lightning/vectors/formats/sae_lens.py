"""Features of sparse autoencoders in SAELens' format: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

``W_dec`` (d_sae, D) holds one decoder row for each feature, and the configuration the place in the model that the
autoencoder was trained on: ``metadata.hook_name`` since SAELens 6, ``hook_name`` or ``hook_point`` before (read in
SAELens 6.54.12, ``saes/sae.py``, ``loading/pretrained_sae_loaders.py``).
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors.formats.blocks import address_of
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["from_sae"]

_CONFIGURATION, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_HOOK = re.compile(r"blocks\.(?P<block>\d+)\.(?P<place>hook_resid_pre|hook_resid_post|hook_mlp_out|hook_attn_out)")
_PARTS = {"hook_resid_post": "", "hook_mlp_out": "mlp", "hook_attn_out": "attn"}


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
                f"no {name} in {str(folder)!r}: an autoencoder of SAELens has {_CONFIGURATION} and "
                f"{_WEIGHTS} in one folder"
            )
    configuration = _read_configuration(folder / _CONFIGURATION)
    hook_name = configuration.get("hook_name", configuration.get("hook_point"))
    row = _decoder_row(folder / _WEIGHTS, feature, configuration.get("d_in"))
    model = configuration.get("model_name")
    facts = {"sae_feature": feature, "sae_hook_name": hook_name, "sae_model_name": model}
    return SteeringVector(
        {layer if layer is not None else _layer_of(folder, hook_name): row},
        method="sae_decoder",
        metadata={name: value for name, value in facts.items() if value is not None},
    )


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        configuration = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VectorFileError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(configuration, dict) or not isinstance(configuration.get("metadata", {}), dict):
        raise VectorFileError(f"{str(path)!r} does not hold a JSON object with the autoencoder's configuration")
    return {**configuration, **configuration.get("metadata", {})}


def _decoder_row(path: Path, feature: int, width: Any) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            if "W_dec" not in file.keys():
                raise VectorFileError(f"{str(path)!r} holds {sorted(file.keys())}, and not 'W_dec'")
            rows = file.get_slice("W_dec")
            shape = tuple(rows.get_shape())
            if len(shape) != 2 or (width is not None and shape[1] != width):
                raise VectorFileError(f"'W_dec' in {str(path)!r} has shape {shape}, and (d_sae, {width}) is needed")
            if isinstance(feature, bool) or not isinstance(feature, int) or not 0 <= feature < shape[0]:
                raise IndexError(f"no feature {feature!r}: the autoencoder has {shape[0]}, 0 to {shape[0] - 1}")
            row: Tensor = rows[feature]
            return row
    except SafetensorError as error:
        raise VectorFileError(f"{str(path)!r} is not a readable safetensors file: {error}") from error


def _layer_of(folder: Path, hook_name: Any) -> str:
    """Return the layer whose output ``hook_name`` is: in TransformerLens' names, or a module's own."""
    if not isinstance(hook_name, str) or not hook_name:
        raise VectorFileError(f"{_CONFIGURATION} in {str(folder)!r} has no hook_name: give layer=")
    hook = _HOOK.fullmatch(hook_name)
    if hook is None:
        if "hook_" in hook_name:
            raise VectorFileError(
                f"{hook_name!r} in {str(folder)!r} is not the output of a block, its attention or its MLP: give layer="
            )
        return hook_name
    block, place = int(hook["block"]), hook["place"]
    if place != "hook_resid_pre":
        return address_of(block, _PARTS[place])
    if block == 0:
        raise VectorFileError(
            f"{hook_name!r} in {str(folder)!r} is the input of the first block, and not the output of another: "
            "give layer=, the embedding"
        )
    return address_of(block - 1)  # what goes into a block comes out of the one before
