"""The catalog of a run: which series it has, and the tags that hold them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mi_crow_lightning.tensorboard_plugin.metadata import Schema, SchemaError, Series, parse_schema
from mi_crow_lightning.tensorboard_plugin.plain_tags import STATISTICS, of_histogram, of_scalar

__all__ = ["Catalog", "Listing", "fingerprint"]

_T = TypeVar("_T")

Listing = Mapping[str, Any]
"""The time series of one run and plugin by tag, as TensorBoard lists them."""


@dataclass
class Catalog:
    """The series of one run.

    Attributes:
        statistics: the compact tensors of each series, by tag.
        histograms: the compact histograms of each series and layer, by tag.
        scalars: the tags of the plain scalars of each series that has no compact tensors, by layer.
        drawings: the tags of the plain histograms of each series that has no compact ones, by layer.
        texts: stage and dataloader of each time series of texts, by tag.
        events: the stage of each time series of events, by tag.
        problems: what could not be read, in a sentence each.
        listed: every time series that is named above.
    """

    statistics: dict[Series, dict[str, Schema]] = field(default_factory=dict)
    histograms: dict[Series, dict[str, dict[str, Schema]]] = field(default_factory=dict)
    scalars: dict[Series, dict[str, str]] = field(default_factory=dict)
    drawings: dict[Series, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, Series] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    listed: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Listing, scalars: Listing, histograms: Listing) -> Catalog:
        """Return the catalog of what TensorBoard lists for a run.

        Args:
            tensors: its compact tensors.
            scalars: its plain scalars, other people's among them.
            histograms: its plain histograms, other people's among them.
        """
        catalog = cls()
        for tag, listed in tensors.items():
            catalog._add_tensor(tag, listed)
        for tag, listed in scalars.items():
            catalog._add_plain(tag, listed, of_scalar(tag), catalog.statistics, catalog.scalars)
        for tag, listed in histograms.items():
            catalog._add_plain(tag, listed, of_histogram(tag), catalog.histograms, catalog.drawings)
        catalog._sort()
        return catalog

    def __bool__(self) -> bool:
        """Return whether there is anything to show."""
        numbers = self.statistics or self.histograms or self.scalars or self.drawings
        return bool(numbers or self.texts or self.events or self.problems)

    @property
    def last(self) -> float:
        """The time of the last point, in seconds; 0 if there is none."""
        return max((float(listed.max_wall_time or 0.0) for listed in self.listed.values()), default=0.0)

    def layers(self, series: Series) -> tuple[str, ...]:
        """Return the layers of a statistic, in the model's order where it is known."""
        of_tensors = (layer for schema in self.statistics.get(series, {}).values() for layer in schema.layers)
        return tuple(dict.fromkeys(of_tensors)) or tuple(self.scalars.get(series, ()))

    def _sort(self) -> None:
        """Put everything into an order: the fast loader lists in none."""
        self.statistics = _sorted(
            {
                series: dict(sorted(schemas.items(), key=lambda item: (_natural(item[1].layers[0]), item[0])))
                for series, schemas in self.statistics.items()
            }
        )
        self.histograms = _sorted({series: _by_layer(found) for series, found in self.histograms.items()})
        self.scalars = _sorted({series: _by_layer(found) for series, found in self.scalars.items()})
        self.drawings = _sorted({series: _by_layer(found) for series, found in self.drawings.items()})
        self.problems.sort()

    def _add_tensor(self, tag: str, listed: Any) -> None:
        try:
            schema = parse_schema(bytes(listed.plugin_content))
        except SchemaError as error:
            self.problems.append(f"{tag:.200}: {error}")
            return
        self.listed[tag] = listed
        if schema.kind == "statistic":
            self.statistics.setdefault(schema.series, {})[tag] = schema
        elif schema.kind == "texts":
            self.texts[tag] = schema.series
        elif schema.kind == "event":
            self.events[tag] = schema.series.stage
        else:
            by_layer = self.histograms.setdefault(schema.series, {})
            by_layer.setdefault(schema.layers[0], {})[tag] = schema

    def _add_plain(
        self,
        tag: str,
        listed: Any,
        meaning: tuple[Series, str] | None,
        compact: Mapping[Series, Any],
        plain: dict[Series, dict[str, str]],
    ) -> None:
        if meaning is not None and meaning[0] not in compact:
            series, layer = meaning
            plain.setdefault(series, {})[layer] = tag
            self.listed[tag] = listed


def _sorted(found: dict[Series, _T]) -> dict[Series, _T]:
    def place(series: Series) -> Any:
        known = STATISTICS.index(series.name) if series.name in STATISTICS else len(STATISTICS)
        return series.prefix, known, series.name, series.stage, -1 if series.loader is None else series.loader

    return {series: found[series] for series in sorted(found, key=place)}


def _by_layer(found: dict[str, _T]) -> dict[str, _T]:
    return {layer: found[layer] for layer in sorted(found, key=lambda layer: (_natural(layer), layer))}


def _natural(name: str) -> list[Any]:
    """Return a key by which ``h.2`` comes before ``h.10``."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn
    return [(len(part.lstrip("0")), part.lstrip("0")) if at % 2 else part for at, part in enumerate(parts)]


def fingerprint(listing: Mapping[str, Any], tags: list[str]) -> str:
    """Return a text that changes when one of the time series got another point."""
    points = [(tag, listing[tag].max_step, listing[tag].max_wall_time) for tag in sorted(tags)]
    return hashlib.sha256(repr(points).encode("utf-8", "backslashreplace")).hexdigest()[:24]
