"""The event files below a folder, read at once: TensorBoard's data provider for a log that has ended.

TensorBoard's own reader ends at a damaged record without a word, keeps a choice of the steps, and goes on reading. Here
a damaged file is an error, every step is kept, and what the page has no use for is left out.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray
from tensorboard import data_compat
from tensorboard.compat.proto import summary_pb2
from tensorboard.data.provider import ScalarDatum, ScalarTimeSeries, TensorDatum, TensorTimeSeries
from tensorboard.util import tensor_util

from mi_crow_lightning._foreign_files import named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.loggers.event_file import events
from mi_crow_lightning.tensorboard_plugin.metadata import NAME

__all__ = ["EventLog", "Progress", "event_files"]

Progress = Callable[[int, int], None]
"""A function that is called while files are read, with the bytes that were read and those there are."""

_FILES = "events.out.tfevents.*"
_SCALARS, _HISTOGRAMS, _TEXT = "scalars", "histograms", "text"
_READ = frozenset({NAME, _SCALARS, _HISTOGRAMS, _TEXT})  # images and others would only fill the memory
_MOST_REPEATED = 1_000_000
_EVERY = 1 << 20  # bytes from one report of progress to the next

_T = TypeVar("_T")


def event_files(folder: Path) -> dict[str, list[Path]]:
    """Return the event files of each run, oldest first: a run is a folder, named by its path from ``folder`` on.

    The folder itself is the run ``"."``, as in TensorBoard.

    Raises:
        FileNotFoundError: there is no such folder, or no event file in it or below it.
        NotADirectoryError: it is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {named(folder)}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{named(folder)} is a file: give the folder of a log, as to tensorboard --logdir")
    found: dict[str, list[Path]] = {}
    for place, folders, _ in os.walk(folder):
        folders.sort()
        files = sorted(file for file in Path(place).glob(_FILES) if file.is_file())  # names begin with the time
        if files:
            relative = Path(place).relative_to(folder).as_posix()
            found[os.fsencode(relative).decode("utf-8", "replace")] = files
    if not found:
        raise FileNotFoundError(f"no event file of TensorBoard in {named(folder)} or below it")
    return found


class _Series(Generic[_T]):
    """The points of one tag, in the order in which they were written."""

    def __init__(self, content: bytes, values: Any) -> None:
        self.content = content
        self.steps = array("q")
        self.times = array("d")
        self.values = values
        self.last_step, self.last_time = 0, 0.0

    def add(self, step: int, time: float, value: Any) -> None:
        self.last_step, self.last_time = max(self.last_step, step), max(self.last_time, time)
        self.steps.append(step)
        self.times.append(time)
        self.values.append(value)


