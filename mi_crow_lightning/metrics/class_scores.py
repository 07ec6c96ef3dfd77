"""How well class probabilities fit labels, from sums of a fixed size: accuracy, loss, and the area under the ROC curve.

Scores are rounded to 1 % of themselves, on both sides of zero, so that the area follows from counts, which add up over
batches and ranks. It is the exact area of the scores rounded so: two rows that become equal count as a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ClassScores", "score_bins"]

_PER_OCTAVE = 64
_SMALLEST, _LARGEST = -10, 6  # scores from 2**-10 to 2**6 have bins; smaller ones count as 0
_SIDE = (_LARGEST - _SMALLEST) * _PER_OCTAVE
_BINS = 2 * _SIDE + 1


class ClassScores:
    """The sums, and what follows from them.

    Args:
        classes: how many classes, ``K``.
        auroc: whether the area under the ROC curve is wanted: 2049 pairs of counts, for each class if there are more
            than two.

    Attributes:
        size: how many sums there are.

    Examples:
        >>> scores = ClassScores(2)
        >>> logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
        >>> scores.values(scores.sums(logits, torch.tensor([1, 0, 0])))["accuracy"]
        0.6666666666666666
    """

    def __init__(self, classes: int, auroc: bool = True) -> None:
        self.classes = classes
        self._curves = (1 if classes == 2 else classes) if auroc else 0
        self.size = 3 + classes + self._curves * 2 * _BINS

    def sums(self, logits: Tensor, label: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the sums over rows.

        Args:
            logits: ``(N, K)`` float64.
            label: ``(N,)``, the class of each row; -1 for a row that does not count.
            bias: ``(K,)``, the logits of an average row: scores are relative to it, and finest near it.

        Returns:
            ``(size,)`` float64.
        """
        counts = (label >= 0).to(logits.dtype)
        of_class = nn.functional.one_hot(label.clamp(min=0), self.classes).to(logits.dtype) * counts[:, None]
        right = ((logits.argmax(-1) == label) * counts).sum()
        loss = -(logits.log_softmax(-1) * of_class).sum()
        parts = [torch.stack([counts.sum(), right, loss]), of_class.sum(0)]
        if self._curves:
            parts.append(self._histograms(logits, label, counts, bias))
        return torch.cat(parts)

    def _histograms(self, logits: Tensor, label: Tensor, counts: Tensor, bias: Tensor | None) -> Tensor:
        """Return how many rows outside and in each class fall into each bin, ``(curves * 2 * bins,)``."""
        scores = _log_odds(logits) - (_log_odds(bias) if bias is not None else 0.0)
        scores = scores[:, 1:] if self._curves == 1 else scores  # (N, curves)
        curve = torch.arange(self._curves, device=scores.device)
        inside = label[:, None] == (1 if self._curves == 1 else curve)
        places = (2 * curve + inside) * _BINS + score_bins(scores)
        histograms = torch.zeros(self._curves * 2 * _BINS, dtype=scores.dtype, device=scores.device)
        return histograms.index_add_(0, places.flatten(), counts[:, None].expand_as(scores).flatten())

    def values(self, sums: Tensor) -> dict[str, float]:
        """Return ``accuracy``, ``auroc``, ``majority`` and ``cross_entropy``.

        ``auroc`` is the mean over the classes, each against the rest, that have rows inside and outside; it is missing
        where no class has.
        """
        count, right, loss = sums[:3].tolist()
        if not count:
            return {}
        of_class, histograms = sums[3 : 3 + self.classes], sums[3 + self.classes :]
        found = {"accuracy": right / count, "majority": of_class.max().item() / count}
        found["cross_entropy"] = loss / count
        areas = _areas(histograms.view(-1, 2, _BINS))
        known = areas[~areas.isnan()]
        return found | ({"auroc": known.mean().item()} if len(known) else {})


def score_bins(scores: Tensor) -> Tensor:
    """Return the bin of each score, int64 from 0 to 2048: larger scores have no smaller bin.

    Examples:
        >>> score_bins(torch.tensor([-1.0, 0.0, 1.0, 1.05])).tolist()
        [383, 1024, 1665, 1669]
    """
    place = ((scores.abs().log2() - _SMALLEST) * _PER_OCTAVE).floor().clamp(-1, _SIDE - 1)
    return (_SIDE + scores.sign() * (place + 1)).long()


def _log_odds(logits: Tensor) -> Tensor:
    """Return the logarithm of ``p / (1 - p)`` for the probability of each class, ``(..., K)``."""
    if logits.shape[-1] == 2:
        return logits - logits.flip(-1)
    probability = logits.softmax(-1)
    return probability.clamp(min=1e-300).log() - (1 - probability).clamp(min=1e-16).log()


def _areas(histograms: Tensor) -> Tensor:
    """Return the area under each curve from counts outside and in a class, ``(curves, 2, bins)``; NaN if one lacks."""
    outside, inside = histograms.unbind(1)
    below = outside.cumsum(-1) - outside / 2
    return (inside * below).sum(-1) / (inside.sum(-1) * outside.sum(-1))
