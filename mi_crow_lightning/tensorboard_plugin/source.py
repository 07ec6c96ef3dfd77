"""The runs of a log, read through TensorBoard's data provider."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tensorboard.data.provider import RunTagFilter

from mi_crow_lightning.tensorboard_plugin.catalog import Catalog, fingerprint
from mi_crow_lightning.tensorboard_plugin.happened import events_of
from mi_crow_lightning.tensorboard_plugin.joining import Columns, Histograms, Matrix, Point, joined, stacked
from mi_crow_lightning.tensorboard_plugin.logged_reports import REPORT, Report, plain_report
from mi_crow_lightning.tensorboard_plugin.metadata import NAME, Series
from mi_crow_lightning.tensorboard_plugin.plain_tags import of_scalar
from mi_crow_lightning.tensorboard_plugin.text_rows import texts_of

__all__ = ["EPOCH", "NotThere", "Source", "Unreadable", "Where"]

EPOCH = "epoch"
"""The tag of the scalar in which Lightning logs the epoch."""

_TEXT = "text"
_ADDED = "/text_summary"  # to the tags of texts, by SummaryWriter
_ALL = 10**9  # TensorBoard's "all" is 0 for its user, and nothing for its data provider
_KEPT = 64  # matrices that are kept decoded: those of a few runs


class NotThere(LookupError):
    """A run, series or layer that the log does not hold."""


class Unreadable(ValueError):
    """Values in the event file that cannot be decoded."""


class Where(NamedTuple):
    """The place of a request: TensorBoard's context and experiment."""

    context: Any
    experiment: str


