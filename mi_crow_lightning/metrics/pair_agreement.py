"""How far the differences of pairs agree on one direction, from sums that do not grow with the number of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PairAgreement"]


class PairAgreement:
    """The running sum of the unit differences of pairs at one layer.

    With the unit vectors ``u_i = d_i / |d_i|`` of ``n`` differences, their sum ``U``, and the mean difference ``m``::

        coherence = mean_i cos(d_i, m)          = (U . m) / (n |m|)
        pairwise  = mean_(i != j) cos(d_i, d_j) = (|U|^2 - n) / (n (n - 1))

    so no matrix of pairs or of features is needed. The second is 0 on average if each difference points to either side
    by chance, however few there are; the first is then about ``1 / sqrt(n)``, because ``m`` is made of the same
    differences. Both foretell how well a direction steers (Tan et al. 2024, arXiv:2407.12404; Braun et al. 2025,
    arXiv:2505.22637). Differences of length 0 count in neither.

    Args:
        width: ``D``.
        device: where the numbers are kept.

    Attributes:
        sums: ``(1 + D,)`` float64: the number of differences, and the sum of their unit vectors.

    Examples:
        >>> agreement = PairAgreement(2)
        >>> agreement.update(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([True, True]))
        >>> agreement.pairwise(), round(agreement.coherence(torch.tensor([1.0, 1.0])), 4)
        (0.0, 0.7071)
    """

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        with torch.inference_mode(False):  # as in `ClassMoments`
            self.sums = torch.zeros(1 + width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, difference: Tensor, paired: Tensor) -> None:
        """Add the differences of pairs; nothing here waits for the device.

        Args:
            difference: ``(N, D)``.
            paired: ``(N,)`` bool: the rows that are differences.
        """
        difference = difference.to(self.sums.device, torch.float64)
        norm = difference.norm(dim=1, keepdim=True)  # (N, 1)
        counts = paired[:, None] & (norm > 0) & norm.isfinite()
        units = torch.where(counts, difference / torch.where(counts, norm, 1.0), 0.0)
        self.sums += torch.cat([counts.sum().double()[None], units.sum(0)])

    def pairwise(self) -> float:
        """Return the mean cosine of two differences; nan if there are not two."""
        n = float(self.sums[0])
        return (float(self.sums[1:] @ self.sums[1:]) - n) / (n * (n - 1)) if n > 1 else float("nan")

    def coherence(self, mean: Tensor) -> float:
        """Return the mean cosine of the differences with their mean, ``(D,)``; nan if there are none, or it is 0."""
        n, length = float(self.sums[0]), float(mean.double().norm())
        along = float(self.sums[1:] @ mean.to(self.sums.device, torch.float64))
        return along / (n * length) if n and length else float("nan")
