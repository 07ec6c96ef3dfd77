"""Streaming statistics of activations.

Gives mean, spread, extremes, share of zeros, count of non-finite values and a histogram of each layer,
over the tokens that count. It keeps some hundred bytes a layer on the layer's device, whatever the
size of the activations, and copies to the host only when a reading is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.hooks.tokens import Tokens
from mi_crow_lightning.metrics.activation import STATISTICS, histogram, statistics
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.rows import Row

__all__ = ["ActivationStatistics"]


class ActivationStatistics(Detector):
    """Streams statistics of the activations of its layers, one reading for all that was seen since the last.

    Padding is left out. Training, validation, test and predict are counted apart.

    Args:
        layer_signature: which layers.
        statistics: names from ``mean``, ``std``, ``rms``, ``min``, ``max``, ``abs_max``, ``zero_share``,
            ``nonfinite_count``; ``None`` for all.
        histogram: whether to give a histogram.
        tokens: which positions.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``name``, ``before_edits``, ``schedule``, ``on_error``, see `Detector`.

    Raises:
        ValueError: a statistic or the tokens are not known.

    >>> from torch import nn, tensor
    >>> from mi_crow_lightning.hooks import Layers
    >>> model = nn.Sequential(nn.Identity(), nn.Identity())
    >>> detector = ActivationStatistics("0", statistics=["mean", "max"], histogram=False)
    >>> _ = Layers(model).register_hook("0", detector)
    >>> _ = model(tensor([[1.0, 3.0]])), model(tensor([[5.0]]))
    >>> [(reading.name, reading.value) for reading in detector.readings()]
    [('mean', 3.0), ('max', 5.0)]
    """

    def __init__(
        self,
        layer_signature: str | int | None = None,
        *,
        statistics: Sequence[str] | None = None,
        histogram: bool = True,
        tokens: Tokens | str = "all",
        hook_type: HookType | str = HookType.FORWARD,
        hook_id: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        self.statistics = _known(statistics)
        self.histogram = histogram
        self.tokens = Tokens.of(tokens)
        self._layers: list[str] = []
        self._device = torch.device("cpu")
        self._metrics: dict[str, ActivationStatisticsMetric] = {}
        self._loaded: dict[str, Any] = {}

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new buffers, filled with what a checkpoint brought, if one did."""
        self._layers = list(layers)
        # The sums are float64, which Apple's GPUs do not have.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._metrics.clear()
        self._restore()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add the chosen tokens of ``x``."""
        self._metric(ctx.stage).update(self._layers.index(ctx.layer), x, self.tokens.mask(x, ctx))

    def reading_names(self) -> tuple[str, ...]:
        """The chosen statistics, and ``histogram``."""
        return (*self.statistics, "histogram") if self.histogram else self.statistics

    def readings(self) -> list[Reading]:
        """The readings of every layer that was seen in the running stage; one copy to the host for all."""
        rows = self._metric(self.context.stage if self.context else None).compute().cpu()
        values = {name: column.tolist() for name, column in statistics(rows).items()}
        readings = []
        for index, layer in enumerate(self._layers):
            if not rows[index, Row.COUNT] + rows[index, Row.NONFINITE]:
                continue
            readings += [Reading(layer, name, values[name][index]) for name in self.statistics]
            if self.histogram:
                readings.append(Reading(layer, "histogram", histogram(rows[index]), "histogram"))
        return readings

    def reset(self) -> None:
        """Forget what was seen in the running stage."""
        self._metric(self.context.stage if self.context else None).reset()

    def state_dict(self) -> dict[str, Any]:
        """The switch, and what was seen since the last readings."""
        rows = {stage: metric.rows.cpu().clone() for stage, metric in self._metrics.items()}
        return {**super().state_dict(), "layers": list(self._layers), "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from where `state_dict` was made.

        Raises:
            ValueError: the state is of other layers.
        """
        super().load_state_dict(state)
        self._loaded = state
        if self.registered:  # else `prepare` takes it up
            self._restore()

    def _restore(self) -> None:
        loaded, self._loaded = self._loaded, {}
        if not loaded.get("rows"):
            return
        if loaded["layers"] != self._layers:
            raise ValueError(
                f"{self!r}: the checkpoint's statistics are of the layers {loaded['layers']}, and the detector "
                f"watches {self._layers}: give it the same layers, or another hook_id"
            )
        for stage, rows in loaded["rows"].items():
            self._metric(Stage.of(stage) if stage else None).rows = rows.to(self._device, copy=True)

    def _metric(self, stage: Stage | None) -> ActivationStatisticsMetric:
        key = stage.value if stage is not None else ""
        if key not in self._metrics:
            self._metrics[key] = ActivationStatisticsMetric(self._layers).to(self._device)
        return self._metrics[key]


def _known(names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return STATISTICS
    unknown = [name for name in names if name not in STATISTICS]
    if isinstance(names, str) or unknown:
        raise ValueError(f"statistics={names!r}: choose a list of names from {', '.join(STATISTICS)}")
    return tuple(names)