class Source:
    """The runs of a log.

    Args:
        provider: TensorBoard's data provider, of the fast loader or of the slow one.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def catalogs(self, where: Where, run: str | None = None) -> dict[str, Catalog]:
        """Return the catalog of each run that has something to show, or of one run."""
        chosen = None if run is None else RunTagFilter(runs=[run])
        tensors = self._list("list_tensors", NAME, where, chosen)
        scalars = self._list("list_scalars", "scalars", where, chosen)
        histograms = self._list("list_tensors", "histograms", where, chosen)
        found = {
            name: Catalog.of(tensors.get(name, {}), scalars.get(name, {}), histograms.get(name, {}))
            for name in sorted({*tensors, *scalars, *histograms})
        }
        return {name: catalog for name, catalog in found.items() if catalog}

    def catalog(self, where: Where, run: str) -> Catalog:
        """Return the catalog of one run.

        Raises:
            NotThere: the log has no such run, or the run nothing to show.
        """
        catalog = self.catalogs(where, run).get(run)
        if catalog is None:
            raise NotThere(f"the log has no run {run!r:.200} with activations")
        return catalog

    def has_plain(self, where: Where) -> bool:
        """Return whether any run has plain scalars to show."""
        scalars = self._list("list_scalars", "scalars", where, None)
        return any(of_scalar(tag) is not None for tags in scalars.values() for tag in tags)

    def matrix(self, where: Where, run: str, series: Series, catalog: Catalog) -> tuple[str, Matrix]:
        """Return one statistic of one run, and a text that changes with it.

        Raises:
            NotThere: the run has no such statistic.
            Unreadable: TensorBoard cannot decode the values.
        """
        schemas, plain = catalog.statistics.get(series), catalog.scalars.get(series)
        if schemas is not None:
            tags = list(schemas)

            def read() -> Matrix:
                points = self._points("read_tensors", NAME, where, run, tags)
                return joined(Columns(schemas[tag].layers, points(tag)) for tag in tags)

        elif plain is not None:
            tags = list(plain.values())

            def read() -> Matrix:
                points = self._points("read_scalars", "scalars", where, run, tags)
                return joined(Columns((layer,), points(tag)) for layer, tag in plain.items())

        else:
            raise NotThere(f"run {run!r:.200} has no {series.prefix}_{series.name} of {series.stage}"[:400])
        state = fingerprint(catalog.listed, tags)
        return state, self._once((where.experiment, run, series), state, read)

    def histograms(self, where: Where, run: str, series: Series, layer: str, catalog: Catalog) -> list[Histograms]:
        """Return the histograms of one layer, those with the same bins together.

        Raises:
            NotThere: the run has none of this layer.
            Unreadable: TensorBoard cannot decode the values.
        """
        schemas = catalog.histograms.get(series, {}).get(layer)
        if schemas is not None:
            points = self._points("read_tensors", NAME, where, run, list(schemas))
            return [stacked(np.array(schema.edges), points(tag)) for tag, schema in schemas.items()]
        drawing = catalog.drawings.get(series, {}).get(layer)
        if drawing is None:
            raise NotThere(f"run {run!r:.200} has no {series.prefix} {series.name} of {layer!r:.200}")
        return list(_drawn(self._points("read_tensors", "histograms", where, run, [drawing])(drawing)))

    def epochs(self, where: Where, run: str) -> list[tuple[int, float]]:
        """Return the first logged step of each epoch, and the epoch, from the scalar that Lightning logs."""
        points = self._points("read_scalars", "scalars", where, run, [EPOCH])(EPOCH)
        by_step = {step: float(value[0]) for step, _, value in points}  # of a repeated step, the last
        found: list[tuple[int, float]] = []
        for step in sorted(by_step):
            if math.isfinite(by_step[step]) and (not found or found[-1][1] != by_step[step]):
                found.append((step, by_step[step]))
        return found

    def reports(self, where: Where, run: str) -> list[Report]:
        """Return the reports that a run began with, in the order of their steps."""
        texts = self._list("list_tensors", _TEXT, where, RunTagFilter(runs=[run])).get(run, {})
        tags = [tag for tag in texts if tag.startswith(REPORT)]
        points = self._points("read_tensors", _TEXT, where, run, tags)
        found = [
            Report(tag.removesuffix(_ADDED), step, plain_report(value))
            for tag in tags
            for step, _, value in points(tag)
        ]
        return sorted(found, key=lambda report: (report.step, report.tag))

    def texts(self, where: Where, run: str, catalog: Catalog) -> tuple[list[dict[str, Any]], int]:
        """Return the texts of one run, and how many are left out, see `texts_of`.

        Returns:
            For each stage, dataloader and step its rows.

        Raises:
            Unreadable: TensorBoard cannot decode the values.
        """
        if not catalog.texts:
            return [], 0
        points = self._points("read_tensors", NAME, where, run, list(catalog.texts))
        found: list[dict[str, Any]] = []
        left_out = 0
        for tag, series in sorted(catalog.texts.items(), key=lambda item: (item[1].stage, item[1].loader or 0)):
            of_tag, unfit = texts_of(points(tag))
            found += [{"stage": series.stage, "loader": series.loader, **of_step} for of_step in of_tag]
            left_out += unfit
        return found, left_out

    def events(self, where: Where, run: str, catalog: Catalog) -> tuple[list[dict[str, Any]], int]:
        """Return the events of one run, and how much is left out, see `events_of`.

        Raises:
            Unreadable: TensorBoard cannot decode the values.
        """
        if not catalog.events:
            return [], 0
        points = self._points("read_tensors", NAME, where, run, list(catalog.events))
        return events_of((stage, points(tag)) for tag, stage in catalog.events.items())

    def _list(self, method: str, plugin: str, where: Where, chosen: Any) -> dict[str, Any]:
        read = getattr(self._provider, method)
        listed = read(where.context, experiment_id=where.experiment, plugin_name=plugin, run_tag_filter=chosen)
        return dict(listed or {})

    def _points(
        self, method: str, plugin: str, where: Where, run: str, tags: list[str]
    ) -> Callable[[str], Iterator[Point]]:
        try:
            found = getattr(self._provider, method)(
                where.context,
                experiment_id=where.experiment,
                plugin_name=plugin,
                downsample=_ALL,
                run_tag_filter=RunTagFilter(runs=[run], tags=tags),
            )
        except (ValueError, TypeError) as error:  # of make_ndarray, for bytes that do not fill their shape
            raise Unreadable(f"TensorBoard cannot decode the values of run {run!r:.200}: {error!s:.200}") from error
        by_tag = found.get(run, {})
        value = "value" if method == "read_scalars" else "numpy"

        def points(tag: str) -> Iterator[Point]:
            for datum in by_tag.get(tag, ()):
                number = getattr(datum, value)
                yield int(datum.step), float(datum.wall_time), [number] if value == "value" else number

        return points

    def _once(self, key: Any, state: str, read: Callable[[], Matrix]) -> Matrix:
        """Return what was read for this state before, or read it."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept[0] == state:
                self._kept.move_to_end(key)
                return kept[1]  # type: ignore[no-any-return]
        matrix = read()
        with self._lock:
            self._kept[key] = state, matrix
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return matrix


def _drawn(points: Iterator[Point]) -> Iterator[Histograms]:
    """Yield TensorBoard's own histograms, whose bins change from step to step: rows of left, right, count."""
    for step, time, value in points:
        bins = np.asarray(value)
        if bins.ndim == 2 and bins.shape[1] == 3 and len(bins) and bins.dtype.kind == "f":
            edges = np.concatenate([bins[:1, 0], bins[:, 1]]).astype(np.float64)
            if np.all(np.diff(edges) >= 0):
                yield stacked(edges, [(step, time, bins[:, 2])])
