"""A few activations are a thousand times as large as the others: what does the model lose without them?"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.lab import ALWAYS, load, loss_of, trainer
from examples.science.texts import NEUTRAL

LEAST, TIMES = 100.0, 1000.0


def where_massive(x: Tensor) -> Tensor:
    """Return which activations are massive: above 100, and 1000 times the median of their size."""
    size = x.abs()
    return (size > LEAST) & (size >= TIMES * size.median())


def captured(lm: mcl.LanguageModel, texts: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return the outputs of all blocks, text by text, so that there is no padding: ``(1, T, D)`` each."""
    detector = mcl.LayerActivationDetector("block:*", keep="all", schedule=mcl.Schedule(stages="predict"))
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    trainer(detector).predict(reader, DataLoader(list(texts), batch_size=1))
    return detector.get_captured()


def replaced(layer: str, value: Callable[[Tensor], Tensor]) -> mcl.FunctionController:
    """Return a controller that puts another value where activations are massive."""
    return mcl.FunctionController(layer, lambda x: torch.where(where_massive(x), value(x), x), schedule=ALWAYS)


def others(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function that zeroes as many activations that are not massive, drawn by chance."""
    generator = torch.Generator().manual_seed(seed)

    def zeroed(x: Tensor) -> Tensor:
        massive = where_massive(x)
        chance = torch.rand(x.shape, generator=generator).masked_fill(massive, 0)
        count = int(massive.sum())
        return x if not count else torch.where(chance >= chance.flatten().topk(count).values[-1], 0.0, x)

    return zeroed


def run(seed: int, quick: bool) -> dict:
    """Return where massive activations are, and the loss of each text with and without them."""
    lm = load()
    texts = random.Random(f"massive {seed}").sample(NEUTRAL, k=8 if quick else 16)
    found = [
        {"block": block, "text": i, "token": token, "channel": channel, "value": x[0, token, channel].item()}
        for block, of_layer in enumerate(captured(lm, texts).values())
        for i, x in enumerate(of_layer)
        for _, token, channel in where_massive(x).nonzero().tolist()
    ]
    places = {(one["token"], one["channel"]) for one in found}
    first = next(b for b in range(30) if len({o["text"] for o in found if o["block"] == b}) == len(texts))
    means = torch.zeros(lm.model.config.hidden_size)  # by channel
    for channel in {one["channel"] for one in found}:
        means[channel] = np.mean([o["value"] for o in found if (o["block"], o["channel"]) == (first, channel)] or 0)
    layer = f"block:{first}"
    plans = {
        "none": [],
        "zeroed": [replaced(layer, torch.zeros_like)],
        "their mean": [replaced(layer, lambda x: means)],
    }
    plans["others zeroed"] = [mcl.FunctionController(layer, others(seed), schedule=ALWAYS)]
    losses = {name: [loss_of(lm, *hooks, texts=[text]) for text in texts] for name, hooks in plans.items()}
    return {"seed": seed, "massive": found, "places": sorted(places), "first": first, "losses": losses}
