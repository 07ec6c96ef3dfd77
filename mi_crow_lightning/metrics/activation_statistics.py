"""The state of many layers as one torchmetrics Metric: a thin shell that adds reset, moves and ranks.

All arithmetic is in ``one_pass/`` and ``rows.py``. There is one state, so a synchronisation between ranks is one
collective for the numbers, however many layers there are and however wide, and one more for the widths until every
rank is sure to know them all (torchmetrics' own way needs a barrier and two gathers for each state).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mi_crow_lightning._arguments import listed
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning.metrics.activation import statistics
from mi_crow_lightning.metrics.collectives import Share, Shares, gather, is_distributed
from mi_crow_lightning.metrics.one_pass.accumulate import accumulate, accumulate_by_numba
from mi_crow_lightning.metrics.one_pass.buffers import (
    Start,
    empty_buffer,
    join_buffers,
    merge_buffers,
    place_at,
    split,
    starts_of,
    widen,
    widths_in,
)
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.in_numba.elements import elements_of
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import run_on_cpu
from mi_crow_lightning.metrics.one_pass.tokens import as_tokens
from mi_crow_lightning.metrics.rows import Row
from mi_crow_lightning.metrics.statistic import Sum
from mi_crow_lightning.metrics.summary import Group


class ActivationStatisticsMetric(Metric):
    """Running summaries of ``L`` layers' activations, equal on many ranks to one process on all data.

    Create it where training runs, in ``on_fit_start`` and its like, never earlier: ``ddp_spawn`` puts the
    tensors of an object made before the spawn in memory that the CPU ranks *share*, and they would add to
    each other's counts. Creating, resetting and reducing in inference mode is safe: the buffer is always an
    ordinary tensor.

    Memory: 80 float64 for each layer and 2 for each channel (0.9 MB for 100 layers of 512 channels), and as much again
    for the default that ``reset`` copies. A layer's first activation shows how many channels it has. The buffer stays
    float64 under ``.half()``, ``.to(dtype)`` and ``set_dtype``: counts are exact up to ``2**53``, while a float32
    counter stops at ``2**24``. MPS has no float64; there the metric lives on the CPU.

    Args:
        layers: the layers' names, in order, or how many there are.
        groups: what to compute.
        sums: the ``S`` further sums, see `sums_of`.
        **kwargs: torchmetrics' own, for example ``process_group``, ``sync_on_compute``.

    Raises:
        ValueError: a layer's name occurs twice, or the number of layers is negative.

    Examples:
        >>> metric = ActivationStatisticsMetric(["h.0", "h.1"])
        >>> metric.update(0, torch.tensor([[1.0, 3.0]]))
        >>> metric.update(0, torch.tensor([[8.0, 8.0]]))
        >>> from mi_crow_lightning.metrics.activation import statistics
        >>> rows, channels = metric.split(metric.compute())
        >>> statistics(rows)["mean"]
        tensor([5., nan], dtype=torch.float64)
        >>> channels[0]
        tensor([[65., 73.],
                [ 8.,  8.]], dtype=torch.float64)
    """

    full_state_update = False  # `forward` sums up one batch and merges it, as `Running` needs
    is_differentiable = False
    plot_legend_name = "layer"

    buffer: Tensor

    def __init__(
        self, layers: Sequence[str] | int, groups: Group = Group.ALL, sums: Sequence[Sum] = (), **kwargs: Any
    ) -> None:
        # No cached result: it would go stale when the owner writes to the buffer, and a compute is cheap.
        super().__init__(**{"dist_sync_fn": gather, "compute_with_cache": False, **kwargs})
        self.layers = _names(layers)
        if not isinstance(groups, Group):
            raise TypeError(f"groups={shown(groups)} must be a Group, such as Group.ALL")
        self.groups = groups
        self.sums = tuple(listed("sums", sums, "Sum", "sums_of(['mean'])"))
        for one in self.sums:
            if not isinstance(one, Sum):
                raise TypeError(f"sums holds {shown(one)}, which is not a Sum")
        self._merge = partial(merge_buffers, layers=len(self.layers), sums=self.sums)
        unknown = [0] * len(self.layers)
        self.add_state("buffer", empty_buffer(unknown, sums=self.sums), dist_reduce_fx=self._merge, persistent=True)
        self._widths: list[int] | None = unknown  # of the buffer; None after somebody else has set it
        self._default_widths = unknown
        # Asked at each activation; of an enum they take microseconds.
        self._groups_value, self._by_channel = groups.value, Group.CHANNELS in groups
        self._agreed = not self._by_channel  # whether all ranks are known to have the same widths
        self._starts, self._widths_of_starts = starts_of(unknown, self.sums), unknown

    @property
    def widths(self) -> list[int]:
        """The number of channels of each layer, 0 where it is not known."""
        if self._widths is None:  # a metric of the same `MetricCollection` shares its buffer, say
            self._widths = self._set_default(widths_in(self.buffer, len(self.layers), self.sums))
        return self._widths

    @property
    def rows(self) -> Tensor:
        """The rows ``(L, ROW_SIZE + S)``, a view."""
        return split(self.buffer, len(self.layers), self.sums)[0]

    @property
    def update_called(self) -> bool:
        """Always True, so that ``compute`` does not warn: a count of 0 says that nothing was seen."""
        return True

    def update(self, index: int, x: Tensor, mask: Tensor | None = None, batch: int | Tensor | None = None) -> None:
        """Add one activation of one layer; the same as `accumulate`."""
        self.accumulate(index, x, mask, batch)

    def accumulate(
        self,
        index: int,
        x: Tensor,
        mask: Tensor | None = None,
        batch: int | Tensor | None = None,
        channels: int | None = None,
    ) -> None:
        """Add one activation of one layer, without torchmetrics' wrappers, so that ``torch.compile`` makes one graph.

        There is no synchronisation when ``x`` and the metric are on one device.

        Args:
            index: which layer, ``0 <= index < L``.
            x: its activation, any shape and floating-point dtype, for example ``(B, T, D)``.
            mask: bool, of the shape of ``x``'s leading dimensions: True where elements count.
            batch: the index of its batch; the first batch with a non-finite element is kept. In a compiled graph give
                a tensor ``()``: an integer would become a constant of the graph, compiled again for each batch.
            channels: the dimension of the channels; see `measure`.

        Raises:
            IndexError: the metric has no such layer.
            TypeError, ValueError: as `measure` does.
            RuntimeError: a graph is being compiled, and the layer's number of channels is not known.
        """
        if not 0 <= index < len(self.layers):
            raise IndexError(f"no layer {index}: this metric holds the layers 0 to {len(self.layers) - 1}")
        if not torch.compiler.is_compiling() and self._added_by_numba(index, x, mask, batch, channels):
            return
        tokens, keep = as_tokens(x, mask, channels)
        start = self._start(index, tokens.shape[1])
        accumulate(place_at(self.buffer, start, self.sums), tokens, keep, self.groups, batch, self.sums)

    def _added_by_numba(
        self, index: int, x: Tensor, mask: Tensor | None, batch: int | Tensor | None, channels: int | None
    ) -> bool:
        """Add an activation in few steps, if numba measures it and it has the layer's number of channels."""
        if isinstance(batch, Tensor) or not self.buffer.is_cpu or not in_numba.suits(x, mask) or run_on_cpu():
            return False
        elements = elements_of(x, mask, channels)
        start = self._start(index, elements.width)
        if self._by_channel and start.width != elements.width:
            return False
        accumulate_by_numba(self.buffer, start, elements, self._groups_value, batch, self.sums)
        return True

    def _start(self, index: int, width: int) -> Start:
        """Return where a layer's numbers begin, after making room for its channels if it has none yet."""
        widths = self.widths
        if self._by_channel and width and not widths[index]:
            if torch.compiler.is_compiling():
                # A tensor that a graph makes in inference mode could not be written to later.
                raise RuntimeError(
                    f"the number of channels of layer {self.layers[index]!r} is not known, and a compiled graph "
                    "cannot make room for its channels: run one pass before compiling, or call make_room"
                )
            self.make_room(index, width)
            widths = self.widths
        if torch.compiler.is_compiling():  # a graph that writes to the cache would be compiled once more
            return starts_of(widths, self.sums)[index]
        if widths is not self._widths_of_starts:  # they are replaced, never written to
            self._widths_of_starts, self._starts = widths, starts_of(widths, self.sums)
        return self._starts[index]

    def make_room(self, index: int, width: int) -> None:
        """Make room for a layer's channels before its first activation comes."""
        self._widen([*self.widths[:index], width, *self.widths[index + 1 :]])

    @torch.no_grad()
    def absorb(self, buffer: Tensor, widths: Sequence[int]) -> None:
        """Add a buffer of the same layers and sums, of these widths."""
        widest = [max(pair) for pair in zip(self.widths, widths, strict=True)]
        if widest != self.widths:
            self._widen(widest)
        if widest != list(widths):
            buffer = widen(buffer, widths, widest, self.sums)
        self.buffer.copy_(self._merge(torch.stack([self.buffer, buffer])))

    def split(self, buffer: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return rows ``(L, ROW_SIZE + S)`` and each layer's channels ``(2, D)``: views of a buffer of this metric."""
        rows, channels = split(buffer, len(self.layers), self.sums)
        # A result of before a layer's width was known is shorter. Widths never shrink, so an equal length is enough.
        known = len(buffer) == len(self.buffer)
        return rows, channels.split(self.widths if known else widths_in(buffer, len(self.layers), self.sums), dim=1)

    def compute(self) -> Tensor:
        """Return the buffer over all ranks, float64 on the metric's device, as a copy; see `split`."""
        return self.buffer

    def shares(self) -> Shares:
        """Share the buffer, for `exchange`, and before it the widths while ranks may differ in them."""
        if not self._agreed and is_distributed():
            extremes = yield Share(self._widths_as_tensor(), _extremes, True, len(self.buffer))
            self._settle(extremes)
        merged = yield Share(self.buffer, self._merge)
        return merged

    def load(self, buffer: Tensor) -> None:
        """Continue from the buffer of another metric with the same layers and sums."""
        self.buffer = buffer.to(self.buffer, copy=True)
        self._widths = self._set_default(widths_in(buffer, len(self.layers), self.sums))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric of the same layers and sums; the widths may differ.

        Args:
            incoming_state: the metric, or its state, ``{"buffer": buffer}``.

        Raises:
            ValueError: it is something else, or has other layers or sums.
        """
        if isinstance(incoming_state, ActivationStatisticsMetric):
            theirs, own = (one.layers + tuple(s.name for s in one.sums) for one in (incoming_state, self))
            if theirs != own:
                raise ValueError(f"a metric of {theirs} cannot be merged into one of {own}")
            incoming_state = {"buffer": incoming_state.buffer}
        if not isinstance(incoming_state, Mapping) or not isinstance(incoming_state.get("buffer"), Tensor):
            raise ValueError(
                f"merge_state takes an ActivationStatisticsMetric or {{'buffer': buffer}}, not {type(incoming_state)}"
            )
        _check_length(incoming_state["buffer"], len(self.layers), self.sums)
        self._reduce_states(dict(incoming_state))

    @torch.no_grad()
    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        incoming = incoming_state["buffer"].to(self.buffer)
        with torch.inference_mode(False):
            joined = join_buffers([incoming.clone(), self.buffer], len(self.layers), self.sums)
        self.load(joined)

    def reset(self) -> None:
        """Forget everything but the widths."""
        agreed = self._agreed
        super().reset()
        self._widths, self._agreed = self._default_widths, agreed

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None, statistic: str = "mean") -> Any:
        """Plot one statistic: a point for each layer, or a curve for each over several results.

        Args:
            val: a result of ``compute`` or ``forward``, or several; the present one if left out.
            ax: an axis of matplotlib to draw on.
            statistic: the statistic, one of those that `statistics` reads.

        Returns:
            Figure and axis, as torchmetrics' metrics return them.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            KeyError: the statistic is not known, or is one of channels.
        """
        if isinstance(val, Sequence):
            return self._plot([self._values(one, statistic) for one in val], ax)
        return self._plot(self._values(self.compute() if val is None else val, statistic), ax)

    def _values(self, buffer: Tensor, name: str) -> Tensor:
        """Return one statistic of each layer."""
        return statistics(split(buffer, len(self.layers), self.sums)[0], self.sums, [name])[name]

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Merge the ranks' buffers, with the metric's own gather also when called directly."""
        available = distributed_available or self.distributed_available_fn
        if should_sync and not self._agreed and available is not None and available():
            self._agree(process_group or self.process_group)
        with self._keeping_widths():
            super().sync(dist_sync_fn or self.dist_sync_fn, process_group, should_sync, distributed_available)

    def unsync(self, should_unsync: bool = True) -> None:
        """Put the rank's own buffer back."""
        with self._keeping_widths():
            super().unsync(should_unsync)

    def _agree(self, group: Any) -> None:
        """Widen every layer to the widest rank's width."""
        self._settle(_extremes(torch.stack(gather(self._widths_as_tensor(), group))))

    def _widths_as_tensor(self) -> Tensor:
        return torch.tensor(self.widths, dtype=torch.float64, device=self.buffer.device)

    def _settle(self, extremes: Tensor) -> None:
        narrowest, widest = ([int(width) for width in widths] for widths in extremes.tolist())
        self._widen(widest)
        # Every rank sees the same here, so all leave this step out from now on, or none does.
        self._agreed = narrowest == widest and all(widest)

    def _widen(self, widths: list[int]) -> None:
        agreed = self._agreed
        with torch.inference_mode(False), torch.no_grad():
            self.buffer = widen(self.buffer, self.widths, widths, self.sums)
        self._widths, self._agreed = self._set_default(widths), agreed

    def _set_default(self, widths: list[int]) -> list[int]:
        """Make the buffer that `reset` copies; return the widths."""
        if widths != self._default_widths:
            with torch.inference_mode(False), torch.no_grad():
                self._defaults["buffer"] = empty_buffer(widths, self.buffer.device, self.sums)
            self._default_widths = widths
        return widths

    @contextmanager
    def _keeping_widths(self) -> Iterator[None]:
        """Let torchmetrics set the buffer to another one of the same widths."""
        widths, agreed = self._widths, self._agreed
        yield
        self._widths, self._agreed = widths, agreed

    def __setattr__(self, name: str, value: Any) -> None:
        # add_state, reset, unsync, forward, .to() and a `MetricCollection` all set the state here. An inference tensor
        # would kill the next update outside inference mode ("Inplace update to inference tensor").
        if name == "buffer":
            if value.is_inference():
                with torch.inference_mode(False):
                    value = value.clone()
            if value is not self.__dict__.get("buffer"):
                # All ranks forget here, or none: whoever sets the state does so on each of them.
                self._widths, self._agreed = None, Group.CHANNELS not in self.groups
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # torchmetrics guards .half() but not .to(torch.float16). Moves are followed, changes of dtype are not.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        with self._keeping_widths():
            return super()._apply(move, exclude_state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torchmetrics would keep the given tensor itself, on its device, and update it in place.
        if (buffer := state_dict.pop(f"{prefix}buffer", None)) is not None:
            _check_length(buffer, len(self.layers), self.sums)
            self.load(buffer)
            state_dict[f"{prefix}buffer"] = self.buffer
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_length(buffer: Tensor, layers: int, sums: Sequence[Sum]) -> None:
    size = empty_buffer([0] * layers, sums=sums).numel()
    rows, _ = split(buffer[:size], layers, sums) if len(buffer) >= size else (None, None)
    if rows is None or len(buffer) != size + 2 * rows[:, Row.CHANNELS].sum().item():
        also = f" with the sums {[one.name for one in sums]}" if sums else ""
        raise ValueError(
            f"the saved buffer has {len(buffer)} numbers, which are not those of {layers} layers{also}: "
            "load it into a metric of the same layers and sums"
        )


def _extremes(widths: Tensor) -> Tensor:
    """Return the narrowest and the widest width of each layer: ``(R, L)`` to ``(2, L)``."""
    return torch.stack([widths.amin(0), widths.amax(0)])


_MOST_LAYERS = 1_000_000


def _names(layers: Sequence[str] | int) -> tuple[str, ...]:
    if isinstance(layers, (int, bool)):
        if isinstance(layers, bool) or not 0 <= layers <= _MOST_LAYERS:
            raise ValueError(f"layers={shown(layers)} must be a number of layers, 0 to {_MOST_LAYERS:,}")
        return tuple(str(i) for i in range(layers))
    names = (layers,) if isinstance(layers, str) else tuple(listed("layers", layers, "names", "['h.0', 'h.1']"))
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"layers holds {shown(wrong[0])}, which is not a layer's name")
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(
            f"layers: each has one row, and these names occur more than once: {cut(', '.join(repeated), 400)}"
        )
    return names
