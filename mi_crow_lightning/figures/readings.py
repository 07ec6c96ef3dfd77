"""From rows of numbers to the matrix of one statistic: layer x step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning._arguments import not_known, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.layers import chosen_layers
from mi_crow_lightning.figures.words import STAGES

__all__ = ["Matrix", "Number", "Series", "Written", "matrix_of", "one_series", "series_of", "written_last"]

_LOADER = re.compile(r"/dataloader_idx_(\d+)\Z")


class Written(Protocol):
    """A value of one layer at one step, with the tag it was written under."""

    @property
    def stage(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def tag(self) -> str: ...
    @property
    def layer(self) -> str: ...
    @property
    def name(self) -> str: ...


class Number(Written, Protocol):
    """A number of one layer at one step, such as `HistoryRow`."""

    @property
    def value(self) -> float: ...


class Series(NamedTuple):
    """The facts that make numbers belong to one picture.

    Attributes:
        section: the first part of their tags.
        name: the name of the reading.
        stage: the stage.
        dataloader_idx: the dataloader, where each has its own readings.
    """

    section: str
    name: str
    stage: str
    dataloader_idx: int | None


class Matrix(NamedTuple):
    """The numbers of one series.

    Attributes:
        series: which.
        layers: ``L`` names, in the model's order.
        steps: ``(S,)`` int64, ascending.
        values: ``(L, S)`` float64, ``nan`` where a layer gave none.
        known: ``(L, S)`` bool: where a layer gave a number, which may be ``nan``.
    """

    series: Series
    layers: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    known: NDArray[np.bool_]


def matrix_of(
    rows: Iterable[Number],
    name: str,
    stage: str | None = None,
    layers: str | Iterable[str] | None = None,
    dataloader_idx: int | None = None,
) -> Matrix:
    """Return the numbers of one statistic.

    Args:
        rows: the numbers, in the order of writing.
        name: the statistic, or the first part of its tags, e.g. ``"attention_rms"``.
        stage: the stage; ``None`` for the first of ``"train"``, ``"validate"``, ``"test"``, ``"predict"`` that has it.
        layers: names or globs; ``None`` for all layers.
        dataloader_idx: the dataloader, where each has its own readings.

    Raises:
        NothingToDraw: there are no rows.
        TypeError, ValueError: there is no such statistic, stage, layer or dataloader, or there are several.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)} must be the name of a statistic, such as 'rms'")
    by_tag: dict[str, Series] = {}
    found: dict[Series, list[Number]] = {}
    for row in rows:
        series = by_tag.get(row.tag) or by_tag.setdefault(row.tag, series_of(row))
        found.setdefault(series, [])
        if name in (series.name, series.section):
            found[series].append(row)
    chosen = one_series(found, name, stage, dataloader_idx)
    columns = written_last(found[chosen], lambda row: row.value)
    return _filled(chosen, chosen_layers(_in_order(columns.values()), layers), columns)


def series_of(row: Any) -> Series:
    """Return the series of a row with ``stage``, ``tag``, ``layer`` and ``name``."""
    section, _, rest = row.tag.partition("/")
    loader = _LOADER.search(rest)
    return Series(section, row.name, row.stage, int(loader[1]) if loader else None)


def one_series(known: Iterable[Series], name: str, stage: str | None, dataloader_idx: int | None) -> Series:
    """Return the only series that is meant.

    Raises:
        NothingToDraw: none is known.
        ValueError: none is meant, or several.
    """
    known = list(known)
    if not known:
        raise NothingToDraw(
            "there are no readings yet: they are written at the logged steps of training (log_every_n_steps) and at "
            "the end of validation, test and predict, if a detector is on there"
        )
    named = [one for one in known if name in (one.name, one.section)]
    if not named:
        raise not_known("name", name, dict.fromkeys(one.name for one in known))
    of_stage = [one for one in named if one.stage == _stage(named, name, stage)]
    sections = list(dict.fromkeys(one.section for one in of_stage))
    if len(sections) > 1:
        raise ValueError(
            f"name={name!r} is read by several detectors: say which by the first part of the tags, "
            f"{' or '.join(map(repr, sections))}"
        )
    return _of_loader(of_stage, dataloader_idx)


def _stage(named: Sequence[Series], name: str, stage: str | None) -> str:
    there = [one for one in STAGES if any(series.stage == one for series in named)]
    if stage is None:
        return there[0]
    if stage not in STAGES:
        raise not_known("stage", stage, STAGES)
    if stage not in there:
        raise ValueError(f"stage={stage!r} has no {name!r}: it was read in {', '.join(map(repr, there))}")
    return stage


def _of_loader(series: Sequence[Series], dataloader_idx: int | None) -> Series:
    if dataloader_idx is not None:
        whole_number("dataloader_idx", dataloader_idx, 0)
    by_loader = {one.dataloader_idx: one for one in series}
    if dataloader_idx is None and len(by_loader) == 1:
        return series[0]
    if dataloader_idx in by_loader:
        return by_loader[dataloader_idx]
    there = [one for one in by_loader if one is not None]
    if not there:
        raise ValueError(f"dataloader_idx={dataloader_idx}: these readings are of all dataloaders together")
    raise ValueError(
        f"dataloader_idx={dataloader_idx}: each dataloader has its own readings: give one of "
        f"{', '.join(map(str, there))}"
    )


def written_last(rows: Iterable[Any], value: Any) -> dict[int, dict[str, Any]]:
    """Return the values by step and layer. What is written later replaces the same step and all after it.

    So a run that was resumed, or begun again, does not mix with what it repeats.

    Args:
        rows: objects with ``step`` and ``layer``, in the order of writing.
        value: a function from a row to what is kept.
    """
    columns: dict[int, dict[str, Any]] = {}
    last: int | None = None
    for row in rows:
        if last is None or row.step != last or row.layer in columns[last]:
            if last is not None and row.step <= last:
                columns = {step: kept for step, kept in columns.items() if step < row.step}
            last = row.step
            columns[row.step] = {}
        columns[row.step][row.layer] = value(row)
    return columns


def _in_order(columns: Iterable[Iterable[str]]) -> list[str]:
    """Return all layers in the order in which each column has them; one that comes late is put behind its neighbour."""
    order: list[str] = []
    known: set[str] = set()
    for layers in columns:
        place = 0
        for layer in layers:
            if layer not in known:
                known.add(layer)
                order.insert(place, layer)
            elif len(order) == place or order[place] != layer:
                place = order.index(layer)
            place += 1
    return order


def _filled(series: Series, layers: Sequence[str], columns: dict[int, dict[str, float]]) -> Matrix:
    place = {layer: index for index, layer in enumerate(layers)}
    values = np.full((len(layers), len(columns)), np.nan)
    known = np.zeros(values.shape, dtype=bool)
    for column, of_step in enumerate(columns.values()):
        for layer, value in of_step.items():
            if layer in place:
                values[place[layer], column], known[place[layer], column] = value, True
    return Matrix(series, tuple(layers), np.array(list(columns), dtype=np.int64), values, known)
