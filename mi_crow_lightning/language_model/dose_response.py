"""How a measure answers to the strength of a vector: steadily or not, on how many prompts, and beyond chance or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning._tables import NAMES, NUMBERS, OBJECTS, WHOLE, Table, count, legible

__all__ = ["DoseResponse", "DoseResponseTable", "Response", "dose_response"]


class Response(NamedTuple):
    """The measure with one vector.

    Attributes:
        vector: its name.
        is_random: whether it is a random one.
        strengths: ``(S,)``, rising.
        values: ``(S, N)``, at each strength that of each prompt.
    """

    vector: str
    is_random: bool
    strengths: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def span(self) -> float:
        """The mean over the prompts at the largest strength, minus that at the smallest."""
        return float(self.values[-1].mean() - self.values[0].mean())

    @property
    def monotone(self) -> bool:
        """Whether the mean over the prompts rises with each strength, or falls with each."""
        steps = np.diff(self.values.mean(1))
        return bool((steps > 0).all() or (steps < 0).all())

    @property
    def slopes(self) -> NDArray[np.float64]:
        """The slope of the line that fits each prompt's measure best, by least squares, ``(N,)``: its steerability."""
        off = self.strengths - self.strengths.mean()
        slopes: NDArray[np.float64] = off @ self.values / (off @ off)
        return slopes


class DoseResponse(NamedTuple):
    """How the measure answers to the strength of one vector, beside what random vectors do.

    Attributes:
        vector: its name.
        span: the mean measure at the largest strength, minus that at the smallest.
        monotone: whether the mean rises with each strength, or falls with each.
        anti_steerable: the share of prompts on which the measure falls as the strength rises, by the slope of the best
            line (Tan et al. 2024, arXiv:2407.12404). Meant for a vector that is to raise the measure.
        random_low: the smallest span of the random vectors; nan without any.
        random_high: the largest.
        random_anti_steerable: the share of falling prompts over all random vectors; nan without any.
        beyond_random: whether the span lies outside of theirs; ``None`` without any.
        p_value: the share of vectors, this one among the random ones, whose span is as far from 0; of 8 random
            vectors 0.11 at least. nan without any.
        n: how many prompts.
    """

    vector: str
    span: float
    monotone: bool
    anti_steerable: float
    random_low: float
    random_high: float
    random_anti_steerable: float
    beyond_random: bool | None
    p_value: float
    n: int


class DoseResponseTable(Table[DoseResponse]):
    """Dose and response by vector: a list of `DoseResponse`."""

    _columns: ClassVar[Mapping[str, str]] = {
        "vector": NAMES,
        "span": NUMBERS,
        "monotone": OBJECTS,
        "anti_steerable": NUMBERS,
        "random_low": NUMBERS,
        "random_high": NUMBERS,
        "random_anti_steerable": NUMBERS,
        "beyond_random": OBJECTS,
        "p_value": NUMBERS,
        "n": WHOLE,
    }

    def summary(self) -> str:
        """Return how many vectors do more than random ones, in one line."""
        beyond = [legible(row.vector) for row in self if row.beyond_random]
        named = f", {', '.join(beyond[:3])}{', ...' if len(beyond) > 3 else ''}" if beyond else ""
        return f"dose and response of {count(len(self), 'vector')}: {len(beyond)} beyond the random ones{named}"


def dose_response(responses: Sequence[Response]) -> DoseResponseTable:
    """Compare each vector that is not random with those that are.

    Raises:
        ValueError: there are not at least two strengths.
    """
    if any(len(one.strengths) < 2 for one in responses):
        raise ValueError("a response to the strength needs at least two strengths, e.g. sweep=[-2, 0, 2]")
    random = [one for one in responses if one.is_random]
    spans = np.array([one.span for one in random])
    falling = np.concatenate([one.slopes < 0 for one in random]).mean() if random else float("nan")
    return DoseResponseTable(
        DoseResponse(
            one.vector,
            span=one.span,
            monotone=one.monotone,
            anti_steerable=float((one.slopes < 0).mean()),
            random_low=float(spans.min()) if random else float("nan"),
            random_high=float(spans.max()) if random else float("nan"),
            random_anti_steerable=float(falling),
            beyond_random=bool(not spans.min() <= one.span <= spans.max()) if random else None,
            p_value=float((1 + (np.abs(spans) >= abs(one.span)).sum()) / (1 + len(spans))) if random else float("nan"),
            n=one.values.shape[1],
        )
        for one in responses
        if not one.is_random
    )
