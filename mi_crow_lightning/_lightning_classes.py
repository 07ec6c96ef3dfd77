"""Checks of classes that hold for ``lightning`` and for ``pytorch_lightning``.

The two packages are copies of one code, with classes of the same names that know nothing of each other: `isinstance`
with a class of one is false for the same class of the other.
"""

from __future__ import annotations

from typing import TypeGuard, TypeVar

__all__ = ["is_a", "is_just_a"]

_T = TypeVar("_T")

_COPIES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def is_a(value: object, *kinds: type[_T]) -> TypeGuard[_T]:
    """Return whether a value is of one of some classes of Lightning, or of a class below, in either package.

    Args:
        value: anything.
        *kinds: classes of ``lightning``.

    Examples:
        >>> import lightning.pytorch as pl, pytorch_lightning
        >>> module = pytorch_lightning.LightningModule()
        >>> is_a(module, pl.LightningModule), isinstance(module, pl.LightningModule)
        (True, False)
    """
    return not {*map(_name, kinds)}.isdisjoint(map(_name, type(value).__mro__))


def is_just_a(value: object, *kinds: type) -> bool:
    """Return whether a value's class is one of some classes of Lightning itself, in either package.

    Args:
        value: anything.
        *kinds: classes of ``lightning``.
    """
    return _name(type(value)) in map(_name, kinds)


def _name(cls: type) -> str:
    package, dot, rest = cls.__module__.partition(".")
    return f"{_COPIES.get(package, package)}{dot}{rest}.{cls.__qualname__}"
