"""The maths: pure functions on flat buffers, and torchmetrics Metrics that hold the buffers.

Nothing here knows of hooks, the Trainer or loggers. Names are resolved on first use, because importing
torchmetrics loads transformers: importing this package loads neither torch nor torchmetrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.activation import STATISTICS, channel_statistics, statistics
    from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
    from mi_crow_lightning.metrics.histogram import Histogram
    from mi_crow_lightning.metrics.log2_bins import EDGES
    from mi_crow_lightning.metrics.one_pass.measure import measure, summarize
    from mi_crow_lightning.metrics.one_pass.summary import Group, Summary
    from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows, merge, merge_all

# activation.histogram, the function, is left out: once loaded, the submodule `histogram` has that name.
__all__ = [
    "EDGES",
    "ROW_SIZE",
    "STATISTICS",
    "ActivationStatisticsMetric",
    "Group",
    "Histogram",
    "Row",
    "Summary",
    "channel_statistics",
    "empty_rows",
    "measure",
    "merge",
    "merge_all",
    "statistics",
    "summarize",
]

_METRICS = "mi_crow_lightning.metrics"
_SOURCES = {
    **dict.fromkeys(["STATISTICS", "channel_statistics", "statistics"], f"{_METRICS}.activation"),
    **dict.fromkeys(["Group", "Summary"], f"{_METRICS}.one_pass.summary"),
    **dict.fromkeys(["measure", "summarize"], f"{_METRICS}.one_pass.measure"),
    **dict.fromkeys(["ROW_SIZE", "Row", "empty_rows", "merge", "merge_all"], f"{_METRICS}.rows"),
    "ActivationStatisticsMetric": f"{_METRICS}.activation_statistics",
    "EDGES": f"{_METRICS}.log2_bins",
    "Histogram": f"{_METRICS}.histogram",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
