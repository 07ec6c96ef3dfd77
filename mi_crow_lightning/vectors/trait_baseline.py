"""The baseline of a trait: what a base model's projections were, to be compared with those of a fine-tune."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mi_crow_lightning._arguments import is_finite, place
from mi_crow_lightning._foreign_files import Damaged, check_name, from_json, named, one_error
from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, Table, count, listed_names
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.store.files import write_atomically

__all__ = ["TraitBase", "TraitBaseline"]

_FORMAT, _VERSION = "mi-crow-lightning trait baseline", 1


class TraitBase(NamedTuple):
    """The projections of held-out texts on one direction, at one layer of the base model.

    Attributes:
        vector: the direction's name; empty for one without a name.
        layer: name of the layer.
        dataloader: index of the dataloader; 0 where all are read together.
        texts: how many texts there were.
        mean: the mean over the texts, each with the mean over its tokens.
        std: the standard deviation over the texts (population).
        tokens: the tokens that were read.
        mark: a number that differs from direction to direction, so that another vector of the same name is noticed.
    """

    vector: str
    layer: str
    dataloader: int
    texts: int
    mean: float
    std: float
    tokens: str
    mark: float


class TraitBaseline(Table[TraitBase]):
    """The baseline of a `TraitMonitor`: a list of `TraitBase`.

    ``to_pandas()`` has the columns ``vector``, ``layer``, ``dataloader``, ``texts``, ``mean``, ``std``, ``tokens`` and
    ``mark``.

    Examples:
        >>> TraitBaseline([TraitBase("joy", "h.3", 0, 200, 1.5, 0.25, "'ordinary'", 0.1)])
        <baseline of joy at 1 layer, from 200 texts>
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "vector": NAMES,
        "layer": NAMES,
        "dataloader": WHOLE,
        "texts": WHOLE,
        "mean": NUMBERS,
        "std": NUMBERS,
        "tokens": NAMES,
        "mark": NUMBERS,
    }
    _left_out = ("tokens", "mark")

    def summary(self) -> str:
        """Return the directions, layers and texts, in one line."""
        if not self:
            return "baseline: no texts"
        named_vectors = listed_names((row.vector or "a vector" for row in self), most=4)
        layers, most = count(len({row.layer for row in self}), "layer"), max(row.texts for row in self)
        return f"baseline of {named_vectors} at {layers}, from {count(most, 'text')}"

    def save(self, path: str | Path) -> None:
        """Write the baseline as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written; its earlier content is kept.
        """
        whole = {"format": _FORMAT, "version": _VERSION, "rows": [row._asdict() for row in self]}
        text = json.dumps(whole, ensure_ascii=False, indent=1)
        write_atomically(place("path", path).expanduser(), text.encode("utf-8", errors="backslashreplace"))

    @classmethod
    def load(cls, path: str | Path) -> TraitBaseline:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            VectorFileError: it holds something else, or is damaged.
        """
        file = place("path", path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no baseline at {named(file)}: there is no such file")
        with one_error(file, VectorFileError):
            whole = from_json(file.read_bytes())
            if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
                raise Damaged("is not a baseline that TraitBaseline.save wrote")
            if whole.get("version") != _VERSION:
                raise Damaged(f"has version {shown(whole.get('version'))}, and this release reads version {_VERSION}")
            rows = whole.get("rows")
            if not isinstance(rows, list):
                raise Damaged("has no list of rows")
            return cls(_from_file(row) for row in rows)

    @classmethod
    def _of(cls, name: str, value: Any) -> TraitBaseline:
        """Return the rows of a checkpoint or of an argument, each checked.

        Raises:
            TypeError, ValueError: something is not a row.
        """
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}={shown(value)} must be a TraitBaseline, or the path of one")
        return cls(_row(f"{name}[{i}]", row) for i, row in enumerate(value))


def _from_file(row: Any) -> TraitBase:
    if not isinstance(row, dict) or row.keys() != set(TraitBase._fields):
        raise Damaged(f"has a row {shown(row)}, and a row has {', '.join(TraitBase._fields)}")
    check_name("layer", row["layer"])
    return _row("a row", [row[field] for field in TraitBase._fields])


def _row(name: str, value: Any) -> TraitBase:
    given = list(value) if isinstance(value, (list, tuple)) else []
    kinds = (str, str, int, int, float, float, str, float)  # as `TraitBase` has them
    if len(given) != len(kinds) or not all(_is_a(one, kind) for one, kind in zip(given, kinds, strict=True)):
        raise TypeError(f"{name}={shown(value)} must be a row of {', '.join(TraitBase._fields)}")
    row = TraitBase._make(kind(one) for one, kind in zip(given, kinds, strict=True))
    if row.dataloader < 0 or row.texts < 1 or row.std < 0:
        raise ValueError(f"{name}={shown(value)} has a dataloader or std below 0, or no texts")
    return row


def _is_a(value: Any, kind: type) -> bool:
    return is_finite(value) if kind is float else type(value) is kind
