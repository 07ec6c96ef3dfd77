"""The file of a snapshot: tensors, numbers and strings alone, so that it can be read without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._foreign_files import Damaged, one_error
from mi_crow_lightning._saved_state import within_limits
from mi_crow_lightning.errors import SnapshotError

__all__ = ["FIELDS", "FORMAT", "load_snapshot", "plain", "save_snapshot"]

FORMAT = "mi_crow_lightning snapshot 1"

FIELDS: dict[str, type] = {
    "format": str,
    "alarm": dict,
    "batch": object,
    "batch_class": str,
    "left_out": list,
    "random": dict,
    "model": dict,
    "buffers": dict,
    "evaluating": list,
    "optimizers": list,
    "precision": str,
    "layers": list,
    "root": str,
    "readings": list,
    "weights": str,
    "versions": dict,
}
"""The fields of a snapshot, each with its type."""


def plain(value: Any, place: str, left_out: list[str]) -> Any:
    """Return a value as tensors on the CPU, numbers, strings and containers of these.

    Args:
        value: the value, such as a batch.
        place: what it is called, for ``left_out``.
        left_out: gets the places of what is something else; ``None`` stands there.

    Examples:
        >>> left_out = []
        >>> plain({"x": (1, "a"), "y": object()}, "batch", left_out), left_out
        ({'x': (1, 'a'), 'y': None}, ['batch[y] (object)'])
    """
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter):
            left_out.append(f"{place} ({type(value).__name__})")
            return None
        return value.detach().to("cpu", copy=True).contiguous() if value.layout == torch.strided else value.detach()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        # An optimizer's state has whole numbers for keys, and torch would take strings for other weights' state.
        keys = (key if isinstance(key, (bool, int, float)) else str(key) for key in value)
        return {key: plain(one, f"{place}[{key}]", left_out) for key, one in zip(keys, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        made = [plain(one, f"{place}[{index}]", left_out) for index, one in enumerate(value)]
        return made if isinstance(value, list) else tuple(made)
    left_out.append(f"{place} ({type(value).__name__})")
    return None


def save_snapshot(content: Mapping[str, Any], path: Path) -> None:
    """Write a snapshot; a file that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    torch.save(dict(content), beside)
    beside.replace(path)


def load_snapshot(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a snapshot, and run nothing that is in it.

    Args:
        path: the file.

    Returns:
        ``"batch"``; ``"random"``, the random states before the pass; ``"model"`` and ``"buffers"``, tensors by name;
        ``"alarm"``, what fired; ``"readings"``, the last ones; and what else `replay` needs.

    Raises:
        OSError: the file cannot be read.
        SnapshotError: it is damaged, or something else than a snapshot.
    """
    file = Path(path)
    with one_error(file, SnapshotError):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise Damaged(
                f"is not a snapshot, or is damaged: torch does not read it ({type(error).__name__})"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise Damaged(f"is not a snapshot: its format is not {FORMAT!r}")
        for name, kind in FIELDS.items():
            if name not in content:
                raise Damaged(f"is a damaged snapshot: it lacks {name!r}")
            if not isinstance(content[name], kind):
                raise Damaged(f"is a damaged snapshot: {name!r} is not a {kind.__name__}")
        for name in ("alarm", "batch", "model", "buffers", "random"):
            within_limits(name, content[name])
        _check_tensors(content["model"], content["buffers"])
    return content


def _check_tensors(*states: Mapping[str, Any]) -> None:
    for state in states:
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise Damaged(f"is a damaged snapshot: {name!r} is not a tensor of the model")
