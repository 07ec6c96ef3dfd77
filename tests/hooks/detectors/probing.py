"""A tiny model with labelled batches, and a probe trained by numpy in float64 on what plain hooks saw."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from tests.models import Module, token_data

LAYERS = [f"model.model.layers.{i}" for i in range(4)]


class Labelled(Module):
    """Trains on tokens; the batch has labels that the model does not get."""

    def loss(self, batch: Any) -> Tensor:
        return super().loss({name: batch[name] for name in ("input_ids", "attention_mask")})


def labelled_data(count: int = 20, classes: int = 2) -> list[dict[str, Tensor]]:
    """Texts labelled by their last token, and tokens by their ID; every seventh token is not labelled."""
    rows = token_data(count)
    for i, row in enumerate(rows):
        row["label"] = row["input_ids"][-1] % classes
        row["token_label"] = torch.where((row["input_ids"] + i) % 7 == 0, -100, row["input_ids"] % classes)
    return rows


class Capture(pl.Callback):
    """Keeps the activations of each batch by plain hooks."""

    def __init__(self, layers: list[str] = LAYERS) -> None:
        self.layers, self.handles = layers, []
        self.batches: dict[str, list[tuple[dict[str, Tensor], dict[str, Tensor]]]] = {"train": [], "validate": []}

    def _begin(self, module: Any, batch: Any, stage: str) -> None:
        seen: dict[str, Tensor] = {}
        self.batches[stage].append((batch, seen))

        def note(layer: str) -> Any:
            return lambda _, args, output: seen.update({layer: output.detach().clone()})

        self.handles = [module.get_submodule(layer).register_forward_hook(note(layer)) for layer in self.layers]

    def _end(self, *_: Any) -> None:
        while self.handles:
            self.handles.pop().remove()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        self._begin(module, batch, "train")

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        self._begin(module, batch, "validate")

    on_train_batch_end = on_validation_batch_end = _end


class ByNumpy:
    """A probe of one layer."""

    def __init__(self, classes: int, lr: float) -> None:
        self.classes, self.lr, self.t = classes, lr, 0
        self.w = self.count = None

    def logits(self, x: np.ndarray) -> np.ndarray:
        if self.w is None:
            return np.zeros((len(x), self.classes))
        return ((x - self.mean) / self.std) @ self.w.T + self.b

    def learn(self, x: np.ndarray, y: np.ndarray) -> None:
        if not len(x):
            return
        missed = np.exp(self.logits(x))
        missed = missed / missed.sum(1, keepdims=True) - np.eye(self.classes)[y]
        if self.w is None:
            self.w, self.b = np.zeros((self.classes, x.shape[1])), np.zeros(self.classes)
            self.sums = [0.0, np.zeros(x.shape[1]), np.zeros(x.shape[1])]
            self.adam = [np.zeros((self.classes, 1 + x.shape[1])) for _ in range(2)]
            self._standardise(x)
            mean, std = self.mean, self.std
        else:
            mean, std = self.mean, self.std
            self._standardise(x)
        z = np.concatenate([np.ones((len(x), 1)), (x - mean) / std], 1)
        gradient = missed.T @ z / len(x)
        self.t += 1
        self.adam[0] = 0.9 * self.adam[0] + 0.1 * gradient
        self.adam[1] = 0.999 * self.adam[1] + 0.001 * gradient**2
        change = (self.adam[0] / (1 - 0.9**self.t)) / (np.sqrt(self.adam[1] / (1 - 0.999**self.t)) + 1e-8)
        self.b, self.w = self.b - self.lr * change[:, 0], self.w - self.lr * change[:, 1:]

    def _standardise(self, x: np.ndarray) -> None:
        for i, batch in enumerate((len(x), x.sum(0), (x**2).sum(0))):
            self.sums[i] = 0.99 * self.sums[i] + batch
        self.mean = self.sums[1] / self.sums[0]
        self.std = np.sqrt(self.sums[2] / self.sums[0] - self.mean**2)


def rows_of(batch: dict[str, Tensor], x: Tensor, per: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a probe sees, and their labels."""
    mask = batch["attention_mask"].bool()
    if per == "sample":
        rows = np.stack([one[real].double().numpy().mean(0) for one, real in zip(x, mask, strict=True)])
        return rows, batch["label"].numpy()
    kept = mask & (batch["token_label"] != -100)
    return x[kept].double().numpy(), batch["token_label"][kept].numpy()


def auroc(logits: np.ndarray, y: np.ndarray, bias: np.ndarray) -> float:
    """The mean over classes of the share of pairs that are in order, ties half, of scores rounded to 1 %."""
    classes = logits.shape[1]
    scores = log_odds(logits) - log_odds(bias[None])
    rounded = np.floor(64 * np.log2(np.maximum(np.abs(scores), 1e-30)))
    scores = np.where(rounded < -640, 0.0, np.sign(scores) * (641 + rounded))
    areas = []
    for k in range(1, 2) if classes == 2 else range(classes):
        inside, outside = scores[y == k, k], scores[y != k, k]
        if len(inside) and len(outside):
            order = inside[:, None] - outside[None]
            areas.append(((order > 0) + 0.5 * (order == 0)).mean())
    return float(np.mean(areas))


def log_odds(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    return np.log(p) - np.log(1 - p)
