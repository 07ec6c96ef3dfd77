"""Sums that grow from pass to pass, by stage and layer, and how those of several ranks are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import Share, Shares

__all__ = ["MERGES", "ColumnMerge", "RunningSums", "masked_sum"]

MERGES: dict[str, float] = {"sum": 0.0, "max": -math.inf, "min": math.inf}
"""How two numbers become one, by name, each with the number that changes nothing."""


class ColumnMerge:
    """Joins rows of sums, each column in its own way.

    Args:
        kinds: one of `MERGES` for each column.

    Attributes:
        empty: the row that changes nothing, ``(K,)`` float64.

    Raises:
        ValueError: a kind is not one of `MERGES`.

    Examples:
        >>> merge = ColumnMerge(["sum", "max"])
        >>> merge(torch.tensor([[1.0, 4.0], [2.0, 3.0]])), merge.empty
        (tensor([3., 4.]), tensor([0., -inf], dtype=torch.float64))
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        unknown = next((kind for kind in kinds if kind not in MERGES), None)
        if unknown is not None:
            raise ValueError(f"merge={unknown!r} is not known: choose one of {', '.join(map(repr, MERGES))}")
        self.kinds = tuple(kinds)
        self.empty = torch.tensor([MERGES[kind] for kind in kinds], dtype=torch.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ColumnMerge) and self.kinds == other.kinds

    def __hash__(self) -> int:
        return hash(self.kinds)

    @property
    def only_sums(self) -> bool:
        """Whether every column is added up."""
        return set(self.kinds) <= {"sum"}

    def __call__(self, stacked: Tensor) -> Tensor:
        """Join rows ``(R, ..., K)`` into ``(..., K)``, a new tensor."""
        joined = stacked.sum(0)
        for column, kind in enumerate(self.kinds):
            if kind != "sum":
                of_all = stacked[..., column]
                joined[..., column] = of_all.amax(0) if kind == "max" else of_all.amin(0)
        return joined


class RunningSums:
    """Rows of sums at ``L`` layers, for each stage.

    Args:
        layers: how many layers.
        empty: ``(*row)`` float64, the row of a layer that saw nothing: joined with another it changes nothing.
        merge: joins rows ``(R, ..., *row)`` into ``(..., *row)``.
        device: where the sums are kept; they are float64, which Apple's GPUs do not have, so there it is the CPU.

    Examples:
        >>> from mi_crow_lightning.metrics.collectives import exchange
        >>> merge = ColumnMerge(["sum", "max"])
        >>> sums = RunningSums(1, merge.empty, merge, torch.device("cpu"))
        >>> for row in ([1.0, 4.0], [2.0, 3.0]):
        ...     sums.add("train", 0, torch.tensor(row, dtype=torch.float64))
        >>> exchange([sums.share("train")])[0].tolist()
        [[3.0, 4.0]]
    """

    def __init__(self, layers: int, empty: Tensor, merge: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.merge = merge
        self.device = torch.device("cpu") if device.type == "mps" else device
        with torch.inference_mode(False):  # the same ones serve prediction and training
            self.empty = empty.to(self.device)
            self._nothing = self.empty.expand(layers, *empty.shape)
        self._rows: dict[str, Tensor] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """Make the sums of stages now: a graph of ``torch.compile``, which adds to them, cannot."""
        for stage in stages:
            self._of(stage)

    def add(self, stage: str, layer: int, seen: Tensor) -> None:
        """Add the row of one pass at one layer; it does not wait for the device."""
        row, seen = self._of(stage)[layer], seen.to(self.device)
        if isinstance(self.merge, ColumnMerge) and self.merge.only_sums:
            row.add_(seen)
        else:
            row.copy_(self.merge(torch.stack([row, seen])))

    def share(self, stage: str) -> Shares:
        """Share the sums ``(L, *row)``, for `exchange`."""
        rows = yield Share(self._of(stage), self.merge)
        return rows

    def reset(self, stage: str) -> None:
        """Forget what was summed up in a stage."""
        if stage in self._rows:
            self._rows[stage].copy_(self._nothing)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the sums on the CPU, by stage."""
        return {stage: rows.cpu().clone() for stage, rows in self._rows.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for stage in {*self._rows, *state}:
            self.reset(stage)
        for stage, rows in state.items():
            self._of(stage).copy_(rows)

    def _of(self, stage: str) -> Tensor:
        if stage not in self._rows:
            with torch.inference_mode(False):
                self._rows[stage] = self._nothing.clone()
        return self._rows[stage]


def masked_sum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the values of the tokens that count, in float64, without waiting for the device.

    ``values[mask].sum()`` is the same number. On a GPU it waits until the device knows how many values these are.

    Args:
        values: ``(B, T, ...)`` in a transformer, numbers or bools.
        mask: bool, of the leading dimensions of ``values``: True where tokens count. ``None`` for all.

    Returns:
        ``()`` float64; float32 on Apple's GPUs.

    Examples:
        >>> x = torch.tensor([[[1.0, -2.0], [5.0, 5.0]]])  # (B, T, D)
        >>> masked_sum(x > 0, torch.tensor([[True, False]])).item()
        1.0
    """
    if mask is not None:
        values = values.where(mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())), 0)
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)
