"""Results as tables: lists of rows that read well in a terminal and a notebook, and become a pandas DataFrame."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import repeat
from typing import Any, ClassVar, SupportsIndex, TypeVar, overload

from mi_crow_lightning._in_html import html_table
from mi_crow_lightning._shown import shortened
from mi_crow_lightning._text_table import text_table

__all__ = ["NAMES", "NUMBERS", "OBJECTS", "WHOLE", "WHOLE_OR_NONE", "Table", "count", "legible", "listed_names"]

_Row = TypeVar("_Row")
_Self = TypeVar("_Self", bound="Table[Any]")

_MOST_ROWS = 20  # that are shown: with their header they fit a terminal
_LONGEST_CELL = 60
# The kinds of columns, as pandas calls them.
NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, OBJECTS = "str", "float64", "int64", "Int64", "object"

_NO_PANDAS = "to_pandas() needs pandas: pip install 'mi-crow-lightning[pandas]'"


class Table(list[_Row]):
    """A list of rows that reads well: one line as ``repr``, a short table in ``print`` and in a notebook.

    A subclass says what its rows are: `summary` in one line, and its columns.
    """

    _columns: ClassVar[Mapping[str, str]] = {}  # fields of the rows, each with its kind, in the order of `to_pandas`
    _left_out: ClassVar[tuple[str, ...]] = ()  # those that text and HTML do not show

    def summary(self) -> str:
        """Return what the rows are, in one line."""
        return count(len(self), "row")

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            raise ImportError(_NO_PANDAS) from error
        # Column by column: a DataFrame made of rows takes ten times as long.
        return pandas.DataFrame(
            {
                name: pandas.Series([getattr(row, name) for row in self], dtype=kind)
                for name, kind in self._columns.items()
            }
        )

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> _Row: ...
    @overload
    def __getitem__(self: _Self, index: slice, /) -> _Self: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> Any:
        """Return one row, or those of a slice as a table."""
        return type(self)(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def __add__(self: _Self, other: Iterable[Any], /) -> _Self:  # type: ignore[override]
        """Return the rows of both, as of two runs."""
        return type(self)([*self, *other])

    def copy(self: _Self) -> _Self:
        """Return a table of the same rows."""
        return type(self)(self)

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def __str__(self) -> str:
        if not self:
            return repr(self)
        header, rows = self._bounded()
        numbers = [i for i, name in enumerate(header) if self._columns[name] not in (NAMES, OBJECTS)]
        return f"{self.summary()}\n\n{text_table(header, rows, right=numbers)}"

    def _repr_html_(self) -> str:
        """Return the first and last rows as HTML, which a notebook shows."""
        return f"<p>{escape(self.summary())}</p>{self.html_rows()}"

    def html_rows(self) -> str:
        """Return the first and last rows as an HTML table; nothing if there are none."""
        return html_table(*self._bounded()) if self else ""

    def _bounded(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Return the names of the columns that are shown, and the cells of the first and last rows."""
        header = [name for name in self._columns if name not in self._left_out]
        half = _MOST_ROWS // 2
        several = len(self) > _MOST_ROWS
        first, last = (list(self[:half]), list(self[-half:])) if several else (list(self), [])
        left_out = [("...", *repeat("", len(header) - 1))] if several else []
        cells = [[[_cell(getattr(row, name)) for name in header] for row in part] for part in (first, last)]
        return header, [*cells[0], *left_out, *cells[1]]


def legible(text: str, most: int = _LONGEST_CELL) -> str:
    r"""Return a text in one line, cut in its middle if it is long, and with what cannot be printed as an escape.

    Examples:
        >>> print(legible("h.0\n\x1b[2J"))
        h.0\n\x1b[2J
    """
    if not text.isprintable():
        text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    return shortened(text, most)


def count(number: int, what: str) -> str:
    """Return a number of things.

    Examples:
        >>> count(1, "layer"), count(3120, "number")
        ('1 layer', '3,120 numbers')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed_names(names: Iterable[str], most: int = 3) -> str:
    """Return a few names as a list in words.

    Examples:
        >>> listed_names(["train", "validate"]), listed_names("abcde")
        ('train and validate', 'a, b, c and 2 more')
    """
    known = [legible(name) for name in dict.fromkeys(names)]
    if len(known) > most:
        return f"{', '.join(known[:most])} and {len(known) - most} more"
    return " and ".join([", ".join(known[:-1]), known[-1]]) if len(known) > 1 else "".join(known)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple) and len(value) > 4:
        value = f"({_cell(value[0])}, ... {_cell(value[-1])}): {len(value)}"
    return legible(str(value))
