"""Readings to loggers: TensorBoard gets pictures, any other Lightning logger the numbers.

    tag             a reading, a stage and a prefix -> its name
    write           readings of one step -> every logger of the run
    write_event     ... -> one TensorBoard event
    write_scalars   ... -> one ``log_metrics`` call
    write_layout    one TensorBoard chart per statistic, one line per layer
    summary_writer  a logger -> its ``SummaryWriter``, if it has one

Loggers are handed in as objects; nothing here imports Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.loggers.dispatch import write
    from mi_crow_lightning.loggers.layout import write_layout
    from mi_crow_lightning.loggers.scalars import write_scalars
    from mi_crow_lightning.loggers.tags import tag
    from mi_crow_lightning.loggers.tensorboard import summary_writer, write_event

__all__ = ["summary_writer", "tag", "write", "write_event", "write_layout", "write_scalars"]

_SOURCES = {
    "summary_writer": "mi_crow_lightning.loggers.tensorboard",
    "tag": "mi_crow_lightning.loggers.tags",
    "write": "mi_crow_lightning.loggers.dispatch",
    "write_event": "mi_crow_lightning.loggers.tensorboard",
    "write_layout": "mi_crow_lightning.loggers.layout",
    "write_scalars": "mi_crow_lightning.loggers.scalars",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
