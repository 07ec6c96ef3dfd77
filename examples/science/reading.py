"""What is read from activations: the means of texts, and the directions of pairs of texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.lab import LAYER, trainer


class TextMeans(mcl.Detector):
    """A detector that keeps the mean activation over the ordinary tokens of each text, by layer."""

    def __init__(self, layer: Any, tokens: str = "ordinary") -> None:
        super().__init__(layer, schedule=mcl.Schedule(stages="predict"))
        self.tokens, self.kept = mcl.Tokens.of(tokens), {}

    def observe(self, x: Tensor, ctx: mcl.HookContext) -> None:
        mask = self.tokens.mask(x, ctx)[..., None]  # (B, T, 1)
        means = torch.where(mask, x, 0).sum(1, dtype=torch.float64) / mask.sum(1)
        self.kept.setdefault(ctx.layer, []).append(means)


def means_of(lm: mcl.LanguageModel, texts: Iterable[str], *, layer: str = LAYER, tokens: str = "ordinary") -> Tensor:
    """Return the mean activation of each text, ``(N, D)`` float64."""
    detector = TextMeans(layer, tokens)
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    trainer(detector).predict(reader, DataLoader(list(texts), batch_size=16))
    (kept,) = detector.kept.values()
    return torch.cat(kept)


def direction(lm: mcl.LanguageModel, pairs: Sequence[tuple[str, str]], layers: str = LAYER) -> mcl.SteeringVector:
    """Return the difference of the class means at each layer, without massive tokens."""
    contrast = mcl.ContrastDetector(layers, tokens="ordinary", held_out=None)
    load = DataLoader(list(pairs), batch_size=8, collate_fn=mcl.PairCollator(lm.tokenize))
    trainer(contrast).predict(mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False), load)
    return contrast.vectors()
