"""Public names that are imported when they are first used.

TensorBoard and command-line tools import this package without wanting torch or Lightning, which take
seconds to load.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def lazy_attribute(package: str, sources: Mapping[str, str], name: str) -> Any:
    """The attribute ``name`` of ``package``, imported from where ``sources`` says it lives.

    Raises:
        AttributeError: ``package`` has no such name.
    """
    if name not in sources:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(sources[name]), name)
