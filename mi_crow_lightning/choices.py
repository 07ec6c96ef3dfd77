"""The names that arguments take, as types: a type checker finds a misspelt one before the run does.

What is checked while a program runs is made from these types, so that both allow the same names.
"""

from __future__ import annotations

from typing import Literal, NewType, TypeAlias

__all__ = [
    "ActionName",
    "DirectionName",
    "ErrorAction",
    "GroupName",
    "HistogramKind",
    "HookTypeName",
    "MergeName",
    "MethodName",
    "OwnStatistic",
    "PaddingSide",
    "ProbeRows",
    "ReportForm",
    "ScalarsName",
    "ScaleName",
    "StageName",
    "StatisticName",
    "TokenStatisticName",
    "TokensName",
    "VectorMethodName",
    "WeightStatisticName",
    "WriteMode",
]

# Hooks.

HookTypeName: TypeAlias = Literal["forward", "pre_forward"]
"""Where a hook stands: after the layer, or before it."""

ErrorAction: TypeAlias = Literal["raise", "disable", "warn"]
"""What happens when a hook fails."""

StageName: TypeAlias = Literal["train", "validate", "test", "predict"]
"""A stage of the Trainer."""

TokensName: TypeAlias = Literal["all", "prompt", "generated", "last", "ordinary"]
"""A choice of positions, see `Tokens`."""

MergeName: TypeAlias = Literal["sum", "max", "min"]
"""How two numbers of a `SummingDetector` become one."""

# What is measured.

ProbeRows: TypeAlias = Literal["sample", "token"]
"""The rows of a `LinearProbe`: samples, or each of their tokens."""

StatisticName: TypeAlias = Literal[
    "mean",
    "std",
    "rms",
    "min",
    "max",
    "abs_max",
    "token_norm_mean",
    "token_norm_max",
    "zero_share",
    "dead_share",
    "kurtosis",
    "outlier_ratio",
    "nonfinite_count",
    "nonfinite_batch",
]
"""A built-in statistic of activations, or of their gradients."""

OwnStatistic = NewType("OwnStatistic", str)
"""The name of a statistic that you declared, as `mi_crow_lightning.metrics.register` returns it."""

TokenStatisticName: TypeAlias = Literal[
    "abs_mean", "median_norm", "max_channel", "max_position", "cosine", "effective_rank"
]
"""A statistic of tokens, see `TokenStatistics`."""

WeightStatisticName: TypeAlias = Literal["norm", "gradient_norm", "update_norm", "update_ratio", "skipped_steps"]
"""A statistic of weights, see `WeightStatistics`."""

MethodName: TypeAlias = Literal["mean_difference", "pca", "logistic"]
"""How a steering vector is made from representations, see `ContrastDetector`."""

VectorMethodName: TypeAlias = Literal["mean", "mean_difference", "pca", "logistic"]
"""The same, with a short name for the first, see `SteeringVector.from_pairs`."""

GroupName: TypeAlias = Literal["negative", "positive", "difference"]
"""A group of representations whose scatter matrix is kept, see `ContrastDetector`."""

# Alarms.

ActionName: TypeAlias = Literal["log", "warn", "checkpoint", "switch off", "stop", "snapshot"]
"""What is done when an alarm fires."""

DirectionName: TypeAlias = Literal["up", "down", "both"]
"""The changes of a reading that a rule fires at."""

# What is written and drawn.

ScalarsName: TypeAlias = Literal["auto", "all", "summary", "none"]
"""Which statistics are scalars of the loggers, see `HookCallback`."""

ReportForm: TypeAlias = Literal["full", "short", "off"]
"""How much of a run's report is logged."""

ScaleName: TypeAlias = Literal["linear", "symlog", "per_layer"]
"""The scale of a heatmap's colours."""

HistogramKind: TypeAlias = Literal["heat", "ridge"]
"""How histograms are drawn."""

WriteMode: TypeAlias = Literal["x", "w", "a"]
"""How a file is opened that may exist: refused, replaced, or added to."""

PaddingSide: TypeAlias = Literal["left", "right"]
"""The side on which shorter texts are padded."""
