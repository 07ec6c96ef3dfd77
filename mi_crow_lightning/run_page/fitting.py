"""Putting answers into an archive that is not larger than it may be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from mi_crow_lightning.run_page.answers import Answer
from mi_crow_lightning.run_page.archive import Archive
from mi_crow_lightning.run_page.thinning import steps_of, thinned

__all__ = ["Fitted", "fitted"]

_FIRST = 50  # steps that histograms keep before the statistics lose any
_LEAST = 10  # steps that all keep
_HARDLY = 1.1  # times the least size that there is
_ROUND = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
_EVERY = (*_ROUND, *(100 * number for number in _ROUND), *(10_000 * number for number in _ROUND))


class Fitted(NamedTuple):
    """An archive, and which steps it holds: every n-th of the statistics, and every n-th of the histograms."""

    archive: Archive
    statistics: int
    histograms: int


def fitted(answers: Sequence[Answer], size: Callable[[Fitted], int], limit: float) -> Fitted:
    """Return an archive of the answers, without some of the steps if it would be too large.

    Histograms, by far the largest part, lose steps first, and the statistics where few histograms are left. An archive
    that is too large with ten steps, because of long texts, keeps those that hardly count beside them.

    Args:
        answers: all answers.
        size: the size of a page with an archive.
        limit: the size that it may have.
    """
    drawn = [answer for answer in answers if answer.route == "histogram"]
    others = [answer for answer in answers if answer.route != "histogram"]

    @lru_cache(maxsize=4)
    def without_histograms(every: int) -> Archive:
        return Archive().with_all(thinned(answer, every) for answer in others)

    @lru_cache(maxsize=4)
    def made(choice: tuple[int, int]) -> Fitted:
        statistics, histograms = choice
        more = (thinned(answer, histograms) for answer in drawn)
        return Fitted(without_histograms(statistics).with_all(more), statistics, histograms)

    choices = _choices(max(map(steps_of, others), default=0), max(map(steps_of, drawn), default=0))
    if size(made(choices[0])) <= limit:
        return made(choices[0])
    least = size(made(choices[-1]))
    enough = limit if least <= limit else _HARDLY * least
    return made(choices[bisect_left(choices, True, key=lambda choice: size(made(choice)) <= enough)])


def _choices(steps: int, histograms: int) -> list[tuple[int, int]]:
    """Return which steps to keep, of statistics and of histograms, beginning with all."""
    of_histograms = [every for every in _EVERY if every == 1 or histograms >= every * _FIRST]
    of_statistics = [every for every in _EVERY if every > 1 and steps >= every * _LEAST]
    last = of_histograms[-1]
    return [*((1, every) for every in of_histograms), *((every, max(every, last)) for every in of_statistics)]
