"""Streaming statistics of activations.

Gives mean, spread, shape, extremes, token norms, dead and outstanding channels, non-finite values and a
histogram of each layer, over the tokens that count. It keeps 640 bytes a layer and 16 a channel on the layer's
device, whatever the size of the activations, and copies to the host only when a reading is asked for.
"""

from __future__ import annotations

from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.statistics_detector import StatisticsDetector

__all__ = ["ActivationStatistics"]


class ActivationStatistics(StatisticsDetector):
    """Streams statistics of the activations of its layers, one reading for all that was seen since the last.

    Padding is left out. Training, validation, test and predict are counted apart.

    The layer's class says which dimension the channels are; ``channels=`` overrides it.

    Args:
        layer_signature: which layers.
        statistics: names of `STATISTICS`: ``mean``, ``std``, ``rms``, ``min``, ``max``, ``abs_max``,
            ``token_norm_mean``, ``token_norm_max``, ``zero_share``, ``dead_share``, ``kurtosis``,
            ``outlier_ratio``, ``nonfinite_count``, ``nonfinite_batch``, or one that you declared, see `register`;
            ``None`` for all of `STATISTICS`. Only the chosen ones are computed. ``nonfinite_batch`` is read only
            where there was one, in a Trainer.
        histogram: whether to give a histogram.
        per_channel: whether to give a histogram of the channels' root mean squares, ``channel_rms``.
        dead_threshold: a channel is dead when no absolute value since the last reading was above this.
        tokens: which positions.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``name``, ``before_edits``, ``schedule``, ``on_error``, ``channels``, see `Detector`.

    Raises:
        ValueError: a statistic or the tokens are not known, or the threshold is negative.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> detector = ActivationStatistics("0", statistics=["mean", "max"], histogram=False)
        >>> _ = Layers(model).register_hook("0", detector)
        >>> _ = model(tensor([[1.0, 3.0]])), model(tensor([[5.0]]))
        >>> [(reading.name, reading.value) for reading in detector.readings()]
        [('mean', 3.0), ('max', 5.0)]
    """

    traceable = True

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add the chosen tokens of ``x``."""
        mask, channels = self._chosen(x, ctx)
        running = ctx.running
        self._add(x, mask, channels, ctx.place.layer, running.stage, ctx.batch_idx)
