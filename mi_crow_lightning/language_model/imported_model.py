"""A model given by a name of the form ``package.module:name``, imported from the user's own code."""

from __future__ import annotations

import difflib
import importlib
import re

from torch import nn

__all__ = ["import_model", "is_importable_name"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_importable_name(text: str) -> bool:
    """Return whether ``text`` has the form ``package.module:name``.

    Examples:
        >>> is_importable_name("my.models:small"), is_importable_name("org/model"), is_importable_name("C:/models")
        (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def import_model(name: str) -> nn.Module:
    """Return the named torch module, or what the named class or function returns if called without arguments.

    Raises:
        ValueError: the name leads nowhere, the call fails, or the result is not a torch module.
    """
    found = _find(name)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}: name a function, a class or an instance of nn.Module")
    try:
        made = found()
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"{name!r}, called without arguments, raised {type(error).__name__}: {error}. Name a function that takes "
            "no arguments and returns the model."
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name!r} returned a {type(made).__name__}, and must return an nn.Module")
    return made


def _find(name: str) -> object:
    place, path = name.split(":")
    try:
        found: object = importlib.import_module(place)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{place!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3)
            closest = f"; closest: {', '.join(close)}" if close else ""
            raise ValueError(f"{name!r}: {place!r} has no {part!r}{closest}")
        found = getattr(found, part)
    return found
