"""The rows of many layers as one torchmetrics Metric: a thin shell that adds reset, moves and ranks.

All arithmetic is in ``activation.py`` and ``rows.py``. There is one state of a fixed size, so a
synchronisation between ranks is one collective, however many layers there are (torchmetrics' own way needs a
barrier and two gathers a state).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torchmetrics import Metric

from mi_crow_lightning.metrics.activation import summarize
from mi_crow_lightning.metrics.rows import ROW_SIZE, empty_rows, merge, merge_all


class ActivationStatisticsMetric(Metric):
    """Running summaries of ``L`` layers' activations, equal on many ranks to one process on all data.

    Create it where training runs, in ``on_fit_start`` and its like, never earlier: ``ddp_spawn`` puts the
    tensors of an object made before the spawn in memory that the CPU ranks *share*, and they would add to
    each other's counts. Creating, resetting and reducing in inference mode is safe: the buffer is always an
    ordinary tensor.

    Memory: ``L * 72 * 8`` bytes (58 kB for 100 layers), twice with the default that ``reset`` copies. The
    buffer stays float64 under ``.half()``, ``.to(dtype)`` and ``set_dtype``: counts are exact up to
    ``2**53``, while a float32 counter stops at ``2**24``. MPS has no float64; there the metric lives on the
    CPU.

    Args:
        layers: the layers' names, in order, or how many there are.
        **kwargs: torchmetrics' own, for example ``process_group``, ``sync_on_compute``.

    Raises:
        ValueError: a layer's name occurs twice, or the number of layers is negative.

    Example:
        >>> metric = ActivationStatisticsMetric(["h.0", "h.1"])
        >>> metric.update(0, torch.tensor([[1.0, 3.0]]))
        >>> metric.update(0, torch.tensor([[8.0, 8.0]]))
        >>> from mi_crow_lightning.metrics.activation import statistics
        >>> statistics(metric.compute())["mean"]
        tensor([5., nan], dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False

    rows: Tensor

    def __init__(self, layers: Sequence[str] | int, **kwargs: Any) -> None:
        # No cached result: it would go stale when the owner writes to `rows`, and a compute is cheap.
        super().__init__(**{"dist_sync_fn": gather_rows, "compute_with_cache": False, **kwargs})
        self.layers = _names(layers)
        self.add_state("rows", empty_rows(len(self.layers)), dist_reduce_fx=merge_all, persistent=True)

    @property
    def update_called(self) -> bool:
        """Always True, so that ``compute`` does not warn: a count of 0 says that nothing was seen."""
        return True

    def update(self, index: int, x: Tensor, mask: Tensor | None = None) -> None:
        """Add one activation of one layer.

        There is no synchronisation when ``x`` and the metric are on one device.

        Args:
            index: which layer, ``0 <= index < L``.
            x: its activation, any shape and floating-point dtype, for example ``(B, T, D)``.
            mask: bool, of the shape of ``x``'s leading dimensions: True where elements count.

        Raises:
            IndexError: there is no such layer.
            TypeError, ValueError: those of :func:`~mi_crow_lightning.metrics.activation.summarize`.
        """
        if not 0 <= index < len(self.layers):
            raise IndexError(f"no layer {index}: this metric holds the layers 0 to {len(self.layers) - 1}")
        row = self.rows[index]
        row.copy_(merge(row, summarize(x, mask).to(row.device)))

    def compute(self) -> Tensor:
        """Give the rows ``(L, ROW_SIZE)`` over all ranks, float64 on the metric's device, as a copy."""
        return self.rows

    def sync(self, dist_sync_fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> None:
        """Merge the ranks' rows, with the metric's own gather also when called directly."""
        super().sync(dist_sync_fn or self.dist_sync_fn, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # add_state, reset, unsync, forward and .to() all set the state here. An inference tensor would
        # kill the next update outside of inference mode ("Inplace update to inference tensor").
        if name == "rows" and value.is_inference():
            with torch.inference_mode(False):
                value = value.clone()
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # torchmetrics guards .half() but not .to(torch.float16): follow moves, never a change of dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torchmetrics would keep the given tensor itself, on its device, and update it in place.
        if (rows := state_dict.get(f"{prefix}rows")) is not None:
            if rows.shape != self.rows.shape:
                raise ValueError(
                    f"the saved rows have shape {tuple(rows.shape)}, but this metric, of {len(self.layers)} "
                    f"layers with {ROW_SIZE} numbers each, has {tuple(self.rows.shape)}"
                )
            state_dict[f"{prefix}rows"] = rows.to(self.rows, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the rows of all ranks in one collective: all have one shape, so none is asked for its own.

    Args:
        rows: ``(L, ROW_SIZE)``, this rank's.
        group: the process group, None for all ranks.

    Returns:
        ``R`` tensors ``(L, ROW_SIZE)``, in the order of the ranks.
    """
    gathered = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, rows.contiguous(), group=group)
    return gathered


def _names(layers: Sequence[str] | int) -> tuple[str, ...]:
    if isinstance(layers, int):
        if layers < 0:
            raise ValueError(f"the number of layers cannot be {layers}")
        return tuple(str(i) for i in range(layers))
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"every layer has one row, but these names occur more than once: {', '.join(repeated)}")
    return names
