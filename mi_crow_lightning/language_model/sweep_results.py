"""The result of a sweep over strengths, and perhaps vectors, as a table that draws itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning._shown import name_of, shown
from mi_crow_lightning._tables import NAMES, NUMBERS, OBJECTS, WHOLE, Table, count, legible
from mi_crow_lightning.figures.colours import LINES
from mi_crow_lightning.figures.sweep import Band, plot_sweep
from mi_crow_lightning.language_model.dose_response import DoseResponseTable, Response, dose_response
from mi_crow_lightning.language_model.generated import records_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SweepRow", "SweepTable", "sweep_table"]

_ALONE = "vector"  # the name of a vector that has none


class SweepRow(NamedTuple):
    """A measure over all prompts, with one vector at one strength.

    Attributes:
        vector: the vector's name; ``"vector"`` if only one was swept.
        strength: the strength.
        mean: the mean over the prompts.
        std: the standard deviation over the prompts, divided by ``n - 1``; nan of one.
        n: how many prompts.
        is_random: whether it is a random vector, to compare with.
        measure: the name of the measure.
        values: the measure of each prompt, in the order of the run.
    """

    vector: str
    strength: float
    mean: float
    std: float
    n: int
    is_random: bool
    measure: str
    values: tuple[float, ...]


class SweepTable(Table[SweepRow]):
    """A measure by vector and strength: a list of `SweepRow`.

    ``to_pandas()`` has the columns ``vector``, ``strength``, ``mean``, ``std``, ``n``, ``is_random`` and ``measure``.
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "vector": NAMES,
        "strength": NUMBERS,
        "mean": NUMBERS,
        "std": NUMBERS,
        "n": WHOLE,
        "is_random": OBJECTS,
        "measure": NAMES,
    }
    _left_out = ("is_random", "measure")

    def summary(self) -> str:
        """Return what was swept, in one line."""
        random = {row.vector for row in self if row.is_random}
        vectors = list(dict.fromkeys(row.vector for row in self if not row.is_random))
        named = ", ".join(legible(name) for name in vectors[:3]) + (", ..." if len(vectors) > 3 else "")
        beside = f" beside {count(len(random), 'random one')}" if random else ""
        strengths = count(len({row.strength for row in self}), "strength")
        measure = legible(self[0].measure) if self else "nothing"
        return f"{measure} at {strengths} of {count(len(vectors), 'vector')}{beside}: {named}"

    def dose_response(self) -> DoseResponseTable:
        """Return for each vector whether the measure follows the strength, on how many prompts, and beyond chance.

        Raises:
            ValueError: there are not at least two strengths.
        """
        return dose_response(self._responses())

    def plot(self, *, band: Band = "range", ax: Any = None) -> tuple[Figure, Axes]:
        """Draw the mean over the strengths, before the band of the random vectors. Needs matplotlib.

        Args:
            band: see `mi_crow_lightning.figures.plot_sweep`.
            ax: axes of matplotlib to draw on; ``None`` for a new figure.

        Returns:
            The figure and its axes; ``ax.lines[0]`` is the first vector that is not random.

        Raises:
            ValueError: there is none.
        """
        means = [(one, one.values.mean(1)) for one in self._responses()]
        given = [pair for pair in means if not pair[0].is_random]
        if not given:
            raise ValueError("there is nothing to draw: the table has no vector that is not a random one")
        random = [mean for one, mean in means if one.is_random]
        (one, mean), *others = given
        named = {"measure": self[0].measure, "label": one.vector}
        fig, ax = plot_sweep(one.strengths, mean, np.stack(random) if random else None, **named, band=band, ax=ax)
        for i, (other, its_mean) in enumerate(others, 1):
            ax.plot(other.strengths, its_mean, "o-", color=LINES[i % len(LINES)], markersize=4, label=other.vector)
        if others:
            ax.legend(frameon=False, fontsize="small")
        return fig, ax

    def _responses(self) -> list[Response]:
        by_vector: dict[str, list[SweepRow]] = {}
        for row in self:
            by_vector.setdefault(row.vector, []).append(row)
        found = []
        for name, rows in by_vector.items():
            rows = sorted(rows, key=lambda row: row.strength)
            strengths = np.array([row.strength for row in rows])
            found.append(Response(name, rows[0].is_random, strengths, np.array([row.values for row in rows])))
        return found


def sweep_table(predictions: Any, measure: str | Callable[[Any], float] = "gap") -> SweepTable:
    """Return what a sweep measured as a table, by vector and strength.

    Args:
        predictions: the result of ``trainer.predict`` with a module that has ``sweep=``, or a part of it.
        measure: ``"gap"``, or the name of a group of `ContinuationScore`, or a function from a record (`PromptScore`
            or `GeneratedText`) to a number.

    Raises:
        TypeError: ``predictions`` holds anything but records, or ``measure`` is none of these.
        ValueError: the records have no strengths, or not as many at each; or no such measure.

    Examples:
        >>> from mi_crow_lightning.language_model import PromptScore
        >>> gaps = {("joy", 0.0): 1.0, ("joy", 2.0): 4.0, ("random 0", 0.0): 1.0, ("random 0", 2.0): 0.5}
        >>> scores = [
        ...     PromptScore("I am", strength, {}, gap, [], 0, vector, vector != "joy")
        ...     for (vector, strength), gap in gaps.items()
        ... ]
        >>> table = sweep_table(scores)
        >>> table
        <gap at 2 strengths of 1 vector beside 1 random one: joy>
        >>> [(row.vector, row.span, row.random_low) for row in table.dose_response()]
        [('joy', 3.0, -0.5)]
    """
    if not isinstance(measure, str) and not callable(measure):
        raise TypeError(
            f"measure={shown(measure)} must be 'gap', a group's name, or a function from a record to a number"
        )
    name = measure if isinstance(measure, str) else name_of(measure)
    found: dict[tuple[str, float], list[float]] = {}
    random: dict[str, bool] = {}
    for record in records_in(predictions):
        if record.strength is None:
            raise ValueError("the records have no strengths: give the module sweep=, e.g. sweep=[-2, 0, 2]")
        vector = _ALONE if record.vector is None else record.vector
        random[vector] = record.is_random
        found.setdefault((vector, record.strength), []).append(_measured(record, measure))
    if len({len(values) for values in found.values()}) > 1:
        counts = {f"{vector} at {strength:g}": len(values) for (vector, strength), values in found.items()}
        raise ValueError(f"each vector needs as many records at each strength, and there are {shown(counts)}")
    names = list(random)  # a later batch has the same
    return SweepTable(
        SweepRow(vector, strength, fmean(of), _std(of), len(of), random[vector], name, tuple(of))
        for (vector, strength), of in sorted(found.items(), key=lambda item: names.index(item[0][0]))
    )


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else float("nan")


def _measured(record: Any, measure: str | Callable[[Any], float]) -> float:
    if not isinstance(measure, str):
        return float(measure(record))
    if measure == "gap" and getattr(record, "gap", None) is not None:
        return float(record.gap)
    scores = getattr(record, "scores", None)
    if scores is None:
        raise ValueError(f"measure={measure!r} is one of PromptScore: for {type(record).__name__} give a function")
    if measure not in scores:
        raise not_known("measure", measure, ["gap", *scores] if record.gap is not None else list(scores))
    return float(scores[measure])
