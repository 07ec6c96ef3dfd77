"""The modules of the tab as one script: a page that is opened from disk cannot import any.

Each module becomes a function that is called once and returns what the module exports. Only the forms of ``import``
and ``export`` that these modules use are known; any other is an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from importlib import resources

__all__ = ["ENTRY", "bundled", "style"]

ENTRY = "page.js"
"""The module that shows the page."""

_FOLDERS = ("mi_crow_lightning.run_page", "mi_crow_lightning.tensorboard_plugin")  # in each, the folder "static"
_STYLES = ("style.css", "uplot/uPlot.min.css", "page.css")

_BRACES = r"\{(?P<names>[^{}]*)\}"
_IMPORT = re.compile(rf'^import (?:{_BRACES}|(?P<default>\w+)) from "(?P<path>\./[\w./]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (?P<name>\w+))", re.MULTILINE)
_LIST = re.compile(rf"^export {_BRACES};$", re.MULTILINE)
_VENDORED = "uplot/uPlot.esm.js"
_SPARED = re.compile(r"^/\*\n(?s:.*?)^\*/\n|^[ \t]+(?://.*\n)?|^//.*\n", re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b|\bimport\(", re.MULTILINE)


def bundled(entry: str = ENTRY, read: Callable[[str], str] | None = None) -> str:
    """Return a script that does what a module does, with everything that it imports.

    Args:
        entry: the module's file.
        read: from a file to its text; by default those of the page and of the tab.

    Raises:
        ValueError: a module imports or exports in a form that is not known here, or modules import in a circle.
    """
    done: dict[str, str] = {}
    _add(entry, read or _text, done, ())
    return "\n".join(done.values())


def style() -> str:
    """Return the page's style sheet."""
    return "\n".join(_text(name) for name in _STYLES)


def _add(path: str, read: Callable[[str], str], done: dict[str, str], above: tuple[str, ...]) -> None:
    """Add a module after those that it imports."""
    if path in above:
        raise ValueError(f"modules import in a circle: {' -> '.join([*above, path])}")
    if path in done:
        return
    source = _shortened(read(path)) if path == _VENDORED else read(path)
    exported: list[str] = []

    def imported(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))
        _add(target, read, done, (*above, path))
        names = f"default: {match['default']}" if match["default"] else match["names"].replace(" as ", ": ")
        return f"const {{ {' '.join(names.split())} }} = {_variable(target)};"

    def listed(match: re.Match[str]) -> str:
        for one in match["names"].split(","):
            name, _, other = one.strip().partition(" as ")
            exported.append(f"{other or name}: {name}")
        return ""

    source = _LIST.sub(listed, _IMPORT.sub(imported, source))
    exported += [match["name"] for match in _EXPORT.finditer(source)]
    source = _EXPORT.sub("", source)
    left = _LEFT.search(source)
    if left is not None:
        line = source[left.start() :].partition("\n")[0]
        raise ValueError(f"{path} has a form of import or export that bundle.py does not know: {line:.100}")
    done[path] = f"const {_variable(path)} = (() => {{\n{source}\nreturn {{ {', '.join(exported)} }};\n}})();"


def _shortened(source: str) -> str:
    """Return uPlot without indentation and comments, a fifth of it; the licence at its head stays."""
    return _SPARED.sub("", source)


def _variable(path: str) -> str:
    return "m_" + re.sub(r"\W", "_", path.removesuffix(".js"))


def _text(path: str) -> str:
    for package in _FOLDERS:
        file = resources.files(package).joinpath("static", *path.split("/"))
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise ValueError(f"there is no file {path!r} of the page")
