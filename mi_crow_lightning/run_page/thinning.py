"""Leaving steps out of answers, evenly, where a page would become too large."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning.run_page.answers import Answer

__all__ = ["steps_of", "thinned"]


def thinned(answer: Answer, every: int) -> Answer:
    """Return an answer with every n-th of its steps, the first and the last among them.

    Two runs that logged the same steps keep the same ones, so that they can still be subtracted.

    Args:
        answer: one with arrays; its arrays of steps, times, values and counts have a step for each row.
        every: 1 for all steps, 2 for every second one, and so on.
    """
    if answer.arrays is None or every == 1:
        return answer
    arrays = dict(answer.arrays)
    for name, steps in answer.arrays.items():
        if name.startswith("steps"):
            part = name.removeprefix("steps")
            kept = _kept(len(steps), every)
            for of_step in ("steps", "times", "values", "counts"):
                if of_step + part in arrays:
                    arrays[of_step + part] = arrays[of_step + part][kept]
    return answer._replace(arrays=arrays)


def steps_of(answer: Answer) -> int:
    """Return the most steps of a series in an answer."""
    return max((len(steps) for name, steps in (answer.arrays or {}).items() if name.startswith("steps")), default=0)


def _kept(count: int, every: int) -> NDArray[Any]:
    return np.union1d(np.arange(0, count, every), [count - 1] if count else []).astype(np.intp)
