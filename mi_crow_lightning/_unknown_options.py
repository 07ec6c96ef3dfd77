"""The error for an option that a class does not take, as a misspelt one, with the options that it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any, TypeVar, cast

from mi_crow_lightning._arguments import did_you_mean
from mi_crow_lightning._shown import cut, shown

__all__ = ["refuses_unknown_options"]

_Init = TypeVar("_Init", bound=Callable[..., None])

_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LONGEST_OPTION = 80


def refuses_unknown_options(init: _Init) -> _Init:
    """Let an ``__init__`` that ends the chain of ``super().__init__(**options)`` name the class that was made.

    Python's own error names the base class whose ``__init__`` the option reached. The signature stays as it is, which
    LightningCLI reads.
    """
    known = inspect.signature(init).parameters.keys()

    @functools.wraps(init)
    def checked(self: object, *args: Any, **options: Any) -> None:
        for option in options:
            if option not in known:
                raise TypeError(_message(type(self), option, options[option]))
        init(self, *args, **options)

    return cast(_Init, checked)


def _message(cls: type, option: str, value: object) -> str:
    taken = sorted(_options_of(cls), key=lambda name: SequenceMatcher(None, name, option).ratio(), reverse=True)
    given = f"{cut(option, _LONGEST_OPTION)}={shown(value)}"
    meant = did_you_mean(option, taken) or "."
    return f"{cls.__name__} takes no option {given}{meant} It takes {', '.join(taken)}"


def _options_of(cls: type) -> list[str]:
    """Return the names of all that a class takes: its own, and those of the bases that it passes options on to."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names.update((one.name, None) for one in parameters if one.kind not in _NAMELESS)
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    refused: Any = getattr(cls, "_refused_options", ())
    return [name for name in names if name not in refused]
