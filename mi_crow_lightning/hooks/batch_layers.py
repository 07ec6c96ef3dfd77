"""Layers that a batch names for each of its rows: the rows of an activation that are edited at its layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import LayerNotFound, VectorMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.running_batch import RunningBatch
from mi_crow_lightning.hooks.per_layer import ends_alike
from mi_crow_lightning.hooks.positions.rows import entry_of, of_rows

__all__ = ["BatchLayers"]

_FORMS = "a list of B blocks or names of layers, or of lists of these, or a tensor of blocks (B,) or (B, K)"


class BatchLayers:
    """The layers of ``batch["layers"]``, of those that a controller is registered at.

    A row is edited at the layers that the batch names for it: the index of a block, the name of a layer or its end, or
    a list of these. All other rows stay bit-equal.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, int | None] = {}
        self._plan: _Plan | None = None

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Note the layers of the controller, each with its block."""
        self._blocks, self._plan = dict(blocks), None

    def rows_at(self, x: Tensor, ctx: HookContext) -> tuple[Tensor | None, Tensor]:
        """Return what is edited of an activation.

        Returns:
            The rows ``(R,)``, on its device, or ``None`` for all; and which samples these are of: ``(B,)`` bool, on
            the CPU.

        Raises:
            VectorMismatch: the batch names no layers, or the rows do not match the samples.
            LayerNotFound: it names a layer that the controller is not at.
        """
        given = entry_of(ctx.batch, "layers", _FORMS, VectorMismatch)
        if self._plan is None or not self._plan.is_of(given, ctx.running):
            self._plan = _Plan(given, self._blocks or {ctx.layer: ctx.index}, ctx.running)
        samples = self._plan.samples[ctx.layer]
        rows = of_rows(samples, x, ctx)
        if rows is None:
            raise VectorMismatch(
                f"batch['layers'] has {len(samples)} entries, one for each sample, and the activation of "
                f"{ctx.layer!r} has {len(x)} rows (shape {tuple(x.shape)}): give one for each row"
            )
        return self._plan.indices(ctx.layer, rows, x.device), samples

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the batch that was read last."""
        return {**self.__dict__, "_plan": None}


class _Plan:
    """The samples of one batch by layer.

    Args:
        given: ``batch["layers"]``.
        blocks: names of the controller's layers, each with its block.
        running: the running batch.

    Attributes:
        samples: by layer, which samples are edited there: ``(B,)`` bool, on the CPU.
    """

    def __init__(self, given: Any, blocks: Mapping[str, int | None], running: RunningBatch) -> None:
        self._given, self._running = given, running
        self._entries, self._as_read = _entries(given), _copied(given)
        self._kept: dict[tuple[str, torch.device], Tensor | None] = {}
        found: dict[int | str, list[str]] = {}
        edited: dict[str, list[bool]] = {layer: [False] * len(self._entries) for layer in blocks}
        for row, entry in enumerate(self._entries):
            for one in entry:
                if one not in found:
                    found[one] = _layers_of(one, blocks)
                for layer in found[one]:
                    edited[layer][row] = True
        with torch.inference_mode(False):
            self.samples = {layer: torch.tensor(rows, dtype=torch.bool) for layer, rows in edited.items()}

    def is_of(self, given: Any, running: RunningBatch) -> bool:
        """Return whether a batch still names the same layers; a tensor on a GPU is not read again in the batch."""
        is_same = given is self._given and running is self._running
        if isinstance(given, Tensor) and given.device.type != "cpu":
            return is_same
        # The same list may have been written to since; to compare it takes a tenth of the time of reading it again.
        return (is_same and _copied(given) == self._as_read) or _entries(given) == self._entries

    def indices(self, layer: str, rows: Tensor, device: torch.device) -> Tensor | None:
        """Return the rows that a mask chooses, on a device; ``None`` if these are all."""
        key = (layer, device)
        if rows is not self.samples[layer]:  # beams, or named rows
            return _chosen(rows, device)
        if key not in self._kept:
            self._kept[key] = _chosen(rows, device)
        return self._kept[key]


def _copied(given: Any) -> Any:
    """Return what a batch gave as lists that no one writes to."""
    rows = given.tolist() if isinstance(given, Tensor) else given
    return [list(row) if isinstance(row, list) else row for row in rows]


def _chosen(rows: Tensor, device: torch.device) -> Tensor | None:
    with torch.inference_mode(False):
        return None if rows.all() else rows.nonzero()[:, 0].to(device)


def _entries(given: Any) -> list[tuple[int | str, ...]]:
    """Return the layers of each row, as the batch names them.

    Raises:
        VectorMismatch: it has none of the forms.
    """
    rows = given
    if isinstance(given, Tensor):
        if given.dim() not in (1, 2) or given.is_floating_point() or given.dtype == torch.bool:
            raise VectorMismatch(
                f"batch['layers'] is a {given.dtype} tensor of shape {tuple(given.shape)}: it must be {_FORMS}"
            )
        rows = given.tolist()
    if not isinstance(rows, (list, tuple)):
        raise VectorMismatch(f"batch['layers'] is {shown(given)}: it must be {_FORMS}")
    entries = [tuple(row) if isinstance(row, (list, tuple)) else (row,) for row in rows]
    for entry in entries:
        for one in entry:
            if isinstance(one, Tensor):
                raise VectorMismatch(
                    "batch['layers'] is a list with tensors, as torch's default_collate makes them of lists, column by "
                    f"column: it must be {_FORMS}. Give each item a tensor, or use a collate_fn that keeps the lists"
                )
            if isinstance(one, bool) or not isinstance(one, (int, str)):
                raise VectorMismatch(f"batch['layers'] holds {shown(one)}: it must be {_FORMS}")
    return entries


def _layers_of(one: int | str, blocks: Mapping[str, int | None]) -> list[str]:
    """Return the controller's layers that a block or a name means.

    Raises:
        LayerNotFound: there is none, or a name is the end of several.
    """
    if isinstance(one, int):
        found = [layer for layer, block in blocks.items() if block == one]
    else:
        found = [one] if one in blocks else [layer for layer in blocks if ends_alike(one, layer)]
    if len(found) == 1 or (found and isinstance(one, int)):
        return found
    names = [f"{layer!r}" + ("" if block is None else f" (block {block})") for layer, block in blocks.items()]
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    what = "the end of several" if found else "none"
    raise LayerNotFound(f"batch['layers'] names {one!r}, which is {what} of the controller's layers: {listed}")
