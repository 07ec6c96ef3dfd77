"""Everything that the tab would ask of a log, asked beforehand: the routes' own answers, to be put into a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from numpy.typing import NDArray
from werkzeug.test import Client

from mi_crow_lightning.tensorboard_plugin.catalog import Catalog
from mi_crow_lightning.tensorboard_plugin.packing import unpack
from mi_crow_lightning.tensorboard_plugin.routes import Routes
from mi_crow_lightning.tensorboard_plugin.source import Source, Where

__all__ = ["Answer", "answers"]

_OF_A_RUN = ("epochs", "events", "reports", "texts")
"""The routes that ask for nothing but a run. `layer` is left out: the page makes its answers of those of `matrix`."""


class Answer(NamedTuple):
    """The answer of a route.

    Attributes:
        route: its name.
        parameters: what it was asked for.
        status: HTTP's; 200 if there is an answer.
        content: the answer if it is JSON, or the header before the arrays.
        arrays: the arrays by name; ``None`` if the answer is JSON.
    """

    route: str
    parameters: dict[str, str]
    status: int
    content: Any
    arrays: dict[str, NDArray[Any]] | None = None


def answers(provider: Any) -> list[Answer]:
    """Return the answers of all routes to everything that the page may ask.

    Args:
        provider: the log, see `EventLog`.
    """
    client = Client(_application(Routes(_StillSource(provider), samples=None).apps()))
    index = _asked(client, "index", {})
    return [index, *(_asked(client, route, parameters) for route, parameters in _questions(index.content))]


def _questions(index: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what the page may ask about the runs of an index, route and parameters."""
    for run in index["runs"]:
        of_run = {"run": run["name"]}
        for route in _OF_A_RUN:
            yield route, of_run
        for series in run["statistics"]:
            yield "matrix", {**of_run, **_parameters(series)}
        for series in run["histograms"]:
            for layer in index["layers"][series["layers"]]:
                yield "histogram", {**of_run, **_parameters(series), "layer": layer}


def _parameters(series: Mapping[str, Any]) -> dict[str, str]:
    named = {key: series[key] for key in ("prefix", "name", "stage", "loader")}
    return {key: str(value) for key, value in named.items() if value is not None}


def _asked(client: Client, route: str, parameters: dict[str, str]) -> Answer:
    # Half of a surrogate pair has no place in an address: what it names is then not found, as in TensorBoard.
    response = client.get(f"/{route}", query_string=urlencode(parameters, errors="replace"))
    if response.mimetype == "application/json":
        return Answer(route, parameters, response.status_code, json.loads(response.data))
    header, arrays = unpack(response.data)
    return Answer(route, parameters, response.status_code, header, arrays)


def _application(apps: Mapping[str, Any]) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        return apps[environ["PATH_INFO"]](environ, start_response)

    return application


class _StillSource(Source):
    """A source whose log does not grow: its runs are listed once."""

    _found: dict[str, Catalog] | None = None

    def catalogs(self, where: Where, run: str | None = None) -> dict[str, Catalog]:
        """Return the catalog of each run that has something to show."""
        if self._found is None:
            self._found = super().catalogs(where)
        return self._found
