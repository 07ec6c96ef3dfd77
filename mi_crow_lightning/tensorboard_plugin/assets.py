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

_MODULES = (
    "api",
    "app",
    "choices",
    "colours",
    "detail",
    "dom",
    "drawing",
    "effects",
    "events",
    "heatmap",
    "histogram",
    "host",
    "index",
    "layers",
    "legend",
    "lines",
    "many_lines",
    "numbers",
    "profile",
    "report",
    "shades",
    "state",
    "steering",
    "table",
    "texts",
    "toolbar",
    "vector_series",
    "vectors",
    "view",
    "views",
)

FILES: tuple[str, ...] = (
    *(f"{module}.js" for module in _MODULES),
    "style.css",
    "uplot/uPlot.esm.js",
    "uplot/uPlot.min.css",
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
