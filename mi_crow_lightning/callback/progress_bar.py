"""Readings in the Trainer's progress bar: of each statistic that was chosen the largest number over the layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["ProgressBarNumbers"]

_BEGINNINGS = {"train": "", "validate": "val_"}  # the bars of test and predict show no numbers
_DEFAULT_PREFIX = "activations"


class ProgressBarNumbers:
    """The numbers of a HookCallback in the progress bar.

    A number is called ``<name>_max``, in validation ``val_<name>_max``; that of a detector that has a ``name``
    ``<detector>_<name>_max``. Readings are those that are written anyway: nothing is measured or exchanged for it.

    Args:
        names: the readings that are shown.
        hooks: the hooks of the callback.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> from mi_crow_lightning.loggers.step import DetectorReadings
        >>> two = [Reading("h.0", "rms", 1.0), Reading("h.1", "rms", 3.0)]
        >>> step = LoggedStep("validate", 7, [DetectorReadings(two, ("h.0", "h.1"), "h.*")])
        >>> ProgressBarNumbers(["rms"], []).of(step)
        {'val_rms_max': 3.0}
    """

    def __init__(self, names: Sequence[str], hooks: Iterable[Hook]) -> None:
        self._names = list(names)
        # Where nothing is shown, nothing is asked: what a user's detector answers with an error would end the run.
        detectors = [hook for hook in hooks if isinstance(hook, Detector)] if names else []
        self._declared = {name for detector in detectors for name in detector.reading_names()}
        self._undeclared = {detector.tag_prefix for detector in detectors if not detector.reading_names()}

    def of(self, read: LoggedStep) -> dict[str, float]:
        """Return the numbers of one step, by what the progress bar calls them.

        Raises:
            ValueError: a detector that does not declare what it reads, has no reading of a chosen name.
        """
        if not self._names or read.stage not in _BEGINNINGS:
            return {}
        found: dict[str, float] = {}
        for detector in read.detectors:
            beginning = _BEGINNINGS[read.stage]
            beginning += "" if detector.prefix == _DEFAULT_PREFIX else f"{detector.prefix}_"
            for _, name, value, _ in detector.readings:
                if name in self._names and not isinstance(value, Histogram):
                    key = f"{beginning}{name}_max{_suffix(read.dataloader_idx)}"
                    found[key] = _largest(found.get(key, math.nan), float(value))
        if self._undeclared:
            self._check(read)
        return found

    def _check(self, read: LoggedStep) -> None:
        """Refuse names that a detector turns out not to have, at its first readings."""
        first = {detector.prefix for detector in read.detectors} & self._undeclared
        self._undeclared -= first
        self._declared |= {
            name for one in read.detectors for _, name, value, _ in one.readings if not isinstance(value, Histogram)
        }
        for name in self._names if first and not self._undeclared else ():
            if name not in self._declared:
                raise not_known("prog_bar", name, sorted(self._declared))


def _largest(one: float, other: float) -> float:
    """Return the larger of two numbers, and ``nan`` only if both are."""
    return other if math.isnan(one) else one if math.isnan(other) else max(one, other)


def _suffix(dataloader_idx: int | None) -> str:
    return "" if dataloader_idx is None else f"/dataloader_idx_{dataloader_idx}"
