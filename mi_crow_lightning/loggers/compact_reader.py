"""Reading compact tensors back from TensorBoard's event files.

Every checksum in the files is verified in Python, at about 5 MB a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.compact_tensors import PLUGIN, VERSION
from mi_crow_lightning.loggers.history import HistoryRow
from mi_crow_lightning.loggers.tags import tag

__all__ = ["HistogramRow", "read_compact", "read_compact_histograms"]

_Tensor = tuple[dict[str, Any], str, int, list[float]]  # schema, tag, step, values


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

    The rows are those of ``HookCallback.history()``, rounded to float32, ordered by step, statistic and layer.
    A layer that gave no number at a step at which others did has a row with ``nan``. Steps that a resumed run
    repeated are there twice.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the rows; ``pandas.DataFrame(read_compact(...))`` makes a table of it.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: the files were written by a release with another version of the tensors.

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
    return _numbers(_event_files(log_dir))


def read_compact_histograms(log_dir: str | os.PathLike[str]) -> Iterator[HistogramRow]:
    """Read every histogram that was written to a run's event files, whatever ``scalars`` was.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the histograms, by step and layer.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: the files were written by a release with another version of the tensors.
    """
    return _histograms(_event_files(log_dir))


def _numbers(files: list[Path]) -> Iterator[HistoryRow]:
    tags: dict[str, list[str]] = {}
    for schema, address, step, values in _tensors(files, "statistic"):
        stage, name, layers = schema["stage"], schema["name"], schema["layers"]
        if address not in tags:
            prefix, loader = schema["prefix"], schema.get("dataloader_idx")
            tags[address] = [tag(Reading(layer, name, 0.0), stage, prefix, loader) for layer in layers]
        for written_as, layer, value in zip(tags[address], layers, values, strict=True):
            yield HistoryRow(stage, step, written_as, layer, name, value)


def _histograms(files: list[Path]) -> Iterator[HistogramRow]:
    for schema, address, step, counts in _tensors(files, "histogram"):
        picture, edges = address.rpartition("#")[0], tuple(schema["edges"])
        yield HistogramRow(schema["stage"], step, picture, schema["layer"], schema["name"], edges, tuple(counts))


def _tensors(files: list[Path], kind: str) -> Iterator[_Tensor]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    schemas: dict[str, dict[str, Any]] = {}
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == PLUGIN:
                    schemas[value.tag] = _schema(value.metadata.plugin_data.content, file)
                schema = schemas.get(value.tag)
                if schema is not None and schema["kind"] == kind:
                    yield schema, value.tag, event.step, make_ndarray(value.tensor).tolist()


def _schema(content: bytes, file: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(content)
    if schema.get("version") != VERSION:
        raise ValueError(
            f"{file}: its compact tensors have version {schema.get('version')!r}, but this release reads version "
            f"{VERSION}: use the release that wrote them"
        )
    return schema


def _event_files(log_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the event files of one run, oldest first: their names begin with the time."""
    files = sorted(Path(log_dir).glob("events.out.tfevents.*"))
    if not files:
        below = sorted({str(file.parent) for file in Path(log_dir).rglob("events.out.tfevents.*")})
        hint = f"; there are event files in {', '.join(below[:5])}" if below else ""
        raise FileNotFoundError(f"no event file of TensorBoard in {str(log_dir)!r}{hint}")
    return files
