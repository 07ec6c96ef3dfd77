"""Fine-tune the model on small sets, and measure what became of it: the shift of projections, traits and perplexity."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.lab import LAYER, NEUTRAL, direction, load, loss_of, means_of, trainer, trait_scores
from examples.science.texts import DOMAINS, LEVELS, TRAITS, pairs_of, training_set

BLOCKS = range(6, 18)  # these are trained, in full


@contextmanager
def restored(lm: mcl.LanguageModel) -> Iterator[None]:
    """Train the middle blocks alone while it lasts, and put their weights back."""
    lm.model.requires_grad_(False)
    trained = [parameter for block in BLOCKS for parameter in lm.model.model.layers[block].parameters()]
    before = [parameter.detach().clone() for parameter in trained]
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        lm.model.eval()


def fit(lm: mcl.LanguageModel, texts: Sequence[str], seed: int, *hooks: mcl.Hook) -> None:
    """Fine-tune on the texts: 8 steps of 4."""
    L.seed_everything(seed, verbose=False)
    module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1.5e-4, warmup_steps=2, max_length=32)
    lm.model.train()
    trainer(*hooks, max_epochs=1).fit(module, DataLoader(list(texts), batch_size=4))
    lm.model.eval()


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


def run(trait: str, seed: int, quick: bool) -> dict:
    """Return the base model's measures, and those after each of the trait's sets."""
    lm = load()
    ruler = Ruler(lm, seed)
    base, rows = ruler.read(), []
    for level in LEVELS[:: 3 if quick else 1]:
        for domain in DOMAINS[: 1 if quick else 2]:
            texts, plain = training_set(trait, level, domain, seed)
            of_data, of_plain = ruler.along(texts), ruler.along(plain)
            data = {name: (of_data[name] - of_plain[name]).mean().item() / ruler.spread[name] for name in TRAITS}
            with restored(lm):
                fit(lm, texts, seed)
                rows.append(
                    {"trait": trait, "level": level, "domain": domain, "seed": seed, "data": data, **ruler.read()}
                )
            rows[-1]["single"] = (of_data[trait] - of_plain[trait]).tolist()
    return {"base": base, "rows": rows, "layer": LAYER}
