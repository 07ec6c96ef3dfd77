"""The scores of a training set's samples along a trait's direction: ranked, thresholded, and used to leave some out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from mi_crow_lightning._arguments import is_finite, one_of, place
from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import NAMES, NUMBERS, OBJECTS, WHOLE, Table, count
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import NothingExtracted
from mi_crow_lightning.language_model.line_file import LineFile
from mi_crow_lightning.metrics.separability import separability
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["ScreenedSample", "ScreeningTable"]


class ScreenedSample(NamedTuple):
    """The score of one sample.

    Attributes:
        sample: its place in the dataset.
        score: the projection difference, ``projection - reference``; NaN if no token of the text or of the reference
            counts.
        projection: the mean projection of the text's tokens, in a pair of the completion's.
        reference: the same of what it is compared with; 0 for a text that is compared with nothing.
        text: the text, in a pair the completion.
        prompt: the prompt of a pair.
        label: 1 or 0 where the dataset says so.
    """

    sample: int
    score: float
    projection: float
    reference: float
    text: str | None = None
    prompt: str | None = None
    label: int | None = None


class ScreeningTable(Table[ScreenedSample]):
    """The samples of a dataset by score, the largest first: a list of `ScreenedSample`.

    ``to_pandas()`` has the columns ``sample``, ``score``, ``projection``, ``reference``, ``label``, ``prompt`` and
    ``text``.

    Examples:
        >>> rows = [ScreenedSample(i, float(i), float(i), 0.0, f"text {i}", label=int(i > 97)) for i in range(100)]
        >>> table = ScreeningTable(rows).ranked()
        >>> table
        <100 samples: score 0 to 99, median 49.5; auroc 1 of 2 samples labelled 1 and 98 labelled 0>
        >>> flagged = table.above(table.percentile(98))
        >>> [row.text for row in flagged]
        ['text 99', 'text 98']
        >>> len(table.kept(range(100), table.percentile(98)))
        98
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "sample": WHOLE,
        "score": NUMBERS,
        "projection": NUMBERS,
        "reference": NUMBERS,
        "label": OBJECTS,
        "prompt": OBJECTS,
        "text": NAMES,
    }
    _left_out = ("projection", "reference")

    def summary(self) -> str:
        """Return the range of the scores, in one line."""
        scores = self._scores()
        if not len(scores):
            return "screening: no samples with a score"
        middle = f"score {scores.min():.3g} to {scores.max():.3g}, median {np.median(scores):.3g}"
        ones, zeros = (sum(row.label == label for row in self if is_finite(row.score)) for label in (1, 0))
        of = f"{count(ones, 'sample')} labelled 1 and {zeros:,} labelled 0"
        labelled = f"; auroc {self.auroc():.3g} of {of}" if ones and zeros else ""
        lacking = len(self) - len(scores)
        return f"{count(len(self), 'sample')}: {middle}{labelled}" + (f"; {lacking} without a score" * bool(lacking))

    def ranked(self) -> ScreeningTable:
        """Return the samples by score, the largest first; those without one come last."""
        return ScreeningTable(
            sorted(self, key=lambda row: (-row.score if is_finite(row.score) else math.inf, row.sample))
        )

    def percentile(self, percent: float) -> float:
        """Return the score below which ``percent`` of the samples lie: of neutral texts, a threshold for others.

        Args:
            percent: 0 to 100; between two samples it is interpolated, as by numpy.

        Raises:
            ValueError: it is not such a number.
            NothingExtracted: no sample has a score.
        """
        if not is_finite(percent) or not 0 <= percent <= 100:
            raise ValueError(f"percent={shown(percent)} must be a number from 0 to 100, 99 for the 99th percentile")
        scores = self._scores()
        if not len(scores):
            raise NothingExtracted("no sample of this table has a score, so there is no percentile")
        return float(np.percentile(scores, percent))

    def above(self, threshold: float) -> ScreeningTable:
        """Return the samples whose score is above a threshold.

        Raises:
            ValueError: it is not a finite number.
        """
        if not is_finite(threshold):
            raise ValueError(f"threshold={shown(threshold)} must be a finite number, such as neutral.percentile(99)")
        return ScreeningTable(row for row in self if row.score > threshold)

    def kept(self, dataset: Dataset[Any], threshold: float) -> Subset[Any]:
        """Return the dataset without the samples whose score is above a threshold.

        A sample that has no score is kept, with a warning: ``drop_last`` left it out, or none of its tokens counts.

        Args:
            dataset: the dataset of the dataloader that was screened.
            threshold: see `above`.

        Raises:
            ValueError: the dataset has no length, or is shorter than the screened one.
        """
        flagged = {row.sample for row in self.above(threshold)}
        try:
            size = len(dataset)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(f"dataset={shown(dataset)} has no length, so samples cannot be taken by index") from None
        last = max((row.sample for row in self), default=-1)
        if last >= size:
            raise ValueError(
                f"dataset={shown(dataset)} has {size} samples, and sample {last} was screened: give the dataset "
                "of the dataloader that was screened"
            )
        screened, scored = len({row.sample for row in self}), len({row.sample for row in self if is_finite(row.score)})
        why = []
        if screened < size:
            why.append(
                f"{size - screened} were not screened: use a dataloader without drop_last and without a batch limit"
            )
        if scored < screened:
            why.append(
                f"{screened - scored} have no score, because no token of the text, completion or reference counts, or "
                "activations are not finite: look at max_length= and tokens="
            )
        if why:
            warn(
                f"{size - scored} of the dataset's {size} samples have no score, and are kept; {'; '.join(why)}",
                InexactWarning,
                stacklevel=2,
            )
        return Subset(dataset, [index for index in range(size) if index not in flagged])

    def against(self, neutral: ScreeningTable) -> ScreeningTable:
        """Return the table with the mean of neutral texts as every sample's reference.

        It is for plain texts, which have no prompt that the model could answer: their order stays the same.

        Args:
            neutral: the table of neutral texts of the same kind.

        Raises:
            TypeError: it is not such a table.
            ValueError: this table is of completions, which are compared with answers to their own prompts.
            NothingExtracted: none of its samples has a score.
        """
        if any(row.prompt is not None for row in self):
            raise ValueError(
                "these samples are completions, and their scores compare each with an answer to its own prompt: use "
                "them as they are, with a threshold such as neutral.percentile(99)"
            )
        if not isinstance(neutral, ScreeningTable):
            raise TypeError(f"neutral={shown(neutral)} must be the ScreeningTable of neutral texts")
        found = [row.projection for row in neutral if is_finite(row.projection)]
        if not found:
            raise NothingExtracted("no sample of neutral= has a projection")
        mean = sum(found) / len(found)
        return ScreeningTable(row._replace(reference=mean, score=row.projection - mean) for row in self)

    def auroc(self) -> float:
        """Return the probability that a sample with label 1 has a higher score than one with label 0.

        Raises:
            ValueError: there are no samples with a score and label 1, or none with a score and label 0.
        """
        rows = [row for row in self if row.label is not None and is_finite(row.score)]
        if not rows:
            raise ValueError(f"none of the {len(self)} samples has a label and a score: put 'label', 1 or 0, into each")
        scores = torch.tensor([row.score for row in rows], dtype=torch.float64)
        return separability("the samples", scores, torch.tensor([row.label for row in rows], dtype=torch.long)).auroc

    def save(self, path: str | Path, mode: Literal["x", "w"] = "x") -> None:
        """Write one line of JSON for each sample, in the table's order.

        Args:
            path: the file; its folder is created.
            mode: ``"x"`` refuses a file that exists, ``"w"`` overwrites it.

        Raises:
            FileExistsError: the file exists, and the mode is ``"x"``.
            OSError: it cannot be written.
        """
        file, mode = place("path", path).expanduser(), one_of("mode", mode, ("x", "w"))
        try:
            lines = LineFile(file, mode)
        except FileExistsError:
            raise FileExistsError(f"{shown(str(file))} exists already: save(..., mode='w') overwrites it") from None
        try:
            lines.append([json.dumps(_in_json(row), ensure_ascii=False) for row in self])
        finally:
            lines.close()

    def _scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([row.score for row in self if is_finite(row.score)], dtype=np.float64)


def joined(parts: Iterable[Iterable[ScreenedSample]]) -> ScreeningTable:
    """Return the samples of all ranks, ranked; one that ranks repeat, to have equally many, counts once.

    Raises:
        ValueError: two different samples say that they have the same place in the dataset.
    """
    rows: dict[int, ScreenedSample] = {}
    for row in (row for part in parts for row in part):
        first = rows.setdefault(row.sample, row)
        if (first.text, first.prompt) != (row.text, row.prompt):
            raise ValueError(
                f"two samples have the 'index' {row.sample}, and different texts: {shown(first.text)} and "
                f"{shown(row.text)}. Give each its place in the dataset, or none to any and a dataloader that does not "
                "shuffle"
            )
    return ScreeningTable(rows.values()).ranked()


def _in_json(row: ScreenedSample) -> dict[str, Any]:
    """Return the fields of a row; JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row._asdict().items()
    }
