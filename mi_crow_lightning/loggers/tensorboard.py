"""Readings to TensorBoard: all of one step in one event.

An event per value costs about five times the time of one event with all values: the event file's checksum
is computed in Python for every event. Neither tensorboard nor tensorboardX is imported here before a writer
of theirs is given.
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["summary_writer", "write_event"]

# Where a SummaryWriter may come from, and where that library keeps its messages.
_MESSAGES = {"torch.utils.tensorboard": "tensorboard.compat.proto", "tensorboardX": "tensorboardX.proto"}


def summary_writer(logger: object) -> Any | None:
    """Return the ``SummaryWriter`` behind a logger, or None where there is none.

    Args:
        logger: a Lightning logger.

    Returns:
        ``logger.experiment`` when it is a ``SummaryWriter`` of torch or tensorboardX. None for any other
        logger, and on ranks other than 0, where Lightning hands out a dummy.

    Example:
        >>> summary_writer(object()) is None
        True
    """
    experiment = getattr(logger, "experiment", None)
    return None if _library(experiment) is None else experiment


def write_event(writer: Any, readings: TaggedReadings, step: int) -> None:
    """Write all readings of one step as one event.

    Numbers become scalars (float32, NaN and infinity as they are), histograms are drawn from their own
    bins; one without any element is left out. Without anything to draw no event is written.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or tensorboardX's.
        readings: ``(tag, reading)`` pairs of one step; every tag once.
        step: the position on the x axis.

    Raises:
        ValueError: a histogram does not have one edge more than bins.
        RuntimeError: the writer has no file writer that events could be handed to.

    Example:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     write_event(writer, [("activations_mean/h.0", Reading("h.0", "mean", 0.5))], step=3)
    """
    file_writer = _file_writer(writer)
    if file_writer is None:  # Lightning's dummy on ranks other than 0
        return
    messages = _messages(writer)
    values = [value for tag, reading in readings if (value := _value(messages, tag, reading)) is not None]
    if values:
        file_writer.add_summary(messages.Summary(value=values), step)


def _value(messages: Any, tag: str, reading: Reading) -> Any | None:
    """Return the message of one reading, or None for a histogram without elements."""
    if not isinstance(reading.value, Histogram):
        return messages.Summary.Value(tag=tag, simple_value=float(reading.value))
    histogram = reading.value
    if len(histogram.edges) != len(histogram.counts) + 1:
        edges, bins = len(histogram.edges), len(histogram.counts)
        raise ValueError(f"histogram {tag!r} has {edges} edges and {bins} bins; it needs one edge more than bins")
    fields = _fields(histogram)
    return None if fields is None else messages.Summary.Value(tag=tag, histo=messages.HistogramProto(**fields))


def _fields(histogram: Histogram) -> dict[str, Any] | None:
    """Return the fields of a HistogramProto, or None when nothing was counted.

    The empty bins at both ends are left out, and the bins that remain run from ``min`` to ``max``: that is
    how TensorBoard reads them.
    """
    filled = [i for i, count in enumerate(histogram.counts) if count > 0]
    if not filled:
        return None
    first, last = filled[0], filled[-1]
    low, high = _ends(histogram, first, last)
    limits, buckets = _without_empty_runs(histogram.edges[first + 1 : last + 1], histogram.counts[first : last + 1])
    return {
        "min": low,
        "max": high,
        "num": histogram.total,
        "sum": histogram.sum,
        "sum_squares": histogram.sum_squares,
        "bucket_limit": [*limits, high],
        "bucket": buckets,
    }


def _ends(histogram: Histogram, first: int, last: int) -> tuple[float, float]:
    """Return the ends of the picture: minimum and maximum, kept finite and at their bins.

    One infinity among the activations would blank the picture. Only an outermost bin may have taken in what
    lay beyond it, so only there may an end lie outside of its bin.

    Args:
        histogram: what is drawn.
        first: index of the first bin that is not empty.
        last: index of the last.
    """
    edges = histogram.edges
    inner = (-math.inf, *edges[1:-1], math.inf)
    low = min(max(histogram.minimum, inner[first]), inner[first + 1])
    high = max(min(histogram.maximum, inner[last + 1]), inner[last])
    high = _first_finite(high, edges[last + 1], edges[last])
    low = _first_finite(low, edges[first], edges[first + 1])
    return min(low, high), high


def _first_finite(*candidates: float) -> float:
    return next((number for number in candidates if math.isfinite(number)), 0.0)


def _without_empty_runs(inner: tuple[float, ...], counts: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Join neighbouring empty bins: the picture is the same, and a bin is 16 bytes.

    Args:
        inner: the edges between the bins, one fewer than bins.
        counts: of the bins; the first and the last are not empty.
    """
    limits: list[float] = []
    buckets: list[float] = []
    for limit, count in zip(inner, counts[:-1], strict=True):
        if count == 0 and buckets[-1] == 0:
            limits[-1] = limit
        else:
            limits.append(limit)
            buckets.append(count)
    return limits, [*buckets, counts[-1]]


def _library(experiment: object) -> str | None:
    """Return the module whose SummaryWriter this is."""
    for name in _MESSAGES:
        # A module that was never imported cannot have made the writer: no need to import it to find out.
        writer_class = getattr(sys.modules.get(name), "SummaryWriter", None)
        if writer_class is not None and isinstance(experiment, writer_class):
            return name
    return None


def _messages(writer: object) -> Any:
    """Return the module of message classes: each library takes only its own."""
    package = _MESSAGES[_library(writer) or "torch.utils.tensorboard"]
    return importlib.import_module(f"{package}.summary_pb2")


def _file_writer(writer: Any) -> Any | None:
    """Return what takes whole events, or None on ranks other than 0."""
    # The public attribute is None after `close()`; the private method opens it again, as `add_scalar` does.
    if hasattr(writer, "_get_file_writer"):
        return writer._get_file_writer()
    if getattr(writer, "file_writer", None) is not None:
        return writer.file_writer
    kind = f"{type(writer).__module__}.{type(writer).__qualname__}"
    raise RuntimeError(f"{kind} has neither _get_file_writer() nor an open file_writer to hand events to")
