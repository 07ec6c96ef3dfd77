"""Reading compact tensors back from TensorBoard's event files.

Every checksum in the files is verified: in C where google-crc32c is installed, else in Python, at about 5 MB a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from mi_crow_lightning._foreign_files import Damaged, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning._tables import NAMES, OBJECTS, WHOLE, WHOLE_OR_NONE, Table, count, legible, listed_names
from mi_crow_lightning.choices import HistogramKind, StageName
from mi_crow_lightning.figures.heatmap import plot_heatmap
from mi_crow_lightning.figures.histogram import plot_histogram
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.compact_schema import Schema, events_of, numbers_of, read_schema
from mi_crow_lightning.loggers.compact_tensors import PLUGIN
from mi_crow_lightning.loggers.epochs import epochs_in
from mi_crow_lightning.loggers.event_file import events
from mi_crow_lightning.loggers.history import HistoryRow, HistoryTable
from mi_crow_lightning.loggers.run_events import EventRow
from mi_crow_lightning.loggers.tags import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CompactRows",
    "HistogramRow",
    "HistogramTable",
    "event_files",
    "read_compact",
    "read_compact_histograms",
    "read_events",
    "tensors_of",
]

_FILES = "events.out.tfevents.*"
_FIRST = 10  # rows that a notebook shows of files that were not read yet
_Row = TypeVar("_Row")
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
        block: the block that the layer is or lies in, see `HistoryRow`.
        run: the name of the folder of the event file.
    """

    stage: str
    step: int
    tag: str
    layer: str
    name: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    block: int | None = None
    run: str = ""


