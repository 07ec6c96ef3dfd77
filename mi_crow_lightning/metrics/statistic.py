"""How a statistic is declared: its sums, how they merge, and its value.

A statistic that needs only what is already summed names the groups it reads. One that needs a new sum declares the
sum too, as a function of torch operations. Every form of measuring can run that function, so the declaration is
enough; a form that has a faster way gets one line in its own table, `SUMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mi_crow_lightning._shown import shown
from mi_crow_lightning.metrics.descriptions import Description
from mi_crow_lightning.metrics.summary import Group


class Merge(NamedTuple):
    """How the sums of disjoint sets of elements become the sum of their union.

    Attributes:
        empty: the sum of no elements, which changes nothing when it is merged.
        join: from ``(R, ...)``, one sum for each set, to ``(...)``. It must not depend on the order of the sets, nor
            on how they are grouped.
    """

    empty: float
    join: Callable[[Tensor], Tensor]


def _total(stacked: Tensor) -> Tensor:
    return stacked.sum(0)


def _smallest(stacked: Tensor) -> Tensor:
    return stacked.amin(0)


def _largest(stacked: Tensor) -> Tensor:
    return stacked.amax(0)


TOTAL = Merge(0.0, _total)
"""Sums that are added."""
SMALLEST = Merge(math.inf, _smallest)
"""Minima: the smallest is kept."""
LARGEST = Merge(-math.inf, _largest)
"""Maxima: the largest is kept."""


@dataclass(frozen=True)
class Sum:
    """One number that is kept of each layer.

    Attributes:
        name: a Python name, under which `Statistic.value` finds it.
        of: from tokens ``x (N, D)`` and ``keep (N, D)`` to the sum, ``()``. ``x`` is float64, and 0 where ``keep`` is
            False: padding, positions that were not chosen, nan and infinite elements. Use torch operations
            only, do not write to ``x`` or ``keep``, and do not wait for the device: no ``.item()``, and no indexing
            by a mask. An activation comes in pieces of some tokens each; a piece that holds nothing to keep is left
            out.
        merge: how the sums of pieces, passes, batches and ranks merge.

    Raises:
        ValueError: ``name`` is not a Python name.

    Examples:
        >>> import torch
        >>> absolute = Sum("absolute", lambda x, keep: x.abs().sum())
        >>> absolute.merge.join(torch.tensor([1.0, 2.0]))
        tensor(3.)
    """

    name: str
    of: Callable[[Tensor, Tensor], Tensor]
    merge: Merge = TOTAL

    def __post_init__(self) -> None:
        _check_name("sum", self.name)
        if not callable(self.of):
            raise TypeError(f"of={shown(self.of)} must be a function from tokens and where they count to a number")
        if not isinstance(self.merge, Merge):
            raise TypeError(f"merge={shown(self.merge)} must be a Merge, such as TOTAL")


@dataclass(frozen=True)
class Statistic:
    """One number that is read of each layer.

    Attributes:
        name: a Python name; it becomes part of tags.
        value: from the sums by name, ``(...)`` float64 each, to the value, ``(...)``. The names are those of `Row`'s
            fields in lower case, such as ``count``, ``mean`` and ``m2``, and those of ``sums``. ``None`` for what
            `channel_statistics` reads.
        groups: the built-in sums that it reads; ``count``, ``nonfinite`` and ``tokens`` are always there.
        sums: the further sums that it reads.
        nan_of_nothing: whether the value is nan where no finite element was seen.
        description: what TensorBoard says of it.

    Raises:
        ValueError: ``name`` is not a Python name.

    Examples:
        >>> variance = Statistic("variance", lambda s: s["m2"] / s["count"], Group.MOMENTS)
        >>> variance.sums
        ()
    """

    name: str
    value: Callable[[Mapping[str, Tensor]], Tensor] | None
    groups: Group = Group.COUNTS
    sums: tuple[Sum, ...] = ()
    nan_of_nothing: bool = True
    description: Description | None = None

    def __post_init__(self) -> None:
        _check_name("statistic", self.name)
        if self.value is not None and not callable(self.value):
            raise TypeError(f"value={shown(self.value)} must be a function from the sums to the value")
        if not isinstance(self.groups, Group):
            raise TypeError(f"groups={shown(self.groups)} must be a Group, such as Group.MOMENTS")
        if not isinstance(self.sums, tuple) or not all(isinstance(one, Sum) for one in self.sums):
            raise TypeError(f"sums={shown(self.sums)} must be a tuple of Sum, such as sums=(Sum(...),)")
        if self.description is not None and not isinstance(self.description, Description):
            raise TypeError(f"description={shown(self.description)} must be a Description(formula, unit, shows)")


_LONGEST_NAME = 200


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"a {what} cannot be named name={shown(name)}: use letters, digits and underscores, such as 'abs_mean'"
        )
