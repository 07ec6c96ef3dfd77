"""The meaning of a compact tensor: the schema that stands beside its first values in the event file."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = ["NAME", "VERSION", "Schema", "SchemaError", "Series", "parse_schema"]

NAME = "mi_crow_lightning"
"""The plugin's name: in the event files, and in its addresses."""

VERSION = 1
"""The version of the schema that this reader knows."""


class SchemaError(ValueError):
    """A schema that this reader cannot read."""


class Series(NamedTuple):
    """The meaning of a number, apart from its layer and its step.

    Attributes:
        prefix: the detector's name, the first part of the tags.
        name: the statistic.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        loader: the dataloader, ``None`` for all together.
    """

    prefix: str
    name: str
    stage: str
    loader: int | None = None


class Schema(NamedTuple):
    """The positions of a tensor.

    Attributes:
        kind: ``"statistic"``, ``"histogram"``, ``"texts"`` or ``"event"``.
        series: what the numbers are; of texts only stage and dataloader count, of events only the stage.
        layers: the layer of each number; the one layer of a histogram; none of texts and events.
        edges: the bin edges of a histogram, one more than numbers.
    """

    kind: str
    series: Series
    layers: tuple[str, ...]
    edges: tuple[float, ...] = ()


# Every request lists the schemas again, and those of histograms are long.
@lru_cache(maxsize=8192)
def parse_schema(content: bytes) -> Schema:
    """Return the schema that an event file holds as JSON.

    Raises:
        SchemaError: it is not a schema, or one of another version.

    Examples:
        >>> text = b'{"version":1,"kind":"statistic","prefix":"a","name":"rms","stage":"train","layers":["h.0"]}'
        >>> parse_schema(text).series
        Series(prefix='a', name='rms', stage='train', loader=None)
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise SchemaError("its schema is not JSON: the file is damaged") from None
    if not isinstance(raw, dict):
        raise SchemaError("its schema is not a JSON object: the file is damaged")
    version = raw.get("version")
    if version != VERSION or isinstance(version, bool):
        raise SchemaError(f"its schema has version {version!r:.20}, this tab reads {VERSION}: update the package")
    if raw.get("kind") == "texts":
        return Schema("texts", Series("", "", _text(raw, "stage"), _loader(raw)), ())
    if raw.get("kind") == "event":
        return Schema("event", Series("", "", _text(raw, "stage")), ())
    series = Series(_text(raw, "prefix"), _text(raw, "name"), _text(raw, "stage"), _loader(raw))
    if raw.get("kind") == "statistic":
        return Schema("statistic", series, _layers(raw))
    if raw.get("kind") == "histogram":
        return Schema("histogram", series, (_text(raw, "layer"),), _edges(raw))
    raise SchemaError("its schema is not of a statistic, a histogram, texts or an event: update the package")


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise SchemaError(f"its schema has no {key!r}: the file is damaged")
    return value


def _loader(raw: dict[str, Any]) -> int | None:
    value = raw.get("dataloader_idx")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31):
        raise SchemaError("the 'dataloader_idx' of its schema is not a dataloader's index: the file is damaged")
    return value


def _layers(raw: dict[str, Any]) -> tuple[str, ...]:
    value = raw.get("layers")
    if not isinstance(value, list) or not all(isinstance(layer, str) for layer in value):
        raise SchemaError("the 'layers' of its schema are not a list of names: the file is damaged")
    if not value or len(set(value)) != len(value):
        raise SchemaError("the 'layers' of its schema are none, or not distinct: the file is damaged")
    return tuple(value)


def _edges(raw: dict[str, Any]) -> tuple[float, ...]:
    value = raw.get("edges")
    if not isinstance(value, list) or len(value) < 2 or not all(type(edge) in (int, float) for edge in value):
        raise SchemaError("the 'edges' of its schema are not a list of numbers: the file is damaged")
    try:
        edges = tuple(map(float, value))
    except OverflowError:
        edges = (math.nan,)
    if any(not low < high for low, high in pairwise(edges)) or math.isnan(edges[0]):
        raise SchemaError("the 'edges' of its schema do not ascend: the file is damaged")
    return edges
