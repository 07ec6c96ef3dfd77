"""The base of detectors whose readings are statistics of tensors: of activations, or of their gradients.

It keeps 640 bytes a layer and 16 a channel on the layer's device, whatever the size of the tensors, and copies to the
host only when a reading is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._arguments import check_flag, is_finite, listed, not_known
from mi_crow_lightning._saved_state import Check, each, is_count, names, numbers
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import OwnStatistic, StatisticName
from mi_crow_lightning.errors import HookStateError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import ReadingOptions, Unpack
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import EVALUATIONS, IN_STATES, Stage
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.activation import (
    SHOWN,
    STATISTICS,
    channel_rms,
    channel_statistics,
    described,
    groups_of,
    histogram,
    histogram_of,
    known_names,
    statistics,
    sums_of,
)
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.collectives import Shares
from mi_crow_lightning.metrics.one_pass.buffers import join_buffers, split
from mi_crow_lightning.metrics.one_pass.forms import prepare_form
from mi_crow_lightning.metrics.one_pass.graph_sums import LayerSums, take_sums
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, with_sums
from mi_crow_lightning.metrics.statistic import Sum
from mi_crow_lightning.metrics.summary import Group

__all__ = ["StatisticsDetector"]


@abstract("observe")
class StatisticsDetector(Detector):
    """A detector that streams statistics of tensors; a subclass overrides ``observe`` and calls ``_add``.

    Args:
        layer_signature: which layers.
        statistics: names of `STATISTICS`, or of statistics that you declared; ``None`` for all of `STATISTICS`.
        histogram: whether to give a histogram.
        per_channel: whether to give a histogram of the channels' root mean squares.
        dead_threshold: a channel is dead when no absolute value since the last reading was above this.
        tokens: which positions.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``name``, ``before_edits``, ``schedule``, ``on_error``, ``channels``, see `Detector`.

    Raises:
        ValueError: a statistic or the tokens are not known, or the threshold is negative.
    """

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        statistics: Sequence[StatisticName | OwnStatistic] | None = None,
        histogram: bool = True,
        per_channel: bool = False,
        dead_threshold: float = 0.0,
        tokens: TokensLike = "all",
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        **options: Unpack[ReadingOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        self.statistics = _known(statistics)
        self._measures_all = statistics is None
        self.histogram = check_flag("histogram", histogram)
        self.per_channel = check_flag("per_channel", per_channel)
        if not is_finite(dead_threshold) or dead_threshold < 0:
            raise ValueError(f"dead_threshold={shown(dead_threshold)} must be 0 or a positive number")
        self.dead_threshold = dead_threshold
        self.tokens = Tokens.of(tokens)
        self._layers: dict[str, int] = {}  # the place of each in the buffers
        self._device = torch.device("cpu")
        self._metrics: dict[str, ActivationStatisticsMetric] = {}
        self._in_graph: dict[str, dict[str, LayerSums]] = {}  # by stage and layer
        self._loaded: dict[str, Any] = {}

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.statistics != STATISTICS:
            yield "statistics", shown([*self.statistics], 80)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        yield from super()._facts()

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new buffers, filled with what a checkpoint brought, if one did."""
        self._layers = {layer: place for place, layer in enumerate(layers)}
        # The sums are float64, which Apple's GPUs do not have.
        self._device = torch.device("cpu") if device.type == "mps" else device
        prepare_form(self._device)
        self._metrics.clear()
        self._in_graph.clear()
        self._restore()

    def prepare_graph(self, device: torch.device) -> None:
        """Make the places that a graph adds to."""
        for stage in Stage:
            self._in_graph[stage.value] = {
                layer: LayerSums(self._groups(), self._device, self._sums()) for layer in self._layers
            }

    def why_not_traced(self) -> str | None:
        """Return why its tokens are not known in a graph; ``None`` where they are."""
        return self.tokens.why_not_traced()

    def _chosen(self, x: Tensor, ctx: HookContext) -> tuple[Tensor | None, int]:
        """Return the mask of the tokens that count, and the dimension of the channels."""
        mask = self.tokens.mask(x, ctx)
        return mask, -1 if mask is not None else ctx.channel_dim(x)  # a mask is of all dimensions but the last

    def _add(
        self, x: Tensor, mask: Tensor | None, channels: int, layer: str, stage: Stage | None, batch_idx: Any
    ) -> None:
        """Add the tokens of a tensor that count to the statistics of a layer."""
        if self._in_graph and torch.compiler.is_compiling():
            assert stage is not None, "graphs are prepared for in a Trainer"
            self._in_graph[stage.value][layer].add(x, mask, batch_idx, channels)  # its index is a tensor there
        else:
            self._metric(stage).accumulate(self._layers[layer], x, mask, batch_idx, channels)

    def reading_names(self) -> tuple[str, ...]:
        """Return the chosen statistics, and ``histogram`` and ``channel_rms`` if they are given."""
        given = {"histogram": self.histogram, "channel_rms": self.per_channel}
        return (*self.statistics, *(name for name, wanted in given.items() if wanted))

    @property
    def _shown_by_default(self) -> tuple[str, ...]:
        """All that was asked for by name; where that is nothing, the few of `SHOWN`, and the histograms."""
        hidden = set(STATISTICS).difference(SHOWN) if self._measures_all else ()
        return tuple(name for name in self.reading_names() if name not in hidden)

    def _described(self, name: str) -> str:
        return described(name)

    def share(self) -> Shares:
        """Share the sums of the running stage."""
        return self._settled(self._stage).shares()

    def readings(self) -> list[Reading]:
        """Return the readings of every layer that was seen in the running stage; one copy to the host for all."""
        merged = self.over_ranks()
        rows, channels = self._metric(self._stage).split(merged)
        values = {name: column.tolist() for name, column in statistics(rows, self._sums(), self.statistics).items()}
        elements = (rows[:, Row.COUNT] + rows[:, Row.NONFINITE]).tolist()
        readings: list[Reading] = []
        for index, layer in enumerate(self._layers):
            if elements[index]:
                of_row = {name: column[index] for name, column in values.items()}
                readings += self._of_layer(layer, of_row, rows[index], channels[index])
        return readings

    def _of_layer(self, layer: str, values: dict[str, float], row: Tensor, channels: Tensor) -> Iterator[Reading]:
        if len(self.statistics) > len(values):  # those that are left are read from the channels
            values |= channel_statistics(row, channels, self.dead_threshold)
        for name in self.statistics:
            if name != "nonfinite_batch" or not math.isnan(values[name]):
                yield Reading(layer, name, values[name])
        if self.histogram:
            yield Reading(layer, "histogram", histogram(row), "histogram")
        if self.per_channel and not row[Row.MIXED]:
            yield Reading(layer, "channel_rms", histogram_of(channel_rms(row, channels)), "histogram")

    def reset(self) -> None:
        """Forget what was seen in the running stage."""
        self._settled(self._stage).reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, and what was seen in training since the last readings.

        An evaluation is read at its end: one that was cut short is not gone on with.
        """
        if self._loaded:  # a checkpoint may be written before the run begins
            return {**self._loaded, **super().state_dict()}
        rows, channels = {}, {}
        for stage in dict.fromkeys([*self._metrics, *self._in_graph]):
            if stage in EVALUATIONS:
                continue
            metric = self._settled(Stage.of(stage) if stage else None)
            on_host = metric.buffer.cpu().clone()
            rows[stage], channels[stage] = split(on_host, len(self._layers), self._sums())
        state = {**super().state_dict(), "layers": list(self._layers), "rows": rows, "channels": channels}
        return {**state, **self._names_of_sums()}

    _may_be_missing = ("sums",)

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"layers": names, "sums": names, "rows": _by_stage, "channels": _by_stage}

    def _check_together(self, fields: dict[str, Any]) -> None:
        super()._check_together(fields)
        if fields["rows"].keys() != fields["channels"].keys():
            raise ValueError(f"rows are of the stages {[*fields['rows']]}, and channels of {[*fields['channels']]}")
        for stage, rows in fields["rows"].items():
            name, size = f"rows[{stage!r}]", ROW_SIZE + len(fields.get("sums", ()))
            numbers(name, rows, len(fields["layers"]), size)
            if not is_count(rows[:, _COUNTS]):
                raise ValueError(f"{name} has counts that are not finite, or below 0")
            widths = rows[:, Row.CHANNELS]
            if (widths > len(fields["channels"][stage].flatten())).any() or (widths % 1).any():
                raise ValueError(f"{name} has widths of layers that are not those of the channels")
            numbers(f"channels[{stage!r}]", fields["channels"][stage], 2, int(widths.sum()))
        if self.registered:
            self._refuse_others(fields)

    def _load(self, fields: dict[str, Any]) -> None:
        """Go on counting from where the state was made."""
        super()._load(fields)
        self._loaded = fields
        if self.registered:  # else `prepare` takes it up
            self._restore()

    def forget_run(self) -> None:
        """Drop the sums of an earlier run, and keep those that were loaded for the next."""
        self._metrics.clear()

    def _joined_state(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """Rank 0 goes on from what all ranks had seen together, the others from nothing."""
        parts: dict[str, list[Tensor]] = {}
        for state in states if rank == 0 else ():
            for stage, rows in state["rows"].items():
                parts.setdefault(stage, []).append(self._buffer(state, stage, rows))
        layers = len(states[0]["layers"])
        sums = self._sums()
        joined = {stage: split(join_buffers(buffers, layers, sums), layers, sums) for stage, buffers in parts.items()}
        rows, channels = ({stage: both[i] for stage, both in joined.items()} for i in range(2))
        return {**super()._joined_state(states, rank), "rows": rows, "channels": channels, **self._names_of_sums()}

    def _restore(self) -> None:
        loaded, self._loaded = self._loaded, {}
        self.resumed.clear()
        if not loaded.get("rows"):
            return
        self._refuse_others(loaded)
        for stage, rows in loaded["rows"].items():
            self._metric(Stage.of(stage) if stage else None).load(self._buffer(loaded, stage, rows))
            if stage and (rows[:, Row.COUNT] + rows[:, Row.NONFINITE]).any():
                self.resumed.add(Stage.of(stage))

    def _refuse_others(self, loaded: Mapping[str, Any]) -> None:
        """Refuse statistics of other layers."""
        if loaded["rows"] and loaded["layers"] != list(self._layers):
            raise HookStateError(
                f"{shown(self)}: the checkpoint's statistics are of the layers {shown(loaded['layers'], 400)}, and the "
                f"detector watches {shown([*self._layers], 400)}: give it the same layers, or another hook_id"
            )

    @property
    def _stage(self) -> Stage | None:
        return self.context.stage if self.context is not None else None

    def _metric(self, stage: Stage | None) -> ActivationStatisticsMetric:
        key = stage or ""  # a stage is a string: its value would be looked up at each activation
        if key not in self._metrics:
            metric = ActivationStatisticsMetric(list(self._layers), self._groups(), self._sums())
            self._metrics[key if stage is None else stage.value] = metric.to(self._device)
        return self._metrics[key]

    def _settled(self, stage: Stage | None) -> ActivationStatisticsMetric:
        """Return the stage's metric, with what graphs have added up."""
        metric = self._metric(stage)
        in_graph = self._in_graph.get(stage.value if stage is not None else "", {})
        if (taken := take_sums(list(in_graph.values()))) is not None:
            metric.absorb(*taken)
        return metric

    def _groups(self) -> Group:
        return groups_of(self.statistics, self.histogram, self.per_channel)

    def _sums(self) -> tuple[Sum, ...]:
        return sums_of(self.statistics)

    def _names_of_sums(self) -> dict[str, list[str]]:
        """Name the further sums in a checkpoint; nothing where there are none."""
        names = [one.name for one in self._sums()]
        return {"sums": names} if names else {}

    def _buffer(self, state: dict[str, Any], stage: str, rows: Tensor) -> Tensor:
        """Return the buffer of a stage, with the sums that this detector needs."""
        rows = with_sums(rows, state.get("sums", ()), self._sums())
        return torch.cat([rows.flatten(), state["channels"][stage].flatten()])


_COUNTS = [Row.COUNT, Row.CHANNELS, Row.ZEROS, Row.NONFINITE, Row.TOKENS, *range(Row.BINS, ROW_SIZE)]


def _by_stage(name: str, value: Any) -> dict[str, Tensor]:
    return each(name, value, lambda part, rows: numbers(part, rows, None, None), keys=IN_STATES)


def _known(names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return STATISTICS
    given = listed("statistics", names, "names", "['mean', 'std']")
    for name in given:
        if not isinstance(name, str) or name not in known_names():
            raise not_known("statistics", name, known_names())
    if repeated := [name for name in given if given.count(name) > 1]:
        raise ValueError(f"statistics={shown(given)} has {repeated[0]!r} twice: each is read once")
    sums_of(given)  # raises where two sums have one name
    return tuple(given)
