"""How much edits change activations: a pure function of an activation before and after an edit, and running sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.changes_of_few import are_few, joined, numbers_of
from mi_crow_lightning.metrics.collectives import Share, Shares, exchange, is_distributed

__all__ = ["Change", "EffectSums", "EffectValues", "changed_tokens", "measure_change", "merge_changes", "values_of"]


class Change(IntEnum):
    """The places of the numbers in a summary of changes."""

    TOKENS = 0  # changed tokens
    RATED = 1  # changed tokens that have a finite ratio
    RATIOS = 2  # sum of the ratios
    LARGEST = 3  # the largest ratio; 0 when there is none
    FIRED = 4  # edits that changed or broke at least one token
    CALLS = 5  # all edits, including those that changed nothing
    BROKEN = 6  # tokens that were finite before the edit and not after it


class EffectValues(NamedTuple):
    """The values that are read from a summary of changes.

    Attributes:
        tokens: the number of changed tokens.
        fired: the number of edits that changed or broke at least one token; each call of the layer is one edit.
        mean_ratio: the mean of ``|change| / |activation|`` over the changed tokens; nan when there is none.
        max_ratio: the largest of these ratios; nan when there is none.
        broken: the number of tokens that were finite before the edit and not after it.
    """

    tokens: int
    fired: int
    mean_ratio: float
    max_ratio: float
    broken: int = 0


@torch.no_grad()
def measure_change(before: Tensor, after: Tensor, channels: int | None = None) -> Tensor:
    """Summarise one edit, without waiting for the device.

    Tokens are all dimensions but that of the channels. A token is changed when the Euclidean norm of its change is
    above 0, and has a ratio when its own norm is above 0 too; norms are float32 or better. A token with elements that
    are not finite, before or after, counts as unchanged; if only after, it counts as broken.

    Args:
        before: the activation, floating-point.
        after: the edited activation, of the same shape.
        channels: the dimension of the channels; ``None`` is the last, and dimension 1 of ``(B, C, H, W)``.

    Returns:
        ``(7,)`` float64 (float32 on MPS, which has none), see `Change`; ``CALLS`` is 1.

    Examples:
        >>> before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
        >>> measure_change(before, before + torch.tensor([[0.0], [2.0], [1.0]]))[: Change.RATED + 1]
        tensor([2., 1.], dtype=torch.float64)
    """
    change, norm = _norms(before, after, _dim(before, channels))
    ratio = change / norm
    ratio = ratio.to(_sums_on(before.device)).nan_to_num_(0.0, 0.0, 0.0)
    finite = change < math.inf  # False for nan
    marks = torch.stack([finite & (change > 0), ratio > 0, ~finite & (norm < math.inf)])
    tokens, rated, broken = marks.reshape(3, ratio.numel()).sum(1, dtype=ratio.dtype).unbind()
    largest = ratio.amax() if ratio.numel() else ratio.sum()
    fired = (tokens + broken).clamp_(max=1)
    return torch.stack([tokens, rated, ratio.sum(), largest, fired, torch.ones_like(largest), broken])


@torch.no_grad()
def changed_tokens(before: Tensor, after: Tensor, channels: int | None = None) -> Tensor:
    """Return which tokens an edit changed, or broke, as `measure_change` counts them.

    Args:
        before: the activation, floating-point.
        after: the edited activation, of the same shape.
        channels: the dimension of the channels, see `measure_change`.

    Returns:
        Bools, in the shape of ``before`` without the channels.

    Examples:
        >>> before = torch.ones(2, 3)
        >>> changed_tokens(before, before * torch.tensor([[1.0], [torch.nan]]))
        tensor([False,  True])
    """
    change, norm = _norms(before, after, _dim(before, channels))
    finite = change < math.inf
    return (finite & (change > 0)) | (~finite & (norm < math.inf))


def _dim(x: Tensor, channels: int | None) -> int:
    """Return the dimension of the channels, see `measure_change`."""
    return channels if channels is not None else 1 if x.dim() == 4 else -1


def _norms(before: Tensor, after: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the norm of each token's change, and of the token."""
    before, after = before.detach(), after.detach()
    wide = torch.promote_types(before.dtype, torch.float32)
    change = torch.linalg.vector_norm(after - before, dim=dim, dtype=wide)
    return change, torch.linalg.vector_norm(before, dim=dim, dtype=wide)


