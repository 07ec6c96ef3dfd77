"""The options that hooks hand on to their base classes, as types: a type checker finds a misspelt one.

A class says ``**options: Unpack[...]`` with the options of its base class that it does not name itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from mi_crow_lightning.choices import ErrorAction, OwnStatistic, StatisticName
from mi_crow_lightning.hooks.conditions import Condition
from mi_crow_lightning.hooks.hook_type import HookTypeLike
from mi_crow_lightning.hooks.schedules import When
from mi_crow_lightning.hooks.strengths import Strength
from mi_crow_lightning.hooks.tokens import TokensLike

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mi_crow_lightning.store import Store
else:

    class Unpack:
        """``Any`` while a program runs: LightningCLI then reads options, defaults and texts from the base classes."""

        def __class_getitem__(cls, options: object) -> object:
            from typing import Any

            return Any


__all__ = [
    "ContrastOptions",
    "ControllerOptions",
    "DetectorOptions",
    "EditOptions",
    "FunctionOptions",
    "HookOptions",
    "PlaceOptions",
    "ReadingOptions",
    "ScheduleOptions",
    "SkipOptions",
    "StatisticsOptions",
    "SteeringOptions",
    "SummingOptions",
    "TokenOptions",
    "Unpack",
    "WeightOptions",
]


class ScheduleOptions(TypedDict, total=False):
    """Those that say when a hook is on, and where it finds the channels."""

    schedule: When | None
    channels: int | None


class HookOptions(ScheduleOptions, total=False):
    """Those that a `Controller` or `Detector` hands on to `Hook`, but for its place."""

    on_error: ErrorAction | None


class PlaceOptions(TypedDict, total=False):
    """Those that say where a hook stands, and what it is called."""

    hook_type: HookTypeLike
    hook_id: str | None


# Controllers.


class SkipOptions(HookOptions, total=False):
    """Those that a `TokenController` hands on to `Controller`."""

    may_skip: bool


class ControllerOptions(SkipOptions, PlaceOptions, total=False):
    """All of a `Controller`, for a class that you derive from it."""


class EditOptions(SkipOptions, total=False):
    """Those of a `TokenController` but for its strength, its tokens and its place."""

    when: Condition | None
    preserve_norm: bool


class SteeringOptions(EditOptions, PlaceOptions, total=False):
    """Those that a `SteeringController` hands on."""


class FunctionOptions(EditOptions, total=False):
    """Those that a `FunctionController` hands on."""

    strength: Strength
    tokens: TokensLike


class TokenOptions(FunctionOptions, PlaceOptions, total=False):
    """All of a `TokenController`, for a class that you derive from it."""


# Detectors.


class ContrastOptions(ScheduleOptions, total=False):
    """Those that a `ContrastDetector` hands on."""

    store: Store | None
    name: str | None
    before_edits: bool


class ReadingOptions(ContrastOptions, HookOptions, total=False):
    """Those of a `Detector` but for its place."""


class DetectorOptions(ReadingOptions, PlaceOptions, total=False):
    """All of a `Detector`, for a class that you derive from it."""


class SummingOptions(DetectorOptions, total=False):
    """All of a `SummingDetector`, for a class that you derive from it."""

    tokens: TokensLike


class StatisticsOptions(SummingOptions, total=False):
    """All of an `ActivationStatistics`, which `GradientStatistics` hands on."""

    statistics: Sequence[StatisticName | OwnStatistic] | None
    histogram: bool
    per_channel: bool
    dead_threshold: float


class WeightOptions(TypedDict, total=False):
    """Those of a detector that a `WeightStatistics` takes."""

    hook_id: str | None
    name: str | None
    schedule: When | None
    on_error: ErrorAction | None
