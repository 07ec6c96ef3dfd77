"""The numbers that were written, as a table: for runs without a logger, and for scripts that print a summary."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from itertools import takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, listed_names
from mi_crow_lightning.choices import ScaleName, StageName
from mi_crow_lightning.figures.heatmap import plot_heatmap
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["History", "HistoryRow", "HistoryTable"]

_Keys: TypeAlias = tuple[tuple[str, str, str, int | None], ...]  # (tag, layer, name, block) of each number of a step


class HistoryRow(NamedTuple):
    """One number of one layer at one step.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the loggers' x axis.
        tag: the tag it was written under.
        layer: name of the layer.
        name: the name of the reading.
        value: the number.
        block: the block of its stack that the layer is or lies in; ``None`` outside all stacks, and for a detector
            whose layers are in several.
        run: what it was written in. In `HookCallback.history` the Trainer's method, ``"fit"``, ``"validate"``,
            ``"test"`` or ``"predict"``, and from the callback's second run of a kind on with its number, ``"fit 2"``;
            of an event file the name of its folder.
    """

    stage: str
    step: int
    tag: str
    layer: str
    name: str
    value: float
    block: int | None = None
    run: str = ""


class HistoryTable(Table[HistoryRow]):
    """Numbers that were written, in that order: a list of `HistoryRow`.

    ``to_pandas()`` has the columns ``block``, ``run``, ``stage``, ``step``, ``layer``, ``name``, ``value`` and ``tag``.

    Examples:
        >>> rows = [HistoryRow("train", step, "rms/h.0", "h.0", "rms", step / 2, 0, "fit") for step in (4, 9)]
        >>> table = HistoryTable(rows)
        >>> table
        <history of fit: 2 numbers of train: 1 layer, 1 statistic, 2 steps from 4 to 9>
        >>> print(table)
        history of fit: 2 numbers of train: 1 layer, 1 statistic, 2 steps from 4 to 9
        <BLANKLINE>
        block  run  stage  step  layer  name  value
            0  fit  train     4  h.0    rms       2
            0  fit  train     9  h.0    rms     4.5
        >>> table.to_pandas().pivot(index="block", columns="step", values="value").values.tolist()
        [[2.0, 4.5]]
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "run": NAMES,
        "stage": NAMES,
        "step": WHOLE,
        "layer": NAMES,
        "name": NAMES,
        "value": NUMBERS,
        "tag": NAMES,
    }
    _left_out: ClassVar[tuple[str, ...]] = ("tag",)

    def summary(self) -> str:
        """Return how many numbers there are, and what they are of, in one line."""
        if not self:
            return "history: no numbers"
        runs, stages = listed_names(row.run for row in self), listed_names((row.stage for row in self), most=4)
        of_runs = f" of {runs}" if runs not in ("", stages) else ""
        steps = {row.step for row in self}
        return (
            f"history{of_runs}: {count(len(self), 'number')} of {stages}: "
            f"{count(len({row.layer for row in self}), 'layer')}, "
            f"{count(len({row.name for row in self}), 'statistic')}, {_of_steps(steps)}"
        )

    def plot(
        self,
        name: str,
        *,
        stage: StageName | None = None,
        layers: str | Iterable[str] | None = None,
        scale: ScaleName = "linear",
        dataloader_idx: int | None = None,
        epochs: Mapping[int, int] | None = None,
        ax: Any = None,
    ) -> tuple[Figure, Axes]:
        """Draw one statistic as a heatmap, layer by step, see `mi_crow_lightning.figures.plot_heatmap`."""
        chosen: dict[str, Any] = dict(stage=stage, layers=layers, scale=scale, dataloader_idx=dataloader_idx)
        return plot_heatmap(self, name, **chosen, epochs=epochs, ax=ax)


def _of_steps(steps: set[int]) -> str:
    if len(steps) == 1:
        return f"step {min(steps):,}"
    return f"{count(len(steps), 'step')} from {min(steps):,} to {max(steps):,}"


