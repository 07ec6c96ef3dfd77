"""Reading compact tensors back from TensorBoard's event files.

Every checksum in the files is verified in Python, at about 5 MB a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mi_crow_lightning._foreign_files import Damaged, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.compact_schema import Schema, numbers_of, read_schema
from mi_crow_lightning.loggers.compact_tensors import PLUGIN
from mi_crow_lightning.loggers.event_file import events
from mi_crow_lightning.loggers.history import HistoryRow
from mi_crow_lightning.loggers.tags import tag

__all__ = ["HistogramRow", "event_files", "read_compact", "read_compact_histograms", "tensors_of"]

_FILES = "events.out.tfevents.*"
_Content = TypeVar("_Content")


class HistogramRow(NamedTuple):
    """The histogram of one layer at one step.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the x axis.
        tag: the tag of its picture in TensorBoard.
        layer: name of the layer.
        name: the name of the reading; ``"histogram"`` for a layer's activations.
        edges: ascending bin edges, ``N + 1`` of them.
        counts: elements in each of the ``N`` bins. The outermost bins also count what lies beyond them.
    """

    stage: str
    step: int
    tag: str
    layer: str
    name: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]


def read_compact(log_dir: str | os.PathLike[str]) -> Iterator[HistoryRow]:
    """Read every number that was written to a run's event files, whatever ``scalars`` was.

    The rows are those of ``HookCallback.history()``, rounded to float32, ordered by step, statistic and layer. Those of
    controllers over the batches of an evaluation, ``steering_by_batch_...``, come in addition.
    A layer that gave no number at a step at which others did has a row with ``nan``. Steps that a resumed run
    repeated are there twice.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the rows; ``pandas.DataFrame(read_compact(...))`` makes a table of it.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: a file is damaged, or was written by a release with another version of the tensors. The rows before
            the damage are there when it is raised; a file that ends in the middle of an event is read up to there.
        OSError: a file cannot be read.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, compact, write_event
        >>> detector = DetectorReadings([Reading("h.0", "rms", 0.5)], ("h.0",), "h.*")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SummaryWriter(folder) as writer:
        ...         write_event(writer, [], 3, compact(LoggedStep("train", 3, [detector])))
        ...     list(read_compact(folder))
        [HistoryRow(stage='train', step=3, tag='activations_rms/h.0', layer='h.0', name='rms', value=0.5)]
    """
    return _numbers(event_files(log_dir))


def read_compact_histograms(log_dir: str | os.PathLike[str]) -> Iterator[HistogramRow]:
    """Read every histogram that was written to a run's event files, whatever ``scalars`` was.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the histograms, by step and layer.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: a file is damaged, or was written by a release with another version of the tensors. The rows before
            the damage are there when it is raised; a file that ends in the middle of an event is read up to there.
        OSError: a file cannot be read.
    """
    return _histograms(event_files(log_dir))


def _numbers(files: list[Path]) -> Iterator[HistoryRow]:
    tags: dict[str, list[str]] = {}
    for schema, address, step, values in tensors_of(files, "statistic", numbers_of):
        stage, name = schema.stage, schema.name
        if address not in tags:
            named_by = [Reading(layer, name, 0.0) for layer in schema.layers]
            tags[address] = [tag(reading, stage, schema.prefix, schema.dataloader_idx) for reading in named_by]
        for written_as, layer, value in zip(tags[address], schema.layers, values, strict=True):
            yield HistoryRow(stage, step, written_as, layer, name, value)


def _histograms(files: list[Path]) -> Iterator[HistogramRow]:
    for schema, address, step, counts in tensors_of(files, "histogram", numbers_of):
        (layer,), picture = schema.layers, address.rpartition("#")[0]
        yield HistogramRow(schema.stage, step, picture, layer, schema.name, schema.edges, tuple(counts))


def tensors_of(
    files: list[Path], kind: str, read: Callable[[Any, Schema], _Content]
) -> Iterator[tuple[Schema, str, int, _Content]]:
    """Yield the tensors of one kind: schema, tag, step, and what a function reads of the value."""
    schemas: dict[str, Schema] = {}
    for file in files:
        with one_error(file, ValueError):
            for event in events(file):
                for value in event.summary.value:
                    schema = _described(schemas, value)
                    if schema is not None and schema.kind == kind:
                        yield schema, value.tag, event.step, read(value, schema)


def _described(schemas: dict[str, Schema], value: Any) -> Schema | None:
    """Return the schema of a value's tag, after a look whether the value brings one; ``None`` for others' values."""
    if value.metadata.plugin_data.plugin_name == PLUGIN:
        schema = read_schema(value.metadata.plugin_data.content)
        if schemas.setdefault(value.tag, schema) != schema:
            raise Damaged(f"describes the tensors of {shortened(repr(value.tag))} in two ways")
    return schemas.get(value.tag)


def event_files(log_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the event files of one run, oldest first: their names begin with the time."""
    files = sorted(file for file in Path(log_dir).glob(_FILES) if file.is_file())
    if not files:
        found = {
            str(file.parent) for below in ("*", "*/*", "*/*/*") for file in Path(log_dir).glob(f"{below}/{_FILES}")
        }
        hint = f"; there are event files in {shortened(', '.join(sorted(found)[:5]), 500)}" if found else ""
        raise FileNotFoundError(f"no event file of TensorBoard in {named(Path(log_dir))}{hint}")
    return files
