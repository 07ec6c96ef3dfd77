"""HTTP around the routes: methods, errors, headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorboard import errors
from tensorboard.backend import http_util
from werkzeug.wrappers import Request, Response

from mi_crow_lightning.tensorboard_plugin.source import NotThere, Unreadable

__all__ = ["BadQuery", "binary", "get_only", "text"]

Application = Callable[..., Any]


class BadQuery(ValueError):
    """A request whose parameters mean nothing."""


def get_only(answer: Callable[[Request], Response]) -> Application:
    """Return a WSGI application that answers GET and HEAD, and every error of ours with a JSON object."""

    def application(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _failure(request, 405, "this address answers GET alone", [("Allow", "GET, HEAD")])
        try:
            return answer(request)
        except BadQuery as error:
            return _failure(request, 400, str(error))
        except (NotThere, errors.NotFoundError) as error:
            return _failure(request, 404, str(error))
        except Unreadable as error:
            return _failure(request, 422, str(error))

    return Request.application(application)


def text(request: Request, content: Any, content_type: str = "application/json", **options: Any) -> Response:
    """Return a response of text, or of an object as JSON, compressed if the browser takes that."""
    return http_util.Respond(request, content, content_type, **options)  # type: ignore[no-any-return]


def binary(request: Request, state: str, content: Callable[[], bytes]) -> Response:
    """Return bytes, or nothing but "not modified" if the browser has those of this state."""
    tag = f'"{state}"'
    if request.headers.get("If-None-Match") == tag:
        return Response(status=304, headers=[("ETag", tag), ("Cache-Control", "no-cache")])
    response = http_util.Respond(request, content(), "application/octet-stream", headers=[("ETag", tag)])
    response.headers["Cache-Control"] = "private, no-cache"  # kept, and asked about again
    response.headers.pop("Expires", None)
    return response  # type: ignore[no-any-return]


def _failure(request: Request, code: int, message: str, headers: list[tuple[str, str]] | None = None) -> Response:
    return text(request, {"error": message}, code=code, headers=headers)