class HistogramTable(Table[HistogramRow]):
    """Histograms that were written: a list of `HistogramRow`.

    ``to_pandas()`` has the columns ``block``, ``run``, ``stage``, ``step``, ``layer``, ``name``, ``edges``, ``counts``
    and ``tag``; edges and counts are tuples.
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "run": NAMES,
        "stage": NAMES,
        "step": WHOLE,
        "layer": NAMES,
        "name": NAMES,
        "edges": OBJECTS,
        "counts": OBJECTS,
        "tag": NAMES,
    }
    _left_out: ClassVar[tuple[str, ...]] = ("tag",)

    def summary(self) -> str:
        """Return how many histograms there are, and what they are of, in one line."""
        if not self:
            return "no histograms"
        of_layers, runs = count(len({row.layer for row in self}), "layer"), listed_names(row.run for row in self)
        return f"{count(len(self), 'histogram')} of {of_layers} in {runs}, {listed_names(row.stage for row in self)}"

    def plot(
        self,
        layer: str | int,
        *,
        stage: StageName | None = None,
        name: str = "histogram",
        kind: HistogramKind = "heat",
        dataloader_idx: int | None = None,
        ax: Any = None,
    ) -> tuple[Figure, Axes]:
        """Draw the histograms of one layer over the steps, see `mi_crow_lightning.figures.plot_histogram`."""
        chosen: dict[str, Any] = dict(stage=stage, name=name, kind=kind, dataloader_idx=dataloader_idx)
        return plot_histogram(self, layer, **chosen, ax=ax)


class CompactRows(Iterator[_Row], Generic[_Row]):
    """The rows of a run's event files, an iterator that reads them one by one.

    `table` and `to_pandas` read the files from the beginning, however far the iteration is.

    Args:
        folder: the folder of the files.
        read: returns an iterator over all rows.
        table: the table that holds such rows.
        files: the files, to say how many there are.
    """

    def __init__(
        self, folder: Path, read: Callable[[], Iterator[_Row]], table: type[Table[_Row]], files: list[Path]
    ) -> None:
        self._folder, self._read, self._table, self._files = folder, read, table, files
        self._rows = read()

    def __iter__(self) -> CompactRows[_Row]:
        return self

    def __next__(self) -> _Row:
        return next(self._rows)

    def table(self) -> Table[_Row]:
        """Return all rows of the files, as a `HistoryTable` or a `HistogramTable`.

        Raises:
            ValueError, OSError: as the iteration does.
        """
        return self._table(self._read())

    def to_pandas(self) -> Any:
        """Return all rows of the files as a ``pandas.DataFrame``, see `HistoryTable` and `HistogramTable`.

        Raises:
            ImportError: pandas is not installed.
            ValueError, OSError: as the iteration does.
        """
        return self.table().to_pandas()

    def plot(self, name: str | int, **options: Any) -> tuple[Figure, Axes]:
        """Draw numbers as `HistoryTable.plot` does, with the epochs of the run, or histograms as `HistogramTable.plot`.

        The files are read from the beginning, however far the iteration is.

        Args:
            name: the statistic; of histograms the layer.
            **options: those of the table's ``plot``.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            TypeError, ValueError: an argument is wrong; the message names what there is.
            ValueError, OSError: as the iteration does.
        """
        if self._table is HistoryTable:
            numbers: Any = self._read()
            return plot_heatmap(numbers, name, **{"epochs": epochs_in(self._files), **options})  # type: ignore[arg-type]
        histograms: Any = self._read()
        return plot_histogram(histograms, name, **options)

    def __repr__(self) -> str:
        what = "numbers" if self._table is HistoryTable else "histograms"
        size = sum(file.stat().st_size for file in self._files if file.is_file())
        return f"<{what} of {count(len(self._files), 'event file')} in {str(self._folder)!r}, {size / 1e6:.3g} MB>"

    def _repr_html_(self) -> str:
        """Return the first rows as HTML, which a notebook shows; reading all might take minutes."""
        rows, note = self._table(), f"{self!r}, which begin with these; table() reads all."
        try:
            rows.extend(islice(self._read(), _FIRST))
        except (ValueError, OSError) as error:
            note = f"{self!r}: {error}"
        return f"<p>{escape(legible(note, 1000))}</p>{rows.html_rows()}"


def read_compact(log_dir: str | os.PathLike[str]) -> CompactRows[HistoryRow]:
    """Read every number that was written to a run's event files, whatever ``scalars`` was.

    The rows are those of `HookCallback.history`, rounded to float32, ordered by step, statistic and layer. Those of
    controllers over the batches of an evaluation, ``steering_by_batch_...``, come in addition. Their ``run`` is the
    folder's name, and their ``block`` is ``None`` in files of releases that did not write it. A layer that gave no
    number at a step at which others did has a row with ``nan``. Steps that a resumed run repeated are there twice.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the rows. Its ``table()`` returns them all, and its ``to_pandas()`` as a DataFrame.

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
        ...     row = next(read_compact(folder))
        >>> row.stage, row.step, row.tag, row.layer, row.name, row.value
        ('train', 3, 'activations_rms/h.0', 'h.0', 'rms', 0.5)
    """
    files, run = event_files(log_dir), _name_of(log_dir)
    return CompactRows(Path(log_dir), lambda: _numbers(files, run), HistoryTable, files)


def read_compact_histograms(log_dir: str | os.PathLike[str]) -> CompactRows[HistogramRow]:
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
    files, run = event_files(log_dir), _name_of(log_dir)
    return CompactRows(Path(log_dir), lambda: _histograms(files, run), HistogramTable, files)


def read_events(log_dir: str | os.PathLike[str]) -> Iterator[EventRow]:
    """Read what happened in a run: hooks that went on or off, warnings, what detectors reported, an exception.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the events, in the order of writing; none for a run of a release that wrote none.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: a file is damaged, or was written by a release with another version of the tensors. The rows before
            the damage are there when it is raised; a file that ends in the middle of an event is read up to there.
        OSError: a file cannot be read.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from mi_crow_lightning.loggers import LoggedStep, compact, write_event
        >>> event = EventRow("train", 3, "warning", "one row was left out")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SummaryWriter(folder) as writer:
        ...         write_event(writer, [], 3, compact(LoggedStep("train", 3, [], events=[event])))
        ...     list(read_events(folder))
        [EventRow(stage='train', step=3, kind='warning', text='one row was left out', hook='', layer='')]
    """
    return _events(event_files(log_dir))


def _name_of(log_dir: str | os.PathLike[str]) -> str:
    """Return the name of a folder, also of the current one."""
    return os.path.basename(os.path.abspath(log_dir))


def _numbers(files: list[Path], run: str) -> Iterator[HistoryRow]:
    tags: dict[str, list[str]] = {}
    for schema, address, step, values in tensors_of(files, "statistic", numbers_of):
        stage, name = schema.stage, schema.name
        if address not in tags:
            named_by = [Reading(layer, name, 0.0) for layer in schema.layers]
            tags[address] = [tag(reading, stage, schema.prefix, schema.dataloader_idx) for reading in named_by]
        for written_as, layer, block, value in zip(tags[address], schema.layers, schema.blocks, values, strict=True):
            yield HistoryRow(stage, step, written_as, layer, name, value, block, run)


def _histograms(files: list[Path], run: str) -> Iterator[HistogramRow]:
    for schema, address, step, counts in tensors_of(files, "histogram", numbers_of):
        (layer,), (block,), picture = schema.layers, schema.blocks, address.rpartition("#")[0]
        yield HistogramRow(schema.stage, step, picture, layer, schema.name, schema.edges, tuple(counts), block, run)


def _events(files: list[Path]) -> Iterator[EventRow]:
    last: dict[str, list[EventRow]] = {}
    for _, address, step, texts in tensors_of(files, "event", events_of):
        rows = [row._replace(step=step) for row in texts]
        # A step that got more events was written again, with those that it had.
        before = last.get(address, [])
        repeated = len(before) if rows[: len(before)] == before else 0
        yield from rows[repeated:]
        last[address] = rows


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