class History:
    """The numbers of all written readings, without histograms: 8 bytes each.

    When there are more than ``size``, the stage that has most keeps every second of its steps from then on, those
    before included, later every fourth, and so on. So what is kept is spread evenly over the whole run. The last step
    of each stage is always kept.

    Args:
        size: the most numbers that are kept, but at least those of the last steps; ``None`` for all.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> history = History(size=4)
        >>> for step in range(8):
        ...     _ = history.add("train", step, [("activations_mean/h.0", Reading("h.0", "mean", 0.5 * step))])
        >>> [(row.step, row.value) for row in history.rows()]
        [(0, 0.0), (4, 2.0), (7, 3.5)]
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._keys: dict[_Keys, _SharedKeys] = {}
        self._stages: dict[str, _OfStage] = {}
        self._written = 0

    def add(
        self,
        stage: str,
        step: int,
        readings: TaggedReadings,
        blocks: Mapping[str, int | None] | None = None,
        run: str = "",
    ) -> bool:
        """Keep the numbers of one step, and return whether others were left out for it.

        Args:
            stage: their stage.
            step: their position on the x axis.
            readings: the readings with their tags.
            blocks: the blocks of the layers, where known.
            run: the run that they are of.
        """
        keys, values, blocks = [], array("d"), blocks or {}
        for tag, reading in readings:
            if not isinstance(reading.value, Histogram):
                keys.append((tag, reading.layer, reading.name, blocks.get(reading.layer)))
                values.append(reading.value)
        shared = self._keys.setdefault(key := tuple(keys), _SharedKeys(key))
        shared.uses += 1
        of_stage = self._stages.setdefault(stage, _OfStage())
        self._let_go(of_stage.add(_Step(of_stage.place_of(step, shared), self._written, run, step, shared, values)))
        self._written += 1
        return self._fit_into_size()

    def rows(self) -> HistoryTable:
        """Return every number that was kept, in the order of writing."""
        steps = [(one.order, stage, one) for stage, of_stage in self._stages.items() for one in of_stage.steps]
        return HistoryTable(
            HistoryRow(stage, one.step, tag, layer, name, value, block, one.run)
            for _, stage, one in sorted(steps, key=itemgetter(0))
            for (tag, layer, name, block), value in zip(one.shared.keys, one.values, strict=True)
        )

    def _fit_into_size(self) -> bool:
        thinned = False
        while self._size is not None and sum(one.numbers for one in self._stages.values()) > self._size:
            several = [one for one in self._stages.values() if one.can_thin()]
            if not several:
                break
            self._let_go(max(several, key=lambda one: one.numbers).thin())
            thinned = True
        return thinned

    def _let_go(self, steps: Iterable[_Step]) -> None:
        for one in steps:
            one.shared.uses -= 1
            if not one.shared.uses:
                del self._keys[one.shared.keys]


class _SharedKeys:
    """The keys of steps that have the same ones: they are kept once, and for each step only the numbers."""

    def __init__(self, keys: _Keys) -> None:
        self.keys = keys
        self.uses = 0


class _Step(NamedTuple):
    place: int  # among those of its stage
    order: int  # among all
    run: str
    step: int
    shared: _SharedKeys
    values: array[float]


class _OfStage:
    """The steps of one stage.

    Attributes:
        steps: those that are kept: every ``stride``-th of those that were added, and the last. Dataloaders that have
            their own readings make several of one place.
        numbers: how many numbers the kept ones have.
    """

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.numbers = 0
        self._stride = 1

    def place_of(self, step: int, shared: _SharedKeys) -> int:
        """Return the place that a step will have: that of the last, if another dataloader was read at it."""
        if not self.steps:
            return 0
        last = self.steps[-1]
        group = takewhile(lambda one: one.place == last.place, reversed(self.steps))
        joins = last.step == step and all(one.shared is not shared for one in group)
        return last.place if joins else last.place + 1

    def add(self, step: _Step) -> list[_Step]:
        """Keep a step, and return what is left out: those before, if they were only kept as the last."""
        gone: list[_Step] = []
        while self.steps and self.steps[-1].place != step.place and self.steps[-1].place % self._stride:
            gone.append(self.steps.pop())
        self.steps.append(step)
        self.numbers += len(step.values) - sum(len(one.values) for one in gone)
        return gone

    def can_thin(self) -> bool:
        """Return whether there is more than the last step."""
        return len(self.steps) > 1 and self.steps[0].place != self.steps[-1].place

    def thin(self) -> list[_Step]:
        """Double the stride, and return the steps that are left out; of two steps it is the first."""
        last = self.steps[-1].place
        before = [one for one in self.steps if one.place != last]
        self._stride *= 2
        several = before[0].place != before[-1].place
        kept = [one for one in before if several and one.place % self._stride == 0]
        gone = [one for one in before if one.place % self._stride] if kept else before
        self.steps = [*kept, *(one for one in self.steps if one.place == last)]
        self.numbers -= sum(len(one.values) for one in gone)
        return gone
