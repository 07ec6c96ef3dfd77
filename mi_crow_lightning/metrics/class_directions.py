"""One direction from two classes of vectors: by the difference of means, by principal component, or by a probe.

All three have the same scale. With ``u`` a unit vector and ``delta`` the difference of the class means, positive minus
negative, the direction is ``u (u . delta)``: added once, it moves the mean of the negative class along ``u`` to the
mean of the positive class. It does not depend on the sign of ``u``, and points to the positive class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning.metrics.class_moments import ClassMoments

__all__ = ["mean_difference", "principal_difference", "scaled"]


def mean_difference(moments: ClassMoments) -> Tensor:
    """Return the mean of the positive class minus the mean of the negative class, ``(D,)`` float64.

    Raises:
        ValueError: a class has no vectors.

    Examples:
        >>> moments = ClassMoments(2)
        >>> _ = moments.update(torch.tensor([[1.0, 0.0], [4.0, 2.0]]), torch.tensor([0, 1]))
        >>> mean_difference(moments)
        tensor([3., 2.], dtype=torch.float64)
    """
    negative, positive = moments.of("negative"), moments.of("positive")
    if not (negative.n and positive.n):
        raise ValueError(
            f"two classes are needed, and there are {negative.n} negative, {positive.n} positive: give vectors of both"
        )
    return positive.mean - negative.mean


def principal_difference(moments: ClassMoments) -> Tensor:
    """Return the first principal component of the paired differences, scaled as `scaled` does, ``(D,)`` float64.

    Each difference counts with both signs, so their mean is not subtracted: the component is the first eigenvector of
    ``E[d d^T]`` (Zou et al. 2023, "Representation Engineering", arXiv:2310.01405).

    Raises:
        ValueError: there are no pairs, or a vector is in no pair; or the scatter of the differences was not kept.

    Examples:
        >>> moments = ClassMoments(2, ["difference"])
        >>> x = torch.tensor([[0.0, 0.0], [4.0, 1.0], [0.0, 0.0], [4.0, -1.0]])
        >>> _ = moments.update(x, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
        >>> principal_difference(moments).round(decimals=9)
        tensor([4., 0.], dtype=torch.float64)
    """
    counts = [moments.of(group).n for group in ("negative", "positive", "difference")]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f"the principal component needs pairs: of {counts[0]} negative and {counts[1]} positive vectors "
            f"{counts[2]} of each are in one; both rows of a pair must be in one batch, with the same number"
        )
    difference = moments.of("difference")
    if difference.covariance is None:
        raise ValueError(
            "the principal component needs the scatter of 'difference', which was not kept: "
            "covariance=['difference'] keeps it"
        )
    mean = difference.mean
    around_zero = difference.covariance * (difference.n - 1) / difference.n + mean.outer(mean)
    return scaled(_first_eigenvector(around_zero), mean)


def scaled(unit: Tensor, delta: Tensor) -> Tensor:
    """Scale a unit vector ``(D,)`` by the length along it of ``delta`` (D,), the difference of the class means.

    Examples:
        >>> scaled(torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([3., -0.])
    """
    return unit * torch.dot(unit, delta)


def _first_eigenvector(matrix: Tensor, block: int = 16, tolerance: float = 1e-13) -> Tensor:
    """Return the unit eigenvector of the largest eigenvalue of a symmetric, positive matrix ``(D, D)``.

    Subspace iteration takes a few products with the matrix, where all eigenvectors would take ``D**3``. The start is
    random, from its own generator.
    """
    width = len(matrix)
    start = torch.randn(width, min(block, width), generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis = start.to(matrix.device)
    for _ in range(300):
        basis = torch.linalg.qr(matrix @ basis).Q
        product = matrix @ basis
        values, inner = torch.linalg.eigh(basis.T @ product)
        unit: Tensor = basis @ inner[:, -1]
        if (product @ inner[:, -1] - values[-1] * unit).norm() <= tolerance * values[-1]:
            return unit
    eigenvectors: Tensor = torch.linalg.eigh(matrix).eigenvectors  # many nearly equal eigenvalues
    return eigenvectors[:, -1]
