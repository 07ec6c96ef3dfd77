"""Do pairs whose differences agree give directions that steer, and is that true among sound concepts alone?"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import mi_crow_lightning as mcl
from examples.science.lab import LAYER, gaps, load
from examples.science.reading import means_of
from examples.science.texts import TEXTS, TRAITS, filled, pairs_of

CONCEPTS: dict[str, dict] = {**TRAITS, **TEXTS["concepts"]}
SWAPPED, ALIKE = ("joy", "hot", "loud"), ("rich", "big", "danger")  # broken: labels by chance, or texts without it
NORM, RANDOM = 15.0, 8


def pairs_for(name: str, seed: int) -> list[tuple[str, str]]:
    """Return the pairs of texts of a concept."""
    if name in TRAITS:
        return pairs_of(name, seed)
    draw = random.Random(f"concept {name} {seed}")
    return [
        (filled(positive, event), filled(negative, event))
        for positive, negative in CONCEPTS[name]["pairs"]
        for event in draw.sample(TEXTS["events"]["extract"], k=4)
    ]


def plain_pairs(name: str, seed: int) -> list[tuple[str, str]]:
    """Return pairs of plain texts, which differ in nothing that the concept is about."""
    draw = random.Random(f"plain {name} {seed}")
    events = [event for event in TEXTS["events"]["extract"] for _ in range(2)]
    return [tuple(filled(template, event) for template in draw.sample(TEXTS["plain"], k=2)) for event in events]


def differences(lm: mcl.LanguageModel, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Return the differences of the pairs' mean activations, ``(N, D)``."""
    positive, negative = (means_of(lm, texts) for texts in zip(*pairs, strict=True))
    return positive - negative


def coherence(rows: Tensor) -> float:
    """Return the mean cosine of two different rows, from their sum: no ``(N, N)`` matrix."""
    unit, n = torch.nn.functional.normalize(rows, dim=1), len(rows)
    return ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item()


def effect(lm: mcl.LanguageModel, about: dict, vector: Tensor, seed: int) -> float:
    """Return how far the vector moves the words, in units of what random vectors of equal norm do."""
    steer = mcl.SteeringController(LAYER, vector, strength="batch")
    scaled = mcl.SteeringVector({LAYER: vector * (NORM / vector.norm())})
    moved = []
    for one in (scaled, *(scaled.random_like(RANDOM * seed + i) for i in range(RANDOM))):
        steer.vector = one[LAYER]
        least, most = gaps(lm, about, about["prompts"][:6], steer, sweep=(-1.0, 1.0)).mean(1).tolist()
        moved.append((most - least) / 2)
    return moved[0] / float(np.sqrt(np.mean(np.square(moved[1:]))))


def run(seed: int, quick: bool) -> dict:
    """Return coherence and effect of each concept, and of the broken ones."""
    lm, rows = load(), []
    for name, about in CONCEPTS.items():
        sound = differences(lm, pairs_for(name, seed))
        tried = {"sound": sound}
        if name in SWAPPED:
            signs = torch.tensor(random.Random(f"signs {name} {seed}").sample([1.0, -1.0] * len(sound), k=len(sound)))
            tried["labels by chance"] = sound * signs[:, None]
        if name in ALIKE:
            tried["no difference"] = differences(lm, plain_pairs(name, seed))
        for kind, rows_of in tried.items():
            moved = effect(lm, about, rows_of.mean(0), seed)
            rows.append({"concept": name, "kind": kind, "seed": seed, "coherence": coherence(rows_of), "effect": moved})
    return {"rows": rows}
