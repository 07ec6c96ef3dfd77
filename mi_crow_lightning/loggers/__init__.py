"""Readings to loggers: TensorBoard gets pictures and everything as compact tensors, the others numbers.

    tag                      a reading, a stage and a prefix -> its name
    LoggedStep               the readings of one step, by detector (DetectorReadings)
    shown                    ... -> those that become scalars: all, a summary over the layers, or none
    compact                  ... -> one tensor per statistic, one per histogram
    write                    ... -> every logger of the run
    write_event              ... -> one TensorBoard event
    write_scalars            ... -> one ``log_metrics`` call
    write_text_table         texts -> the loggers that take text
    write_layout             one TensorBoard chart per statistic, one line per layer
    summary_writer           a logger -> its ``SummaryWriter``, if it has one
    read_compact             event files -> the numbers (HistoryRow)
    read_compact_histograms  event files -> the histograms (HistogramRow)

Loggers are handed in as objects; nothing here imports Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.loggers.compact_layout import compact
    from mi_crow_lightning.loggers.compact_reader import HistogramRow, read_compact, read_compact_histograms
    from mi_crow_lightning.loggers.dispatch import write
    from mi_crow_lightning.loggers.history import HistoryRow
    from mi_crow_lightning.loggers.layout import write_layout
    from mi_crow_lightning.loggers.scalar_choice import shown
    from mi_crow_lightning.loggers.scalars import write_scalars
    from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
    from mi_crow_lightning.loggers.tags import tag
    from mi_crow_lightning.loggers.tensorboard import summary_writer, write_event
    from mi_crow_lightning.loggers.text_table import write_text_table

__all__ = [
    "DetectorReadings",
    "HistogramRow",
    "HistoryRow",
    "LoggedStep",
    "compact",
    "read_compact",
    "read_compact_histograms",
    "shown",
    "summary_writer",
    "tag",
    "write",
    "write_event",
    "write_layout",
    "write_scalars",
    "write_text_table",
]

_HERE = "mi_crow_lightning.loggers"
_SOURCES = {
    "DetectorReadings": f"{_HERE}.step",
    "HistogramRow": f"{_HERE}.compact_reader",
    "HistoryRow": f"{_HERE}.history",
    "LoggedStep": f"{_HERE}.step",
    "compact": f"{_HERE}.compact_layout",
    "read_compact": f"{_HERE}.compact_reader",
    "read_compact_histograms": f"{_HERE}.compact_reader",
    "shown": f"{_HERE}.scalar_choice",
    "summary_writer": f"{_HERE}.tensorboard",
    "tag": f"{_HERE}.tags",
    "write": f"{_HERE}.dispatch",
    "write_event": f"{_HERE}.tensorboard",
    "write_layout": f"{_HERE}.layout",
    "write_scalars": f"{_HERE}.scalars",
    "write_text_table": f"{_HERE}.text_table",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