def _sums_on(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def merge_changes(stacked: Tensor) -> Tensor:
    """Join summaries of changes: ``(R, ..., 7)`` to ``(..., 7)``."""
    out = stacked.sum(0)
    out[..., Change.LARGEST] = stacked[..., Change.LARGEST].amax(0)
    return out


class EffectSums:
    """Sums of changes at ``N`` places, for each stage.

    Args:
        places: the number of places.
        device: where the sums are kept.

    Examples:
        >>> sums = EffectSums(1, torch.device("cpu"))
        >>> sums.add("predict", 0, torch.ones(2, 4), torch.ones(2, 4) * torch.tensor([[1.0], [1.5]]))
        >>> sums.take("predict")
        [EffectValues(tokens=1, fired=1, mean_ratio=0.5, max_ratio=0.5, broken=0)]
    """

    def __init__(self, places: int, device: torch.device) -> None:
        self._empty = torch.zeros(places, len(Change), dtype=_sums_on(device), device=device)
        self._rows: dict[str, Tensor] = {}
        self._few: dict[str, dict[int, Sequence[float]]] = {}  # rows that went on in Python, by stage and place
        self._in_graphs = False
        self._peaks: dict[str, Tensor] = {}  # (N,): the largest ratios of before the last mark
        self._totals: dict[str, Tensor] = {}
        self._foreseen: dict[str, Tensor] = {}  # totals with what was shared, but not taken

    def prepare(self, stages: Iterable[str]) -> None:
        """Make the sums of stages now: a graph of ``torch.compile`` adds to them and cannot make them."""
        self._in_graphs = True
        for stage in stages:
            self._of(stage)

    def add(self, stage: str, place: int, before: Tensor, after: Tensor, channels: int | None = None) -> None:
        """Add one edit, without waiting for the device."""
        dim = _dim(before, channels)
        if self._empty.is_cpu and not self._in_graphs and are_few(before, after, dim):
            self._add_few(stage, place, numbers_of(*_norms(before, after, dim)))
            return
        row = self._of(stage)[place]
        row.copy_(merge_changes(torch.stack([row, measure_change(before, after, channels).to(row)])))

    def _add_few(self, stage: str, place: int, numbers: Sequence[float]) -> None:
        """Add the numbers of an edit to a row that goes on in Python, until `_of` writes it back."""
        of_stage = self._few.setdefault(stage, {})
        row = of_stage[place] if place in of_stage else self._rows_of(stage)[place].tolist()
        of_stage[place] = joined(row, numbers)

    def changed(self, stage: str, places: Sequence[int]) -> Tensor:
        """Return how many tokens were changed or broken at some places in a stage since they were last taken."""
        rows = self._of(stage)[list(places)]
        return (rows[:, Change.TOKENS] + rows[:, Change.BROKEN]).sum()

    def mark(self, stage: str) -> Tensor | None:
        """Return what was added in a stage since it was last taken, without waiting for the device.

        Returns:
            ``(N, 7)``, in which the largest ratios are those since the last mark; ``None`` if nothing was added.
        """
        if stage not in self._rows:
            return None
        rows = self._of(stage)
        marked, largest = rows.clone(), rows[:, Change.LARGEST]
        if stage not in self._peaks:
            with torch.inference_mode(False):
                self._peaks[stage] = torch.zeros_like(self._empty[:, Change.LARGEST])
        torch.maximum(self._peaks[stage], largest, out=self._peaks[stage])
        largest.zero_()
        return marked

    def take(self, stage: str) -> list[EffectValues | None]:
        """Return what was added in a stage since the last call, over all ranks, with one copy to the host.

        ``None`` stands where nothing was added. This is a collective: all ranks must take part.
        """
        taken: list[EffectValues | None] = exchange([self.share(stage)])[0]
        return taken

    def share(self, stage: str, keep: bool = False) -> Shares:
        """Share what was added in a stage, for `exchange`.

        Args:
            stage: the stage.
            keep: whether what was added stays for the next call; `totals` includes it already.
        """
        if stage not in self._rows and not is_distributed():
            return [None] * len(self._empty)  # nothing to wait for
        rows = yield Share(self._whole(self._of(stage), stage), merge_changes)
        before = self._totals.get(stage, torch.zeros_like(rows))
        self._foreseen[stage] = merge_changes(torch.stack([before, rows]))
        if not keep:
            self._rows[stage].zero_()  # in place: a graph may hold on to them
            if stage in self._peaks:
                self._peaks[stage].zero_()
            self._totals[stage] = self._foreseen.pop(stage)
        return [values_of(row) for row in rows.tolist()]

    def totals(self, stage: str, places: Sequence[int] | None = None) -> list[EffectValues | None]:
        """Return all that was taken in a stage so far, at some places or at all."""
        totals = self._foreseen.get(stage, self._totals.get(stage))
        if totals is None:
            return [None] * (len(self._empty) if places is None else len(places))
        return [values_of(row) for row in (totals if places is None else totals[list(places)]).tolist()]

    def state(self, places: Sequence[int]) -> dict[str, dict[str, Tensor]]:
        """Return what was added at some places and not taken, and what was taken: ``(len(places), 7)`` on the CPU."""
        index = list(places)
        whole = {stage: self._whole(self._of(stage), stage) for stage in self._rows}
        kept = {"rows": whole, "totals": self._totals}
        return {name: {stage: rows[index].cpu() for stage, rows in of.items()} for name, of in kept.items()}

    def load(self, places: Sequence[int], state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from what `state` returned, at these places."""
        for stage in self._rows:
            self._of(stage)  # what goes on in Python is written back before it is replaced
        index, on_host = list(places), self._empty.cpu()
        for name, kept, empty in (("rows", self._rows, self._empty), ("totals", self._totals, on_host)):
            for stage, rows in state[name].items():
                with torch.inference_mode(False):
                    kept.setdefault(stage, torch.zeros_like(empty))[index] = rows.to(empty)

    def _whole(self, rows: Tensor, stage: str) -> Tensor:
        """Return the rows of a stage with the largest ratios of before the last mark."""
        peaks = self._peaks.get(stage)
        if peaks is None:
            return rows
        whole = rows.clone()
        torch.maximum(peaks, rows[:, Change.LARGEST], out=whole[:, Change.LARGEST])
        return whole

    def _of(self, stage: str) -> Tensor:
        """Return the rows of a stage with all that was added."""
        rows = self._rows_of(stage)
        for place, row in self._few.pop(stage, {}).items():
            rows[place] = rows.new_tensor(row)
        return rows

    def _rows_of(self, stage: str) -> Tensor:
        if stage not in self._rows:
            with torch.inference_mode(False):  # one tensor serves prediction and training
                self._rows[stage] = torch.zeros_like(self._empty)
        return self._rows[stage]


def values_of(row: list[float]) -> EffectValues | None:
    """Return the values of one place; ``None`` if nothing was added there."""
    if not row[Change.CALLS]:
        return None
    rated = row[Change.RATED]
    mean, largest = (row[Change.RATIOS] / rated, row[Change.LARGEST]) if rated else (math.nan, math.nan)
    return EffectValues(int(row[Change.TOKENS]), int(row[Change.FIRED]), mean, largest, int(row[Change.BROKEN]))
