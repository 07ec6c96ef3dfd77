"""The steps that probes take after each training batch, together on all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mi_crow_lightning.hooks.detectors.linear_probe import LinearProbe
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.metrics.collectives import exchange, is_distributed
from mi_crow_lightning.metrics.guarded_shares import GuardedShares, ShareFailed

__all__ = ["ProbeSteps"]


class ProbeSteps:
    """The steps of the probes of one run.

    Args:
        layers: the registry of the hooks.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._shares: dict[str, GuardedShares] = {}

    def end_batch(self, hooks: Iterable[Hook], moment: Moment | None, device: torch.device | None) -> None:
        """Let the probes learn from a training batch, in one collective for all.

        Every rank takes part with each probe whose schedule wants the batch: it does not know which are off, or failed,
        on other ranks.

        Args:
            hooks: the hooks of the run.
            moment: the batch.
            device: where ranks exchange tensors.
        """
        if moment is None or moment.stage is not Stage.TRAIN:
            return
        probes = [hook for hook in hooks if isinstance(hook, LinearProbe) and hook.when().due(moment)]
        if not is_distributed():
            for probe in probes:
                if not probe._is_off_by_failure:
                    self._layers.call(probe, probe.step)
            return
        shares = [self._guarded(probe) for probe in probes]
        for probe, outcome in zip(probes, exchange(shares, device), strict=True):
            if isinstance(outcome, ShareFailed):
                self._layers.rank_shares.failed(probe, outcome)

    def _guarded(self, probe: LinearProbe):  # type: ignore[no-untyped-def]
        guarded = self._shares.setdefault(probe.id, GuardedShares())
        return guarded.of(probe.share_batch if not probe._is_off_by_failure else None)