class _Counted:
    """The bytes that were read, reported now and then."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done = self._said = 0
        self._progress, self._total = progress, total

    def add(self, size: int) -> None:
        self.done += size
        if self._progress is not None and self.done - self._said >= _EVERY:
            self._said = self.done
            self._progress(min(self.done, self._total), self._total)


class EventLog:
    """Runs, read from their event files: what the Activations tab asks TensorBoard's data provider for.

    Args:
        runs: the event files of each run.
        progress: called while they are read.

    Raises:
        ValueError: a file is damaged. One that ends in the middle of an event is read up to there.
        OSError: a file cannot be read.
    """

    def __init__(self, runs: Mapping[str, Sequence[Path]], progress: Progress | None = None) -> None:
        self._series: dict[str, dict[str, dict[str, _Series[Any]]]] = {}  # by plugin, run and tag
        self._counted = _Counted(progress, sum(file.stat().st_size for files in runs.values() for file in files))
        for run, files in runs.items():
            kinds: dict[str, tuple[str, bytes]] = {}
            for file in files:
                with one_error(file, ValueError):
                    self._read(run, file, kinds)

    def _read(self, run: str, file: Path, kinds: dict[str, tuple[str, bytes]]) -> None:
        before = self._counted.done
        for event in events(file):
            for value in event.summary.value:
                self._add(run, kinds, event.step, event.wall_time, value)
            self._counted.add(event.ByteSize())
        self._counted.add(before + file.stat().st_size - self._counted.done)

    def _add(self, run: str, kinds: dict[str, tuple[str, bytes]], step: int, time: float, value: Any) -> None:
        field = value.WhichOneof("value")
        if field == "simple_value":
            self._of(_SCALARS, run, value.tag, b"", array("d")).add(step, time, value.simple_value)
        elif field == "histo":
            self._of(_HISTOGRAMS, run, value.tag, b"", []).add(step, time, value.SerializeToString())
        elif field == "tensor":
            data = value.metadata.plugin_data
            if data.plugin_name:  # TensorBoard keeps the first of a tag
                kinds.setdefault(value.tag, (data.plugin_name, data.content))
            plugin, content = kinds.get(value.tag, ("", b""))
            if plugin == _SCALARS:
                number = float(_array_of(value.tensor).reshape(-1)[0])
                self._of(_SCALARS, run, value.tag, content, array("d")).add(step, time, number)
            elif plugin in _READ:
                self._of(plugin, run, value.tag, content, []).add(step, time, value.SerializeToString())

    def _of(self, plugin: str, run: str, tag: str, content: bytes, values: Any) -> _Series[Any]:
        tags = self._series.setdefault(plugin, {}).setdefault(run, {})
        if tag not in tags:
            tags[tag] = _Series(content, values)
        return tags[tag]

    # TensorBoard's data provider, as far as the tab uses it.

    def list_scalars(
        self, ctx: Any = None, *, experiment_id: str, plugin_name: str, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Any]]:
        """Return the scalars of each run by tag."""
        return self._listed(_SCALARS if plugin_name == _SCALARS else "", run_tag_filter, ScalarTimeSeries)

    def list_tensors(
        self, ctx: Any = None, *, experiment_id: str, plugin_name: str, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Any]]:
        """Return the tensors of one plugin, of each run by tag."""
        return self._listed(plugin_name, run_tag_filter, TensorTimeSeries)

    def read_scalars(
        self,
        ctx: Any = None,
        *,
        experiment_id: str,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: Any = None,
    ) -> dict[str, dict[str, list[Any]]]:
        """Return every point of scalars."""
        return {
            run: {tag: list(map(ScalarDatum, series.steps, series.times, series.values)) for tag, series in tags}
            for run, tags in self._chosen(plugin_name, run_tag_filter)
        }

    def read_tensors(
        self,
        ctx: Any = None,
        *,
        experiment_id: str,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: Any = None,
    ) -> dict[str, dict[str, list[Any]]]:
        """Return every point of tensors.

        Raises:
            ValueError: one cannot be decoded.
        """
        return {
            run: {tag: list(map(TensorDatum, one.steps, one.times, map(_decoded, one.values))) for tag, one in tags}
            for run, tags in self._chosen(plugin_name, run_tag_filter)
        }

    def _chosen(self, plugin: str, only: Any) -> list[tuple[str, list[tuple[str, _Series[Any]]]]]:
        runs: Collection[str] | None = None if only is None else only.runs
        tags: Collection[str] | None = None if only is None else only.tags
        return [
            (run, [(tag, series) for tag, series in by_tag.items() if tags is None or tag in tags])
            for run, by_tag in self._series.get(plugin, {}).items()
            if runs is None or run in runs
        ]

    def _listed(self, plugin: str, only: Any, kind: Callable[..., _T]) -> dict[str, dict[str, _T]]:
        return {
            run: {
                tag: kind(
                    max_step=series.last_step,
                    max_wall_time=series.last_time,
                    plugin_content=series.content,
                    description="",
                    display_name=tag,
                )
                for tag, series in tags
            }
            for run, tags in self._chosen(plugin, only)
            if tags
        }


def _decoded(content: bytes) -> NDArray[Any]:
    """Return the array of a value; a histogram of the old form becomes rows of left, right, count."""
    return _array_of(data_compat.migrate_value(summary_pb2.Summary.Value.FromString(content)).tensor)


def _array_of(tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array of the numbers that the file holds.

    TensorBoard repeats a single number as often as the shape says, which a few bytes can say to be 10**12 times.

    Raises:
        ValueError: it cannot be decoded.
    """
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if math.prod(shape) > max(_MOST_REPEATED, tensor.ByteSize()):
        raise ValueError(f"a tensor has the shape {shortened(str(shape))}, and {tensor.ByteSize()} bytes")
    found: NDArray[Any] = tensor_util.make_ndarray(tensor)
    return found
