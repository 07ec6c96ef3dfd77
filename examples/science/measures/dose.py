"""Steer with several strengths: does the trait follow them, and further than with random vectors of equal norm?"""

import mi_crow_lightning as mcl
from examples.science.lab import LAYER, gaps, load
from examples.science.reading import direction
from examples.science.texts import TRAITS, pairs_of

STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
RANDOM = 8


def run(seed: int, quick: bool) -> dict:
    """Return the gaps over strengths, of each trait's vector and of random ones, ``(S, prompts)`` each."""
    lm, found = load(), {}
    for trait, about in TRAITS.items():
        vector = direction(lm, pairs_of(trait, seed))
        steer = mcl.SteeringController(LAYER, vector, strength="batch")
        curves = []
        for one in (vector, *(vector.random_like(RANDOM * seed + i) for i in range(RANDOM))):
            steer.vector = one
            curves.append(gaps(lm, about, about["prompts"], steer, sweep=STRENGTHS).tolist())
        found[trait] = {"vector": curves[0], "random": curves[1:]}
    return {"seed": seed, "strengths": list(STRENGTHS), "traits": found}
