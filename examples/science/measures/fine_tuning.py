"""Fine-tune the model on small sets, and measure what became of it: the shift of projections, traits and perplexity."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.lab import LAYER, load, trainer
from examples.science.measures.ruler import Ruler
from examples.science.texts import DOMAINS, LEVELS, TRAITS, training_set

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
        gc.collect()  # the optimizer is in a circle with its Trainer, and would stay for some fits


def fit(lm: mcl.LanguageModel, texts: Sequence[str], seed: int, *hooks: mcl.Hook) -> None:
    """Fine-tune on the texts: 8 steps of 4."""
    L.seed_everything(seed, verbose=False)
    module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1.5e-4, warmup_steps=2, max_length=32)
    lm.model.train()
    trainer(*hooks, max_epochs=1).fit(module, DataLoader(list(texts), batch_size=4))
    lm.model.eval()


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
