"""Short names of hooks on the command line of a LightningCLI and in its files.

jsonargparse finds a class by its short name, and lists it in its help, once its module is imported. The package
imports nothing until it is used, so a process that reads command lines gets what it may name there at once.
"""

from __future__ import annotations

import importlib
import sys

__all__ = ["make_known"]

_PACKAGES = ("hooks", "vectors", "alarms", "callback", "language_model")


def make_known() -> None:
    """Import what a command line may name, where jsonargparse is imported, as `lightning.pytorch.cli` does.

    All else stays as fast as it was. These imports are by name, as those of `_lazy`: no module depends on them.
    """
    if "jsonargparse" not in sys.modules:
        return
    for package in _PACKAGES:
        module = importlib.import_module(f"{__package__}.{package}")
        for name in module.__all__:
            getattr(module, name)
