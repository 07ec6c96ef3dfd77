"""The addresses that the page asks for data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray
from tensorboard import plugin_util
from werkzeug.wrappers import Request, Response

from mi_crow_lightning.tensorboard_plugin.answers import BadQuery, binary, get_only, text
from mi_crow_lightning.tensorboard_plugin.catalog import Catalog, fingerprint
from mi_crow_lightning.tensorboard_plugin.metadata import Series
from mi_crow_lightning.tensorboard_plugin.packing import pack
from mi_crow_lightning.tensorboard_plugin.source import NotThere, Source, Where

__all__ = ["Routes"]

Arrays = dict[str, NDArray[Any]]


class Routes:
    """The routes of the data.

    Args:
        source: the runs.
        samples: the steps that TensorBoard keeps of each tensor; 0 for all, ``None`` if that is not known.
    """

    def __init__(self, source: Source, samples: int | None) -> None:
        self._source = source
        self._samples = samples

    def apps(self) -> dict[str, Callable[..., Any]]:
        """Return a WSGI application for each address."""
        numbers = (self.index, self.matrix, self.layer, self.histogram, self.epochs)
        answers = (*numbers, self.events, self.reports, self.texts)
        return {f"/{answer.__name__}": get_only(answer) for answer in answers}

    def index(self, request: Request) -> Response:
        """Answer with every run and its series, the lists of layers each once."""
        layers: dict[tuple[str, ...], int] = {}
        runs = [
            {"name": run, "last": catalog.last, "problems": catalog.problems[:20], **_series_of(catalog, layers)}
            for run, catalog in self._source.catalogs(_where(request)).items()
        ]
        return text(request, {"samples": self._samples, "layers": list(layers), "runs": runs})

    def matrix(self, request: Request) -> Response:
        """Answer with one statistic of one run: every step, every layer."""
        where, run, series = _where(request), _parameter(request, "run"), _series(request)
        state, matrix = self._source.matrix(where, run, series, self._source.catalog(where, run))
        arrays: Arrays = {"steps": matrix.steps, "times": matrix.times, "values": matrix.values}
        header = {"layers": matrix.layers, "left_out": matrix.left_out}
        return binary(request, state, lambda: pack(header, arrays))

    def layer(self, request: Request) -> Response:
        """Answer with one layer of one run: every statistic that its detector has for it."""
        where, run, layer = _where(request), _parameter(request, "run"), _parameter(request, "layer")
        catalog, asked = self._source.catalog(where, run), _series(request)
        names: list[str] = []
        states: list[str] = []
        arrays: Arrays = {}
        for series in _beside(asked, [*catalog.statistics, *catalog.scalars]):
            if layer in catalog.layers(series):
                state, matrix = self._source.matrix(where, run, series, catalog)
                arrays[f"steps{len(names)}"] = matrix.steps
                arrays[f"values{len(names)}"] = matrix.values[:, matrix.layers.index(layer)]
                names.append(series.name)
                states.append(state)
        if not names:
            raise NotThere(f"run {run!r:.200} has no statistic of layer {layer!r:.200}")
        return binary(request, "-".join(states)[:200], lambda: pack({"names": names}, arrays))

    def histogram(self, request: Request) -> Response:
        """Answer with the histograms of one layer of one run, those with the same bins together."""
        where, run, layer = _where(request), _parameter(request, "run"), _parameter(request, "layer")
        catalog, series = self._source.catalog(where, run), _series(request)
        tags = [*catalog.histograms.get(series, {}).get(layer, {})] or [catalog.drawings.get(series, {}).get(layer, "")]
        state = fingerprint(catalog.listed, [tag for tag in tags if tag])

        def content() -> bytes:
            parts = self._source.histograms(where, run, series, layer, catalog)
            arrays = {
                f"{name}{place}": array
                for place, part in enumerate(parts)
                for name, array in zip(part._fields, part, strict=True)
            }
            return pack({"parts": len(parts)}, arrays)

        return binary(request, state, content)

    def epochs(self, request: Request) -> Response:
        """Answer with the first logged step of each epoch of a run, and the epoch."""
        run = _parameter(request, "run")
        return text(request, {"epochs": self._source.epochs(_where(request), run)})

    def reports(self, request: Request) -> Response:
        """Answer with the reports that a run began with: what it watched and steered."""
        run = _parameter(request, "run")
        reports = [report._asdict() for report in self._source.reports(_where(request), run)]
        return text(request, {"reports": reports})

    def texts(self, request: Request) -> Response:
        """Answer with the texts of a run, by stage, dataloader and step."""
        where, run = _where(request), _parameter(request, "run")
        texts, left_out = self._source.texts(where, run, self._source.catalog(where, run))
        return text(request, {"texts": texts, "left_out": left_out})

    def events(self, request: Request) -> Response:
        """Answer with the events of a run, in the order of their steps."""
        where, run = _where(request), _parameter(request, "run")
        rows, left_out = self._source.events(where, run, self._source.catalog(where, run))
        return text(request, {"events": rows, "left_out": left_out})


def _series_of(catalog: Catalog, layers: dict[tuple[str, ...], int]) -> dict[str, Any]:
    def entry(series: Series, of: Iterable[str], source: str) -> dict[str, Any]:
        return {**series._asdict(), "layers": layers.setdefault(tuple(of), len(layers)), "source": source}

    statistics = [entry(series, catalog.layers(series), "compact") for series in catalog.statistics]
    statistics += [entry(series, of, "scalars") for series, of in catalog.scalars.items()]
    histograms = [entry(series, of, "compact") for series, of in catalog.histograms.items()]
    histograms += [entry(series, of, "drawn") for series, of in catalog.drawings.items()]
    return {"statistics": statistics, "histograms": histograms, "texts": bool(catalog.texts)}


def _beside(asked: Series, found: Iterable[Series]) -> list[Series]:
    """Return the series of the same detector, stage and dataloader."""
    return [one for one in found if (one.prefix, one.stage, one.loader) == (asked.prefix, asked.stage, asked.loader)]


def _where(request: Request) -> Where:
    return Where(plugin_util.context(request.environ), plugin_util.experiment_id(request.environ))


def _series(request: Request) -> Series:
    loader = request.args.get("loader", "")
    if not re.fullmatch(r"[0-9]{0,6}", loader):
        raise BadQuery("the parameter 'loader' is not a dataloader's index")
    prefix, name, stage = (_parameter(request, part) for part in ("prefix", "name", "stage"))
    return Series(prefix, name, stage, int(loader) if loader else None)


def _parameter(request: Request, name: str) -> str:
    value = request.args.get(name)
    if value is None:
        raise BadQuery(f"the parameter {name!r} is missing")
    return value
