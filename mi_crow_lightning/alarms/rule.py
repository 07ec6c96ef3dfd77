"""The rule: a question about the numbers that a run reads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._arguments import listed, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.firing import Finding
from mi_crow_lightning.choices import StageName
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["LOSS", "IdleController", "Rule", "Seen", "Series"]

LOSS = "loss"
"""The name of the reading that alarms add: the loss of an optimizer step, of the whole model."""


class Series(NamedTuple):
    """The latest numbers of one reading at one layer in one stage.

    Attributes:
        tag: the tag, which no other series has.
        name: the name of the reading.
        layer: the layer.
        order: the layer's place in the forward pass.
        values: the numbers, the newest last.
        hook: the ID of the controller whose effect it is; empty for none.
    """

    tag: str
    name: str
    layer: str
    order: int
    values: deque[float]
    hook: str = ""


class IdleController(NamedTuple):
    """A controller that was on at a reading, and for how many readings in a row it has changed nothing."""

    hook: str
    name: str
    layer: str
    readings: int


class Seen(NamedTuple):
    """All that is new at a reading.

    Attributes:
        stage: the stage.
        series: the series with a new number.
        idle: the controllers that changed nothing.
        non_finite: the values that are not finite; ``None`` if they were not looked for.
    """

    stage: str
    series: Sequence[Series] = ()
    idle: Sequence[IdleController] = ()
    non_finite: Sequence[Finding] | None = None


@abstract("judge")
class Rule:
    """The base of a rule: a subclass overrides `judge`, which sees the numbers of one reading at one layer.

    Args:
        readings: the readings, by name or tag, or patterns of these such as ``"activations_rms/*"``. The loss of each
            optimizer step is the reading ``"loss"``.
        layers: the layers, by name or patterns of names; a warning says if no hooked layer has such a name.
        stages: the stages; ``None`` for all.
        memory: how many numbers `judge` gets at most.

    Attributes:
        memory: as given.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> class Negative(Rule):
        ...     def judge(self, values):
        ...         return f"has {values[-1]:.3g}, which is negative" if values[-1] < 0 else None
        >>> rule = Negative("*_gap")
        >>> rule.judge([0.5]), rule.judge([0.5, -1.0])
        (None, 'has -1, which is negative')
    """

    before_step: ClassVar[bool] = False
    """Whether the rule is asked before each optimizer step, whatever it reads."""

    def __init__(
        self,
        readings: str | Sequence[str] = "*",
        layers: str | Sequence[str] = "*",
        stages: StageName | Sequence[StageName] | None = None,
        memory: int = 1,
    ) -> None:
        self.readings = _patterns("readings", readings, "['rms', 'loss']")
        self.layers = _patterns("layers", layers, "['*.mlp']")
        self.stages = _stages(stages)
        self.memory = whole_number("memory", memory, 1)

    def judge(self, values: Sequence[float]) -> str | None:
        """Return what is wrong, as the rest of a sentence that begins with a layer; ``None`` if nothing is.

        Args:
            values: the latest numbers, all finite, the newest last; at most ``memory``, and at the start fewer.
        """
        raise NotImplementedError

    def findings(self, seen: Seen) -> Iterator[Finding]:
        """Yield what is wrong among what is new. The base class asks `judge` for each series that it matches."""
        for one in seen.series if self.is_of(seen.stage) else ():
            if self.matches(one):
                newest = list(one.values)[-self.memory :]
                if (text := self.judge(newest)) is not None:
                    text = f"{text} ({one.name})"
                    yield Finding(one.tag, one.layer, text, one.name, newest[-1], one.order, one.hook)

    def is_of(self, stage: str) -> bool:
        """Return whether the rule is asked in a stage."""
        return not self.stages or stage in self.stages

    def matches(self, series: Series) -> bool:
        """Return whether a series is of the rule's readings and layers."""
        named = any(fnmatchcase(series.name, one) or fnmatchcase(series.tag, one) for one in self.readings)
        return named and any(fnmatchcase(series.layer, one) for one in self.layers)

    @property
    def reads_loss(self) -> bool:
        """Whether the loss is among its readings."""
        return self.is_of(Stage.TRAIN.value) and any(fnmatchcase(LOSS, one) for one in self.readings)

    def misses(self, names: Iterable[str], sections: Iterable[str] = ()) -> str | None:
        """Return the first of its readings that none of these can be; ``None`` if there are all.

        Args:
            names: the names of readings.
            sections: what stands before the first slash of their tags.
        """
        known, tagged = [*names, LOSS], list(sections)
        for pattern in self.readings:
            section, slash, _ = pattern.partition("/")
            if not any(fnmatchcase(name, section) for name in (tagged if slash else known)):
                return pattern
        return None

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({given})"


def finite(value: object) -> bool:
    """Return whether a reading's value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _patterns(argument: str, value: str | Sequence[str], example: str) -> list[str]:
    given = [value] if isinstance(value, str) else listed(argument, value, "names or patterns", example)
    if not given or not all(isinstance(one, str) and one.strip() for one in given):
        raise ValueError(f"{argument}={shown(value)} must be a name or pattern, or a list of these, such as {example}")
    return given


def _stages(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    given = [value] if isinstance(value, str) else listed("stages", value, "stages", "['train', 'validate']")
    if not given:
        raise ValueError("stages=[] is empty, so the rule would never be asked: leave it out for all stages")
    return [Stage.of(one, "stages").value for one in given]
