"""The ready rules, each a small class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import ClassVar, get_args

from mi_crow_lightning._arguments import is_finite, one_of, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.firing import Finding
from mi_crow_lightning.alarms.rule import Rule, Seen
from mi_crow_lightning.choices import DirectionName, StageName

__all__ = ["DeadShare", "Drift", "Jump", "NonFinite", "NormGrowth", "Threshold", "Trend", "WithoutEffect"]

_DIRECTIONS: tuple[DirectionName, ...] = get_args(DirectionName)
_TO_SIGMA = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution


class NonFinite(Rule):
    """Fires where an activation of a hooked layer, the loss or a gradient is NaN or infinite.

    Every training batch is looked at, and what was seen is read before each optimizer step, so that the weights are
    still whole. Evaluations are read at their end. The first layer of the forward pass is named; of gradients the last
    layer, since these are computed backwards. Padding is read as well. Under a gradient scaler (``"16-mixed"``)
    gradients are left to it: it skips such steps itself.

    Args:
        stages: the stages; ``None`` for all.

    Raises:
        TypeError, ValueError: a stage is not known.
    """

    before_step: ClassVar[bool] = True

    def __init__(self, stages: StageName | Sequence[StageName] | None = None) -> None:
        super().__init__(stages=stages)

    def findings(self, seen: Seen) -> Iterator[Finding]:
        """Yield what is not finite."""
        if self.is_of(seen.stage):
            yield from seen.non_finite or ()

    @property
    def reads_loss(self) -> bool:
        """Whether the loss is among its readings: it is read anyway."""
        return False

    def misses(self, names: object, sections: object = ()) -> str | None:
        """Return ``None``: the rule needs no reading."""
        return None

    def __repr__(self) -> str:
        return f"NonFinite(stages={self.stages or None})"


class Threshold(Rule):
    """Fires where a reading is above or below a number.

    Args:
        readings: see `Rule`.
        above: the largest number that is in order; ``None`` for any.
        below: the smallest number that is in order; ``None`` for any.
        patience: how many readings in a row must be beyond it.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it, there is no threshold, or every
            number is beyond one.

    Examples:
        >>> Threshold("mean_ratio", above=1.0).judge([2.5])
        'is at 2.5, above 1'
    """

    def __init__(
        self,
        readings: str | Sequence[str],
        above: float | None = None,
        below: float | None = None,
        patience: int = 1,
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        if above is None and below is None:
            raise ValueError(f"{type(self).__name__} needs a threshold: give above=, below= or both")
        self.above = above if above is None else _number("above", above)
        self.below = below if below is None else _number("below", below)
        if self.above is not None and self.below is not None and self.above < self.below:
            raise ValueError(
                f"above={shown(above)} is less than below={shown(below)}, so every reading would fire: above= is the "
                "largest number that is in order, and below= the smallest"
            )
        self.patience = whole_number("patience", patience, 1)
        super().__init__(readings, layers, stages, memory=self.patience)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return which threshold the newest numbers are beyond."""
        if len(values) < self.patience:
            return None
        if self.above is not None and min(values) > self.above:
            return f"is at {values[-1]:.4g}, above {self.above:.4g}"
        if self.below is not None and max(values) < self.below:
            return f"is at {values[-1]:.4g}, below {self.below:.4g}"
        return None


