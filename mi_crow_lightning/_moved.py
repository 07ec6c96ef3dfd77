"""Modules that moved, importable by their old names too.

An import from an old place, or a class path in a configuration file, gives the module of today itself, so that a class
is one class whichever way it was reached.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["MOVED", "install"]

_PACKAGE = __name__.rpartition(".")[0]

MOVED = {
    "metrics.directions": "metrics.class_directions",
    "metrics.effects": "metrics.changes",
    "vectors.contrast_detector": "hooks.detectors.contrast",
}
"""Old name of a module, and its name today, within the package."""


class _Moved:
    """A finder of moved modules, and their loader."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for an old name; ``None`` for every other name."""
        is_old = name.removeprefix(f"{_PACKAGE}.") in MOVED and name.startswith(f"{_PACKAGE}.")
        return ModuleSpec(name, self) if is_old else None  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make the module that `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of an old one."""
        today = MOVED[module.__name__.removeprefix(f"{_PACKAGE}.")]
        sys.modules[module.__name__] = importlib.import_module(f"{_PACKAGE}.{today}")


def install() -> None:
    """Make old names importable. The finder comes last, so a module that exists is always found first."""
    if not any(type(finder) is _Moved for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
