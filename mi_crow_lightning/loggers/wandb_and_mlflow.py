"""The peculiarities of two loggers: histograms and pages of Weights & Biases, names and artifacts of MLflow.

Neither package is imported here: a logger that uses one has imported it already.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mi_crow_lightning.errors import TagConflict
from mi_crow_lightning.loggers.drawing import drawn_bins
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["allowed_names", "histograms_of", "log_page"]

_NOT_IN_MLFLOW = re.compile(r"[^a-zA-Z0-9_/. -]")


def histograms_of(logger: object, readings: TaggedReadings) -> dict[str, Any]:
    """Return the histograms among the readings as W&B's histograms, by tag; for any other logger return none.

    Args:
        logger: a Lightning logger.
        readings: ``(tag, reading)`` pairs; a histogram without any element is left out.

    Examples:
        >>> histograms_of(object(), [])
        {}
    """
    if not _logs_to(logger, "wandb"):
        return {}
    histograms = ((tag, reading.value) for tag, reading in readings if isinstance(reading.value, Histogram))
    drawn = {tag: bins for tag, histogram in histograms if (bins := drawn_bins(histogram, tag)) is not None}
    make = sys.modules["wandb"].Histogram
    return {tag: make(np_histogram=(counts, edges)) for tag, (edges, counts) in drawn.items()}


def allowed_names(logger: object, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics under names that the logger takes: in MLflow, ``_`` for each character it refuses.

    MLflow takes ASCII letters, digits, ``_``, ``-``, ``.``, ``/`` and spaces. Lightning's logger would drop any
    other character from a name, with a warning for each name.

    Args:
        logger: a Lightning logger.
        metrics: the metrics by tag.

    Raises:
        TagConflict: two tags would get the same name.

    Examples:
        >>> allowed_names(object(), {"activations_rms/block:*/max": 1.0})
        {'activations_rms/block:*/max': 1.0}
    """
    if not _logs_to(logger, "mlflow"):
        return metrics
    tags: dict[str, str] = {}
    for tag in metrics:
        name = _NOT_IN_MLFLOW.sub("_", tag)
        other = tags.setdefault(name, tag)
        if other != tag:
            raise TagConflict(
                f"the tags {other!r} and {tag!r} both become {name!r} in the characters that MLflow allows: give one "
                "of the detectors name=..., which becomes the first part of its tags"
            )
    return {name: metrics[tag] for name, tag in tags.items()}


def log_page(logger: Any, page: Path) -> None:
    """Log an HTML page: in W&B as ``hooks``, shown among the charts, in MLflow as an artifact; else do nothing.

    Args:
        logger: a Lightning logger.
        page: the page's file.
    """
    if _logs_to(logger, "wandb"):
        with page.open(encoding="utf-8") as file:
            logger.experiment.log({page.stem: sys.modules["wandb"].Html(file, inject=False)})
    elif _logs_to(logger, "mlflow"):
        logger.experiment.log_artifact(logger.run_id, str(page))


def _logs_to(logger: object, package: str) -> bool:
    """Return whether the logger writes with an object of ``package``; on ranks other than 0 it does not."""
    classes = type(getattr(logger, "experiment", None)).__mro__
    return any(one.__module__.partition(".")[0] == package for one in classes)
