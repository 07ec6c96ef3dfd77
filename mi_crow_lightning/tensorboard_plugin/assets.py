"""The files of the page: a fixed table, so that no address can mean a file that is not in it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

from werkzeug.wrappers import Request, Response

from mi_crow_lightning.tensorboard_plugin.answers import get_only, text

__all__ = ["ENTRY", "FILES", "asset_apps"]

ENTRY = "/static/index.js"
"""The address of the module that TensorBoard's page imports."""

FILES: tuple[str, ...] = (
    *(
        "index.js",
        "app.js",
        "api.js",
        "choices.js",
        "colours.js",
        "dom.js",
        "drawing.js",
        "events.js",
        "heatmap.js",
        "host.js",
        "layers.js",
    ),
    *(
        "detail.js",
        "histogram.js",
        "legend.js",
        "lines.js",
        "numbers.js",
        "profile.js",
        "report.js",
        "state.js",
        "style.css",
        "table.js",
    ),
    *("effects.js", "many_lines.js", "shades.js", "steering.js", "texts.js", "toolbar.js"),
    *("vector_series.js", "vectors.js", "view.js", "views.js"),
    *("uplot/uPlot.esm.js", "uplot/uPlot.min.css"),
)
"""Every file of the page, below ``static/``."""

_TYPES = {".js": "text/javascript", ".css": "text/css"}


def asset_apps() -> dict[str, Callable[..., Any]]:
    """Return a WSGI application for the address of each file."""
    return {f"/static/{name}": get_only(_server(name)) for name in FILES}


def _server(name: str) -> Callable[[Request], Response]:
    def serve(request: Request) -> Response:
        content = resources.files(__package__).joinpath("static", *name.split("/")).read_bytes()
        return text(request, content, _TYPES[name[name.rindex(".") :]])

    return serve
