"""Shares of detectors over ranks, in which one that fails on one rank holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.metrics.collectives import Shares
from mi_crow_lightning.metrics.guarded_shares import GuardedShares, ShareFailed
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["RankShares", "warn_of_failure_on_another_rank"]


class RankShares:
    """The shares of a registry's detectors.

    Args:
        call: calls a function of a hook as its policy says, see `Layers.call`.
    """

    def __init__(self, call: Callable[[Hook, Callable[[], Any]], Any]) -> None:
        self._call = call
        self._guarded: dict[tuple[str, Stage | None], GuardedShares] = {}

    def of(self, detector: Detector, stage: Stage | None, layers: int) -> Shares:
        """Return the shares of a detector, for `exchange`, which no failure holds up.

        Args:
            detector: the detector.
            stage: the running stage, whose shares have one size; ``None`` outside a Trainer.
            layers: the number of the detector's layers: a share of as many numbers needs one collective.

        Returns:
            As `GuardedShares.of`.
        """
        guarded = self._guarded.setdefault((detector.id, stage), GuardedShares(small=layers))
        return guarded.of(detector.share if not detector._is_off_by_failure else None)

    def failed(self, detector: Detector, failure: ShareFailed) -> None:
        """Treat the failure of a detector's share, on this rank as its policy says."""
        if failure.error is not None:
            self._call(detector, partial(_raise, failure.error))
        elif not detector._is_off_by_failure:
            warn_of_failure_on_another_rank(detector)
            detector._switch_off_after_pass()


def warn_of_failure_on_another_rank(hook: Hook) -> None:
    """Warn that a hook is off because it failed elsewhere."""
    warn(
        f"{hook!r} failed on another rank, which says why, and is now disabled on all ranks: its readings would come "
        "from some ranks only. To switch it on again, call hook.enable() on every rank.",
        FailureWarning,
        stacklevel=2,
    )


def _raise(error: Exception) -> None:
    raise error
