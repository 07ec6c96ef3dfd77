"""Plain values: what a checkpoint holds without pickling a class of anyone's."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from mi_crow_lightning.language_model.generation import Generation

__all__ = ["plain_entries"]

_AS_THEY_ARE = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size, Tensor)
_BY_BASE = (int, float, str)  # NumPy's numbers, enums with a value
_NOT_PLAIN = object()


def plain_entries(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries whose values are plain, with paths as strings and settings of ``generate`` as a dict.

    Everything else is left out: modules, tokenizers, datasets, functions, and containers that hold one of these. What
    stays can be loaded with ``weights_only=True``.

    Examples:
        >>> plain_entries({"beta": 0.1, "lm": torch.nn.Identity(), "teachers": [torch.nn.Identity()], "at": Path("a")})
        {'beta': 0.1, 'at': 'a'}
    """
    plain = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not _NOT_PLAIN}


def _plain(value: Any) -> Any:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, GenerationConfig):
        return _plain(Generation(value).hyperparameters())
    if isinstance(value, dict):
        pairs = [(_plain(key), _plain(one)) for key, one in value.items()]
        return dict(pairs) if _all_plain(part for pair in pairs for part in pair) else _NOT_PLAIN
    kind = next((kind for kind in (list, tuple, set) if type(value) is kind), None)
    if kind is not None:
        parts = [_plain(one) for one in value]
        return kind(parts) if _all_plain(parts) else _NOT_PLAIN
    base = next((kind for kind in _BY_BASE if isinstance(value, kind)), None)
    return base(value.value if isinstance(value, Enum) else value) if base is not None else _NOT_PLAIN


def _all_plain(parts: Iterable[Any]) -> bool:
    return all(part is not _NOT_PLAIN for part in parts)
