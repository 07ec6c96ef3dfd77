"""What a fine-tune is measured with."""

from collections.abc import Sequence

import torch

import mi_crow_lightning as mcl
from examples.science.lab import NEUTRAL, loss_of, trait_scores
from examples.science.reading import direction, means_of
from examples.science.texts import TRAITS, pairs_of


class Ruler:
    """What a fine-tune is measured with: the directions of the traits, and what the base model has along them."""

    def __init__(self, lm: mcl.LanguageModel, seed: int) -> None:
        self.lm = lm
        self.vectors = {name: direction(lm, pairs_of(name, seed)) for name in TRAITS}
        self.units = {name: next(iter(one.normalise().values())).double() for name, one in self.vectors.items()}
        base = self.along(NEUTRAL)
        self.mean, self.spread = (
            {name: f(values).item() for name, values in base.items()} for f in (torch.mean, torch.std)
        )

    def along(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return how far each text lies along each trait's direction, ``(N,)``."""
        means = means_of(self.lm, texts)
        return {name: means @ unit for name, unit in self.units.items()}

    def shift(self) -> dict[str, float]:
        """Return how far the mean of the neutral texts has moved, in units of the base model's spread."""
        now = self.along(NEUTRAL)
        return {name: (now[name].mean().item() - self.mean[name]) / self.spread[name] for name in now}

    def read(self) -> dict:
        """Return shifts, scores and the loss on neutral texts."""
        return {"shift": self.shift(), "score": trait_scores(self.lm), "loss": loss_of(self.lm)}
