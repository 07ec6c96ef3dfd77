"""Pictures in the forms that models take: one for each row, whole, in patches, in tiles or as a video."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor

from tests.architectures.shrunk import IMAGE, VOCABULARY

_PICTURES = 3
_SIDE = 4  # patches of a picture in a row, and in a column


def pictures_of(model: Any) -> list[dict[str, Any]]:
    """Return the keyword arguments that may give a model one picture for each of three rows, the likely ones first."""
    named = inspect.signature(model.forward).parameters
    size, patch, channels, frames = _sizes(model)
    sizes = {"image_sizes": torch.tensor([[size, size]] * _PICTURES)}
    grid = torch.tensor([[1, _SIDE, _SIDE]] * _PICTURES)
    whole = _random(_PICTURES, channels, size, size)
    beside = sizes if "image_sizes" in named else {}
    of_grid = {name: grid for name in ("image_grid_thw", "grid_thw") if name in named}
    found: list[dict[str, Any]] = []
    if of_grid:
        count = _PICTURES * _SIDE**2
        if "image_merge_sizes" in named:
            of_grid["image_merge_sizes"] = torch.tensor([2] * _PICTURES)
        for repeats in (1, 2):
            found.append({"pixel_values": _random(count, repeats * channels * frames * patch**2)} | of_grid)
        found.append({"pixel_values": _random(count, channels, patch, patch)} | of_grid)
        found.append({"pixel_values": _random(1, count, channels, patch, patch)} | of_grid)
    if "spatial_shapes" in named:
        shapes = torch.tensor([[_SIDE, _SIDE]] * _PICTURES)
        mask = torch.ones(_PICTURES, _SIDE**2, dtype=torch.long)
        patches = _random(_PICTURES, _SIDE**2, channels * patch**2)
        found.append({"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": mask})
    if "target_sizes" in named:
        flat = _random(1, channels, patch, patch * _SIDE**2 * _PICTURES)
        found.append({"pixel_values": flat, "target_sizes": torch.tensor([[_SIDE, _SIDE]] * _PICTURES)})
    if "aspect_ratio_ids" in named:
        found.append(_tiles(model, channels, size))
    if "flattened_patches" in named:
        found.append({"flattened_patches": _random(_PICTURES, _SIDE**2, 2 + channels * patch**2)})
    if "pixel_values" in named or not found:
        found += [{"pixel_values": whole} | more for more in ([beside, {}] if beside else [{}])]
        found.append({"pixel_values": whole[:, None]} | beside)
        for tiles in (2, 3, 4, 5, 8, 16):
            found.append({"pixel_values": _random(_PICTURES, tiles, channels, size, size)} | beside)
    if "pixel_values_videos" in named and "pixel_values" not in named:
        found += [{"pixel_values_videos": _random(_PICTURES, frames, channels, size, size)} for frames in (2, 4, 16)]
    return found


def tokens_of_a_picture(model: Any, pictures: dict[str, Any], rows: int) -> int:
    """Return how many image tokens stand for a picture; 0 if the model takes pictures beside its text."""
    features_of = getattr(model, "get_image_features", None) or getattr(
        getattr(model, "model", None), "get_image_features", None
    )
    if features_of is not None:
        takes = inspect.signature(features_of).parameters
        try:
            with torch.no_grad():
                features = features_of(**{name: value for name, value in pictures.items() if name in takes})
        except Exception:  # this is not how the model takes pictures, or its message below says how many it needs
            features = None
        if (count := _rows_of(getattr(features, "pooler_output", features))) is not None:
            return count // rows
    return _asked_for(model, pictures, rows)


def _asked_for(model: Any, pictures: dict[str, Any], rows: int) -> int:
    """Return how many features the model's own message says that there are."""
    ids = torch.full((rows, 5), VOCABULARY - 1)
    ids[:, 0] = IMAGE
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **pictures)
    except Exception as error:
        if found := re.search(r"features:? (\d+)", str(error)):
            return int(found[1]) // rows
    return 0


def _rows_of(features: Any) -> int | None:
    if isinstance(features, (list, tuple)):
        counts = [_rows_of(one) for one in features]
        return None if None in counts or not counts else sum(count for count in counts if count)
    return features.numel() // features.shape[-1] if isinstance(features, Tensor) and features.dim() > 1 else None


def _tiles(model: Any, channels: int, size: int) -> dict[str, Any]:
    """Return pictures in tiles as Mllama takes them: the first tile of four."""
    mask = torch.zeros(_PICTURES, 1, 4, dtype=torch.long)
    mask[:, :, 0] = 1
    ids = torch.ones(_PICTURES, 1, dtype=torch.long)
    return {
        "pixel_values": _random(_PICTURES, 1, 4, channels, size, size),
        "aspect_ratio_ids": ids,
        "aspect_ratio_mask": mask,
    }


def _sizes(model: Any) -> tuple[int, int, int, int]:
    """Return the size of a picture and of a patch, and the numbers of channels and of frames in a patch."""
    config = model.config
    for name in ("thinker_config", "vision_config", "vision_encoder_config", "encoder"):
        config = getattr(config, name, None) or config
    size = _first(config, "image_size", "img_size") or _first(model.config, "image_size") or 64
    patch = _first(config, "patch_size") or 16
    channels = _first(config, "num_channels", "in_channels", "in_chans") or 3
    return size, patch, channels, _first(config, "temporal_patch_size") or 1


def _first(config: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        value = value[-1] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int) and value:
            return value
    return None


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))
