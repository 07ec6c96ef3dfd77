"""Linear probes of several layers, trained batch by batch on rows that are seen once.

All layers step together, from sums over the rows of a batch: the sums of several ranks add up, so that the probes are
those of one process with all the rows. Everything is float64 and starts at zero, so no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["PARTS", "OnlineProbes"]

_MEMORY = 0.99  # what is left of the sums of features after a batch
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_CONSTANT = 1e-7  # a variance below this part of the squared mean is rounding

PARTS = ("weight", "first", "second", "moments", "squares", "steps", "widths")
"""What a checkpoint keeps of probes."""


class OnlineProbes:
    """A softmax regression at each of ``L`` layers, on standardised features, trained by Adam.

    With the features' mean ``m`` and standard deviation ``s``, a row ``x`` has ``z = (x - m) / s``, and the class
    probabilities are ``p = softmax(W z + b)``. The gradient of a batch is the mean over its rows of ``(p - y) z``, with
    ``y`` the one-hot label. ``m`` and ``s`` are those of the batches before, each batch counting 0.99 of the next; in
    the first batch, where no probability depends on them, they are its own. A constant feature has no weight.

    Args:
        layers: how many layers, ``L``.
        classes: how many classes, ``K``.
        lr: Adam's learning rate; its betas are 0.9 and 0.999, its epsilon 1e-8.
        device: where the probes are kept; they are float64, which Apple's GPUs do not have, so there it is the CPU.
    """

    def __init__(self, layers: int, classes: int, lr: float, device: torch.device) -> None:
        self.layers, self.classes, self.lr = layers, classes, lr
        self.device = torch.device("cpu") if device.type == "mps" else device
        with torch.inference_mode(False):
            self._begin(0)

    def _begin(self, width: int) -> None:
        """Start with zeros, for features up to ``D = width``; the first column is of the bias, or of counts."""
        of_classes = torch.zeros(self.layers, self.classes, 1 + width, dtype=torch.float64, device=self.device)
        self.weight, self.first, self.second = of_classes, of_classes.clone(), of_classes.clone()  # (L, K, 1 + D)
        self.moments = of_classes.clone()  # (L, K, 1 + D): how many rows of a class, and their sums
        self.squares = of_classes[:, 0, 1:].clone()  # (L, D)
        self.steps = of_classes[:, 0, 0].clone()  # (L,)
        self.widths = torch.zeros(self.layers, dtype=torch.float64)  # (L,) on the CPU: the features of each layer
        self._forget_batch()
        self._refresh()

    @property
    def width(self) -> int:
        """The most features that a layer has, ``D``."""
        return self.weight.shape[-1] - 1

    def widen(self, layer: int, width: int) -> None:
        """Make room for the features of a layer."""
        self.widths[layer] = width
        more = width - self.width
        if more <= 0:
            return
        with torch.inference_mode(False):
            for name in (*PARTS[:5], "_gradient", "_moments", "_squares"):
                setattr(self, name, nn.functional.pad(getattr(self, name), (0, more)))
            self._refresh()

    def _refresh(self) -> None:
        mean, scale = self._standard()
        self._slope = self.weight[..., 1:] * scale[:, None]  # (L, K, D)
        self._offset = self.weight[..., 0] - (self._slope * mean[:, None]).sum(-1)  # (L, K)

    def _standard(self) -> tuple[Tensor, Tensor]:
        """Return the mean of each feature, and one over its standard deviation; 0 where it is constant: ``(L, D)``."""
        sums = self.moments.sum(1)
        count = sums[:, :1].clamp(min=1e-300)
        mean = sums[:, 1:] / count
        variance = self.squares / count - mean.square()
        varies = variance > _CONSTANT * mean.square()
        return mean, torch.where(varies, variance, 1.0).rsqrt() * varies

    # A batch.

    def logits(self, layer: int, rows: Tensor) -> Tensor:
        """Return ``(N, K)`` float64 of rows ``(N, D)``, computed in the dtype of the rows, float32 or wider."""
        width = rows.shape[-1]
        slope = self._slope[layer, :, :width].to(rows.device, rows.dtype)
        return (rows @ slope.T).to(self.device, torch.float64) + self._offset[layer]

    def bias(self, layer: int) -> Tensor:
        """Return the logits of a row that is average in all features, ``(K,)``."""
        return self.weight[layer, :, 0]

    def learn(self, layer: int, rows: Tensor, label: Tensor, logits: Tensor) -> None:
        """Add rows to the sums of the batch.

        Args:
            layer: which layer.
            rows: ``(N, D)``, finite.
            label: ``(N,)``, the class of each row; -1 for a row that does not count.
            logits: ``(N, K)``, what `logits` returned.
        """
        width = rows.shape[-1]
        known = nn.functional.one_hot(label.clamp(min=0), self.classes).to(logits.dtype) * (label >= 0)[:, None]
        missed = (logits.softmax(-1) - known) * (label >= 0)[:, None]
        both = torch.stack([missed, known]).to(rows.device, rows.dtype)  # (2, N, K)
        sums = (both.mT @ rows).to(self.device, torch.float64)  # (2, K, D)
        self._gradient[layer, :, 0] += missed.sum(0)
        self._moments[layer, :, 0] += known.sum(0)
        self._gradient[layer, :, 1 : 1 + width] += sums[0]
        self._moments[layer, :, 1 : 1 + width] += sums[1]
        counts = (label >= 0).to(rows.device)[:, None]
        self._squares[layer, :width] += (rows.square() * counts).sum(0, dtype=_widest(rows)).to(self.device)

    @property
    def batch(self) -> Tensor:
        """The sums of the batch so far, flat: those of several ranks add up."""
        return torch.cat([part.flatten() for part in (self._gradient, self._moments, self._squares)])

    def _forget_batch(self) -> None:
        self._gradient, self._moments = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self._squares = torch.zeros_like(self.squares)

    def step(self, batch: Tensor | None = None) -> None:
        """Take one step at each layer that saw a row, and begin the next batch.

        Args:
            batch: the sums of all ranks, as `batch` gives them; ``None`` for those of this one.
        """
        gradient, moments, squares = self._gradient, self._moments, self._squares
        if batch is not None:
            parts = batch.to(self.device).split([gradient.numel(), moments.numel(), squares.numel()])
            gradient, moments = (part.view_as(gradient) for part in parts[:2])
            squares = parts[2].view_as(squares)
        with torch.inference_mode(False), torch.no_grad():
            self._step(gradient, moments, squares)
            self._forget_batch()
            self._refresh()

    def _step(self, gradient: Tensor, moments: Tensor, squares: Tensor) -> None:
        count = moments[..., 0].sum(1)  # (L,)
        saw, is_first = count > 0, (self.steps == 0)[:, None]
        before = self._standard()
        self.moments = torch.where(saw[:, None, None], _MEMORY * self.moments + moments, self.moments)
        self.squares = torch.where(saw[:, None], _MEMORY * self.squares + squares, self.squares)
        mean, scale = (torch.where(is_first, now, old) for now, old in zip(self._standard(), before, strict=True))
        of_bias = gradient[..., :1]  # (L, K, 1)
        of_features = (gradient[..., 1:] - of_bias * mean[:, None]) * scale[:, None]
        gradient = torch.cat([of_bias, of_features], -1) / count.clamp(min=1)[:, None, None]
        self._take_adam_step(gradient, saw)

    def _take_adam_step(self, gradient: Tensor, saw: Tensor) -> None:
        """Step as Adam does (Kingma and Ba, 2015, arXiv 1412.6980), at the layers that saw a row."""
        self.steps = self.steps + saw
        here, steps = saw[:, None, None], self.steps.clamp(min=1)[:, None, None]
        first = torch.lerp(gradient, self.first, _BETAS[0])
        second = torch.lerp(gradient.square(), self.second, _BETAS[1])
        change = first / (1 - _BETAS[0] ** steps) / ((second / (1 - _BETAS[1] ** steps)).sqrt() + _EPSILON)
        self.first = torch.where(here, first, self.first)
        self.second = torch.where(here, second, self.second)
        self.weight = torch.where(here, self.weight - self.lr * change, self.weight)

    # What was learned.

    def directions(self, positive: int) -> list[Tensor | None]:
        """Return the direction of each layer from the other classes towards one, ``(D,)`` in units of the features.

        It is the difference of that class's weights and the mean of the others', as long as the means of the classes
        are apart along it; ``None`` for a layer that did not see both.
        """
        others = [one for one in range(self.classes) if one != positive]
        slopes = self._slope[:, positive] - self._slope[:, others].mean(1)  # (L, D)
        inside, outside = self.moments[:, positive], self.moments[:, others].sum(1)  # (L, 1 + D)
        apart = inside[:, 1:] / inside[:, :1] - outside[:, 1:] / outside[:, :1]
        found = slopes * ((slopes * apart).sum(-1) / slopes.square().sum(-1))[:, None]
        rows = [row[: int(width)].cpu() for row, width in zip(found, self.widths, strict=True)]
        return [row if len(row) and torch.isfinite(row).all() and row.any() else None for row in rows]

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, on the CPU: all but the sums of a batch that is not over."""
        return {name: getattr(self, name).cpu().clone() for name in PARTS}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        with torch.inference_mode(False):
            for name in PARTS:
                device = self.device if name != "widths" else "cpu"
                setattr(self, name, state[name].to(device, torch.float64, copy=True))
            self._forget_batch()
            self._refresh()


def _widest(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
