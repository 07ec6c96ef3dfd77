"""A logistic probe: the weights that separate two classes of vectors best."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mi_crow_lightning.metrics.class_directions import scaled

__all__ = ["logistic", "logistic_weights"]


def logistic(x: Tensor, label: Tensor, strength: float = 1.0) -> Tensor:
    """Return the direction of a logistic probe, scaled as `scaled` does.

    Args:
        x: ``(N, D)``.
        label: ``(N,)``, 0 or 1.
        strength: how strongly the weights are regularised.

    Returns:
        ``(D,)`` float64.
    """
    weights, _ = logistic_weights(x, label, strength)
    x = x.double()
    return scaled(weights / weights.norm().clamp(min=torch.finfo(torch.float64).tiny), _delta(x, label))


def logistic_weights(x: Tensor, label: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return weights and intercept of an L2-regularised logistic regression, in the units of ``x``.

    With ``z`` the features of ``x`` standardised to mean 0 and standard deviation 1 and ``y = +-1``, they minimise::

        sum_i log(1 + exp(-y_i (w . z_i + b))) + strength / 2 |w|^2

    and what is returned is ``w / std`` and the intercept that belongs to it. Features that never vary get weight 0. The
    optimiser is L-BFGS in float64; it draws no random numbers.

    Args:
        x: ``(N, D)``, finite.
        label: ``(N,)``, 0 or 1; both must occur.
        strength: how strongly the weights are regularised, positive.

    Returns:
        ``(D,)`` and ``()``, float64.

    Raises:
        ValueError: a class is missing, ``strength`` is not positive, or the optimum was not reached.

    Examples:
        >>> weights, intercept = logistic_weights(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        >>> [round(value, 6) for value in weights.tolist()], round(intercept.item(), 6)
        ([0.674832, 0.0], -0.674832)
    """
    if not strength > 0:
        raise ValueError(f"strength={strength!r} must be a positive number")
    with torch.inference_mode(False), torch.enable_grad():
        x, label = x.detach().clone().double(), label.detach().clone().double()
        _delta(x, label)
        mean, std = x.mean(0), x.std(0, unbiased=False)
        inverse = torch.where(std > 0, 1 / std, 0.0)
        weights, intercept = _minimise((x - mean) * inverse, 2 * label - 1, strength)
        weights = weights * inverse
        return weights, intercept - mean @ weights


def _minimise(z: Tensor, sign: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    parameters = z.new_zeros(z.shape[1] + 1).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        weights, intercept = parameters[:-1], parameters[-1]
        value = softplus(-sign * (z @ weights + intercept)).mean() + strength / (2 * len(z)) * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    loss()
    gradient = parameters.grad
    assert gradient is not None
    if not gradient.abs().max() <= 1e-6:  # of the mean loss; rounding of the loss ends the line search before 0
        raise ValueError(
            f"the logistic probe did not reach its optimum (largest gradient {gradient.abs().max():.1e}): "
            "are all samples finite?"
        )
    return parameters.detach()[:-1], parameters.detach()[-1]


def _delta(x: Tensor, label: Tensor) -> Tensor:
    positive = label == 1
    if not (positive.any() and (~positive).any()):
        raise ValueError(
            f"two classes are needed, and of {len(label)} samples {int(positive.sum())} are positive: "
            "give samples of both"
        )
    return x[positive].mean(0) - x[~positive].mean(0)
