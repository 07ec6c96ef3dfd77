"""Readings to TensorBoard: all readings of a step in one event.

One event per value would take several times as long as one event with all values. Neither tensorboard nor tensorboardX
is imported here before one of their writers is passed in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.compact_tensors import CompactTensor
from mi_crow_lightning.loggers.tags import TaggedReadings

__all__ = ["Describe", "log_folder", "summary_writer", "write_event", "write_hyperparameters", "write_summary"]

Describe: TypeAlias = Callable[[str, Reading], str]
"""From a tag and its reading to markdown; empty for nothing."""

_LIBRARIES = ("torch.utils.tensorboard", "tensorboardX")

# By event file: the tags of the tensors whose schema, and of the readings whose description, is in the file.
_described: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def summary_writer(logger: object) -> Any | None:
    """Return the ``SummaryWriter`` behind a logger, or ``None`` if it has none.

    Args:
        logger: a Lightning logger.

    Returns:
        ``logger.experiment`` if it is a ``SummaryWriter`` of torch or tensorboardX. ``None`` for any other logger, and
        on ranks other than 0, where Lightning hands out a dummy.

    Examples:
        >>> summary_writer(object()) is None
        True
    """
    experiment = getattr(logger, "experiment", None)
    return None if _library(experiment) is None else experiment


def log_folder(writer: Any) -> str:
    """Return the folder that a ``SummaryWriter`` writes its event files into."""
    # torch's name, and the one of tensorboardX, which knows the other only as an argument.
    return str(writer.log_dir if hasattr(writer, "log_dir") else writer.logdir)


def write_event(
    writer: Any,
    readings: TaggedReadings,
    step: int,
    tensors: Sequence[CompactTensor] = (),
    described: Describe | None = None,
) -> None:
    """Write all readings of one step as one event.

    Numbers become scalars (float32, NaN and infinity as they are). Histograms are drawn from their own bins; a
    histogram without any element is left out. If there is nothing to write, no event is written.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or tensorboardX's.
        readings: ``(tag, reading)`` pairs of one step, each tag once.
        step: the position on the x axis.
        tensors: the compact tensors that go into the event.
        described: from a tag and its reading to the text, as markdown, that TensorBoard shows beside the chart. It is
            asked once for each tag in a file: TensorBoard keeps the first description.

    Raises:
        ValueError: a histogram does not have one edge more than bins.
        RuntimeError: the writer has no file writer that takes events.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     write_event(writer, [("activations_mean/h.0", Reading("h.0", "mean", 0.5))], step=3)
    """
    file_writer = _file_writer(writer)
    if file_writer is None:  # Lightning's dummy on ranks other than 0
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    from mi_crow_lightning.loggers.messages import add_tensor, shown_values

    known = _described.setdefault(file_writer, set())
    texts = _texts_of_new(readings, known, described) if described is not None else {}
    summary = Summary(value=shown_values(readings, texts))
    for tensor in tensors:
        add_tensor(summary, tensor, tensor.tag not in known)
    if summary.value:
        _add_summary(writer, file_writer, summary, step)
        known.update((value.tag for value in summary.value) if texts else (tensor.tag for tensor in tensors))


def write_hyperparameters(writer: Any, values: Mapping[str, str | int | float | bool]) -> None:
    """Write values to TensorBoard's page HParams, without a metric; it shows those that were written first in a run.

    Args:
        writer: a ``SummaryWriter``, see `write_event`.
        values: plain values by name.
    """
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(values), {}):
        write_summary(writer, summary)


def _texts_of_new(readings: TaggedReadings, known: set[str], described: Describe) -> dict[str, str]:
    """Return the descriptions of the tags that the file does not have yet."""
    return {tag: described(tag, reading) for tag, reading in readings if tag not in known}


def write_summary(writer: Any, summary: Any, step: int | None = None) -> None:
    """Write a summary that is made already, a message of tensorboard, as one event.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or tensorboardX's.
        summary: the message.
        step: the position on the x axis; ``None`` for what belongs to no step.
    """
    file_writer = _file_writer(writer)
    if file_writer is not None:
        _add_summary(writer, file_writer, summary, step)


def _add_summary(writer: object, file_writer: Any, summary: Any, step: int | None) -> None:
    if _library(writer) == "tensorboardX":  # whose messages are a library's own, and the only ones that it takes
        from tensorboardX.proto.summary_pb2 import Summary

        file_writer.add_summary(Summary.FromString(summary.SerializeToString()), step)
    else:
        from mi_crow_lightning.loggers.checksum import add_summary

        add_summary(file_writer, summary, step)


def _library(experiment: object) -> str | None:
    """Return the name of the module whose ``SummaryWriter`` this is."""
    for name in _LIBRARIES:
        # A module that was never imported cannot have made the writer, so there is no need to import it.
        writer_class = getattr(sys.modules.get(name), "SummaryWriter", None)
        if writer_class is not None and isinstance(experiment, writer_class):
            return name
    return None


def _file_writer(writer: Any) -> Any | None:
    """Return the writer of whole events, or ``None`` on ranks other than 0."""
    # The public attribute is None after `close()`. The private method opens it again, as `add_scalar` does.
    if hasattr(writer, "_get_file_writer"):
        return writer._get_file_writer()
    if getattr(writer, "file_writer", None) is not None:
        return writer.file_writer
    kind = f"{type(writer).__module__}.{type(writer).__qualname__}"
    raise RuntimeError(f"{kind} has neither _get_file_writer() nor an open file_writer, so it takes no events")
