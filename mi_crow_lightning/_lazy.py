"""Public names that are imported when they are first used.

The stub `__init__.pyi` beside a package's `__init__.py` is the one list of the names that it exports. Type checkers and
the documentation read it as it is; at run time `attach` reads from it where each name comes from. TensorBoard and
command-line tools import this package without wanting torch or Lightning, which take seconds to load.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable

from mi_crow_lightning._moved import answer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["attach", "from_above"]


def from_above(module: str, name: str) -> Any:
    """Return what a module of a higher layer has under a name, for a method that only hands its call on.

    The layers of imports do not see this, as they do not see what a stub lists: the page "Architecture" names each use.

    Examples:
        >>> from_above("mi_crow_lightning.warnings", "AlarmWarning").__name__
        'AlarmWarning'
    """
    return getattr(importlib.import_module(module), name)


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose stub lists what it exports.

    Args:
        package: its ``__name__``.
        file: its ``__file__``; the stub has the same name with the suffix ``.pyi``. Each of its lines
            ``from module import name as name`` exports a name.
    """
    with open(f"{os.path.splitext(file)[0]}.pyi", encoding="utf-8") as stub:
        body = ast.parse(stub.read()).body
    modules = {name.name: node.module for node in body if isinstance(node, ast.ImportFrom) for name in node.names}

    def __getattr__(name: str) -> Any:
        module = modules.get(name)
        if module is None:
            answer = answer_of(package.rpartition(".")[-1], name)
            if answer is not None:
                raise ImportError(answer)  # of an AttributeError, `from package import name` would drop the message
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__, list(modules)
