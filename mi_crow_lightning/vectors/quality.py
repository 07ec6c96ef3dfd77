"""How good a vector is at each layer: held-out texts, random directions beside it, and how far its pairs agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from mi_crow_lightning._foreign_files import Damaged, check_name, from_json
from mi_crow_lightning._shown import shortened
from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, legible

__all__ = ["LayerQuality", "QualityTable"]

_NAN = float("nan")


class LayerQuality(NamedTuple):
    """How good a vector's direction is at one layer; nan where it was not measured.

    Attributes:
        layer: the layer's name.
        auroc: the probability that a held-out positive text lies further along the direction than a negative one.
        d_prime: the distance of the two classes of held-out texts along it, in standard deviations.
        random_auroc: the mean ``auroc`` of random directions on the same texts, each in the better of its two signs.
        coherence: the mean cosine of the pairs' differences with their mean; of ``n`` random ones ``1 / sqrt(n)``.
        anti_steerable: the share of pairs whose own difference points against the mean of the others.
        p_value: how often chance makes as much of the same differences, see `Reliability`.
        n: the number of pairs that the direction was made of.
        held_out: the number of held-out texts.
        block: the block that the layer is or lies in; ``None`` where that is not known.
    """

    layer: str
    auroc: float = _NAN
    d_prime: float = _NAN
    random_auroc: float = _NAN
    coherence: float = _NAN
    anti_steerable: float = _NAN
    p_value: float = _NAN
    n: int = 0
    held_out: int = 0
    block: int | None = None


class QualityTable(Table[LayerQuality]):
    """The quality of a vector by layer: a list of `LayerQuality`.

    ``to_pandas()`` has its fields as columns, ``block`` first.

    Examples:
        >>> weak, strong = LayerQuality("h.2", 0.75, 1.0, held_out=8), LayerQuality("h.3", 1.0, 2.5, held_out=8)
        >>> QualityTable([weak, strong])
        <quality at 2 layers: best 'h.3', with auroc 1 and d' 2.5 on 8 held-out texts>
        >>> QualityTable([weak, strong]).best().layer
        'h.3'
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "layer": NAMES,
        "auroc": NUMBERS,
        "d_prime": NUMBERS,
        "random_auroc": NUMBERS,
        "coherence": NUMBERS,
        "anti_steerable": NUMBERS,
        "p_value": NUMBERS,
        "n": WHOLE,
        "held_out": WHOLE,
    }

    def best(self) -> LayerQuality:
        """Return the row with the largest ``auroc``; among equals, ``d_prime``; without either, ``coherence``.

        Raises:
            ValueError: there are no rows.
        """
        if not self:
            raise ValueError("the vector has no quality to choose a layer by: SteeringVector.from_pairs measures it")
        return max(self, key=lambda row: tuple(_or_least(one) for one in (row.auroc, row.d_prime, row.coherence)))

    def summary(self) -> str:
        """Return which layer is best, in one line."""
        if not self:
            return "quality: nothing was measured"
        best = self.best()
        start = f"quality at {count(len(self), 'layer')}: best {legible(best.layer)!r}, with "
        if math.isnan(best.auroc):
            return f"{start}coherence {best.coherence:.3g} of {count(best.n, 'pair')}"
        texts = count(best.held_out, "held-out text")
        return f"{start}auroc {best.auroc:.3g} and d' {best.d_prime:.3g} on {texts}"

    def to_text(self) -> str:
        """Return the rows as JSON, with ``null`` for what was not measured."""
        return json.dumps([{name: _plain(value) for name, value in row._asdict().items()} for row in self])

    @classmethod
    def from_text(cls, text: str) -> QualityTable:
        """Read what `to_text` wrote.

        Raises:
            ValueError: the text holds something else.
        """
        read = from_json(text, "has a quality that")
        if not isinstance(read, list):
            raise Damaged(f"has a quality that is not a list: {shortened(text)!r}")
        return cls(_row(one) for one in read)

    def renamed(self, names: Mapping[str, str]) -> QualityTable:
        """Return the rows of the layers that ``names`` holds, in its order, under the names that they have there."""
        rows = {row.layer: row for row in self}
        return QualityTable(rows[old]._replace(layer=new) for old, new in names.items() if old in rows)


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(read: Any) -> LayerQuality:
    if not isinstance(read, dict) or read.keys() - set(LayerQuality._fields):
        raise Damaged(f"has a quality with a row that is not one: {shortened(repr(read))}")
    given: dict[str, Any] = {"layer": check_name("layer", read.get("layer"))}
    for name, value in read.items():
        if name != "layer":
            given[name] = _value(name, value, QualityTable._columns[name])
    return LayerQuality(**given)


def _value(name: str, value: Any, kind: str) -> Any:
    if kind == NUMBERS:
        if value is None:
            return _NAN
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif (value is None and kind == WHOLE_OR_NONE) or (type(value) is int and 0 <= value < 2**63):
        return value
    raise Damaged(f"has a quality with {shortened(repr(value))} as {name}, which must be a number")