class Drift(Threshold):
    """Fires where a reading of a `DriftDetector` is beyond a number: a `Threshold` that says drift.

    Args:
        readings: the readings, see `Rule`: the mean cosine with the reference if left out, ``"drift_cka/*"`` for
            another. A detector with ``name="base"`` has ``"base_cosine/*"``.
        above: the largest number that is in order; ``None`` for any.
        below: the smallest number that is in order; ``None`` for any.
        patience: how many readings in a row must be beyond it.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: as `Threshold`.

    Examples:
        >>> Drift(below=0.9).judge([0.8])
        'has drifted from its reference: is at 0.8, below 0.9'
    """

    def __init__(
        self,
        readings: str | Sequence[str] = "drift_cosine/*",
        above: float | None = None,
        below: float | None = None,
        patience: int = 1,
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        super().__init__(readings, above, below, patience, layers, stages)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return which threshold the newest numbers are beyond."""
        text = super().judge(values)
        return text and f"has drifted from its reference: {text}"


class Jump(Rule):
    """Fires where a reading leaves its running spread: the median and median absolute deviation of the last ``window``.

    Numbers that are all above zero are compared by their ratios, others by their differences. So a steady growth or
    decay is not a jump, since it widens the spread, and nor is noise.

    Args:
        readings: see `Rule`.
        window: how many numbers before the newest the spread is of.
        warmup: how many of them there must be before the rule fires.
        spreads: how many robust standard deviations make a jump.
        factor: the least ratio to the median that makes a jump, above 1. Where numbers are not above zero, the least
            difference is ``factor - 1`` medians of their sizes.
        direction: ``"up"``, ``"down"`` or ``"both"``.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> jump = Jump("rms", window=10, warmup=4)
        >>> jump.judge([1.0, 1.1, 0.9, 1.0, 1.2]), jump.judge([1.0, 1.1, 0.9, 1.0, 9.0])
        (None, 'jumped to 9 from about 1')
    """

    def __init__(
        self,
        readings: str | Sequence[str],
        window: int = 20,
        warmup: int = 10,
        spreads: float = 10.0,
        factor: float = 2.0,
        direction: DirectionName = "both",
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        self.window = whole_number("window", window, 2)
        self.warmup = whole_number("warmup", warmup, 2)
        if self.warmup > self.window:
            raise ValueError(f"warmup={warmup} must not be larger than window={window}")
        self.spreads = _positive("spreads", spreads)
        self.factor = _above_one("factor", factor)
        self.direction = one_of("direction", direction, _DIRECTIONS)
        super().__init__(readings, layers, stages, memory=self.window + 1)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return to which number the reading jumped."""
        *before, newest = values
        if len(before) < self.warmup:
            return None
        center = median(before)
        by_ratio = min(values) > 0
        if by_ratio:
            distances = [math.log(value / center) for value in before]
            distance, least = math.log(newest / center), math.log(self.factor)
        else:
            distances = [value - center for value in before]
            distance, least = newest - center, (self.factor - 1) * median(map(abs, before))
        spread = _TO_SIGMA * median(map(abs, distances))
        if abs(distance) <= max(self.spreads * spread, least) or distance == 0:
            return None
        if self.direction != "both" and (distance > 0) != (self.direction == "up"):
            return None
        return f"jumped to {newest:.4g} from about {center:.4g}"


class Trend(Rule):
    """Fires where a reading has risen or fallen over the last ``window`` numbers.

    The window is cut into three: the median of the last third must be ``factor`` times that of the first, or the
    reverse, and ``agreement`` of all pairs of its numbers must be in that order.

    Args:
        readings: see `Rule`.
        direction: ``"up"``, ``"down"`` or ``"both"``.
        window: how many numbers.
        factor: the least ratio, above 1.
        agreement: the least share of pairs, 0.5 to 1.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> Trend("loss", window=6, factor=1.5).judge([1.0, 1.1, 1.3, 1.6, 1.9, 2.1])
        'rose from 1.05 to 2'
    """

    def __init__(
        self,
        readings: str | Sequence[str],
        direction: DirectionName = "up",
        window: int = 50,
        factor: float = 1.5,
        agreement: float = 0.75,
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        self.direction = one_of("direction", direction, _DIRECTIONS)
        self.window = whole_number("window", window, 3)
        self.factor = _above_one("factor", factor)
        self.agreement = _number("agreement", agreement)
        if not 0.5 <= self.agreement <= 1:
            raise ValueError(f"agreement={shown(agreement)} must be a share from 0.5 to 1")
        super().__init__(readings, layers, stages, memory=self.window)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return from where to where the reading moved."""
        if len(values) < self.window or min(values) <= 0:
            return None
        third = len(values) // 3
        first, last = median(values[:third]), median(values[-third:])
        rises = last > first
        if self.direction != "both" and rises != (self.direction == "up"):
            return None
        if max(first, last) < self.factor * min(first, last):
            return None
        pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
        agree = sum((b > a) == rises and a != b for a, b in pairs) / len(pairs)
        return f"{'rose' if rises else 'fell'} from {first:.4g} to {last:.4g}" if agree >= self.agreement else None


class NormGrowth(Rule):
    """Fires where a norm is ``factor`` times what it was: the median before.

    Args:
        readings: see `Rule`.
        factor: the ratio, above 1.
        window: how many readings ago the norm is compared with; half of them make the median.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> NormGrowth("rms", factor=10, window=4).judge([1.0, 1.0, 4.0, 8.0, 16.0])
        'grew to 16 from 1, 16 times'
    """

    def __init__(
        self,
        readings: str | Sequence[str] = ("rms", "token_norm_mean"),
        factor: float = 30.0,
        window: int = 20,
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        self.factor = _above_one("factor", factor)
        self.window = whole_number("window", window, 2)
        super().__init__(readings, layers, stages, memory=self.window + 1)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return how much the norm grew."""
        if len(values) <= self.window:
            return None
        before = median(values[: self.window // 2])
        if before <= 0 or values[-1] < self.factor * before:
            return None
        return f"grew to {values[-1]:.4g} from {before:.4g}, {values[-1] / before:.3g} times"


class DeadShare(Rule):
    """Fires where channels are dead: a large share of them, or any at a layer that had none.

    Args:
        readings: the readings, see `Rule`.
        above: the largest share that is in order.
        rise: how many readings in a row must have a dead channel, after ``window`` readings that had none, as in the
            output of a transformer's block; ``None`` to ask for ``above`` alone.
        window: how many readings without a dead channel there must have been for ``rise``.
        layers: see `Rule`.
        stages: see `Rule`.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> DeadShare().judge([0.8])
        'has 80% dead channels'
        >>> DeadShare(rise=2, window=3).judge([0, 0, 0, 0.1, 0.1])
        'has 10% dead channels, and had none'
    """

    def __init__(
        self,
        readings: str | Sequence[str] = "dead_share",
        above: float = 0.5,
        rise: int | None = 3,
        window: int = 10,
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
    ) -> None:
        self.above = _number("above", above)
        if not 0 <= self.above <= 1:
            raise ValueError(f"above={shown(above)} must be a share from 0 to 1")
        self.rise = rise if rise is None else whole_number("rise", rise, 1)
        self.window = whole_number("window", window, 1)
        super().__init__(readings, layers, stages, memory=self.window + (self.rise or 0))

    def judge(self, values: Sequence[float]) -> str | None:
        """Return the share of dead channels."""
        if values[-1] > self.above:
            return f"has {values[-1]:.0%} dead channels"
        if self.rise is None or len(values) < self.memory:
            return None
        had, has = values[: -self.rise], values[-self.rise :]
        if max(had) > 0 or min(has) <= 0:
            return None
        return f"has {values[-1]:.0%} dead channels, and had none"


class WithoutEffect(Rule):
    """Fires where a controller that was on changed nothing.

    Controllers that may be idle, such as those with a condition, are left out. Readings between which a controller was
    off say nothing of it.

    Args:
        patience: for how many readings in a row it must have changed nothing in training; an evaluation has one.
        stages: the stages; ``None`` for all.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.
    """

    def __init__(self, patience: int = 3, stages: StageName | Sequence[StageName] | None = None) -> None:
        self.patience = whole_number("patience", patience, 1)
        super().__init__(stages=stages)

    def findings(self, seen: Seen) -> Iterator[Finding]:
        """Yield the controllers that changed nothing."""
        needed = self.patience if seen.stage == "train" else 1
        for one in seen.idle if self.is_of(seen.stage) else ():
            if one.readings >= needed:
                text = f"was not changed by the controller {one.name}, which was on"
                yield Finding(one.hook, one.layer, text, hook=one.hook)

    @property
    def reads_loss(self) -> bool:
        """Whether the loss is among its readings: it is not."""
        return False

    def misses(self, names: object, sections: object = ()) -> str | None:
        """Return ``None``: the rule needs no reading."""
        return None


def _number(argument: str, value: object) -> float:
    if not is_finite(value):
        raise ValueError(f"{argument}={shown(value)} must be a finite number")
    return float(value)  # type: ignore[arg-type]


def _positive(argument: str, value: object) -> float:
    if not is_finite(value) or float(value) <= 0:  # type: ignore[arg-type]
        raise ValueError(f"{argument}={shown(value)} must be a number above 0")
    return float(value)  # type: ignore[arg-type]


def _above_one(argument: str, value: object) -> float:
    if not is_finite(value) or float(value) <= 1:  # type: ignore[arg-type]
        raise ValueError(f"{argument}={shown(value)} must be a number above 1")
    return float(value)  # type: ignore[arg-type]
