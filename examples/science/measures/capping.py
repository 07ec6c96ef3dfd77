"""Cap how far ordinary tokens may lie along a trait: are extreme answers rarer, and is the model otherwise whole?"""

import random
from collections.abc import Sequence

from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.lab import ALWAYS, gaps, load, loss_of, trainer
from examples.science.reading import direction
from examples.science.texts import DOMAINS, TEXTS, TRAITS, filled, pairs_of

BLOCKS = "block:10-20"
SPREADS = 0.0  # the cap lies this many deviations above the mean of plain texts


def caps(lm: mcl.LanguageModel, vector: mcl.SteeringVector, texts: Sequence[str]) -> list[mcl.ClampController]:
    """Return a clamp for each block, with its bound from the projections of the texts' ordinary tokens."""
    detector = mcl.ProjectionDetector(BLOCKS, vector, tokens="ordinary")
    watch = mcl.HookCallback(detector, report="off")
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    run = trainer()
    run.callbacks.append(watch)
    run.predict(reader, DataLoader(list(texts), batch_size=8))
    read = {(row.layer, row.name): row.value for row in watch.history()}
    return [
        mcl.ClampController(
            layer.removeprefix("model."),
            one,
            high=read[layer, "mean"] + SPREADS * read[layer, "std"],
            tokens="ordinary",
            schedule=ALWAYS,
        )
        for layer, one in vector.items()
    ]


def run(seed: int, trait: str, quick: bool) -> dict:
    """Return the gaps after plain contexts and after contexts in the manner of the trait, without and with a cap."""
    lm, about = load(), TRAITS[trait]
    draw = random.Random(f"cap {seed} {trait}")
    plain = [filled(draw.choice(TEXTS["plain"]), event) for domain in DOMAINS for event in TEXTS["events"][domain]]
    draw.shuffle(plain)
    calibration, contexts = plain[:17], plain[17:]
    mannered = [positive for positive, _ in pairs_of(trait, seed, held_out=True)]
    prompts = about["prompts"][: 3 if quick else 6]
    vector = direction(lm, pairs_of(trait, seed), BLOCKS)
    hooks = {
        "none": [],
        "cap": caps(lm, vector, calibration),
        "random cap": caps(lm, vector.random_like(seed), calibration),
    }
    joined = {
        name: [f"{c} {p}" for c in of for p in prompts] for name, of in (("plain", contexts), ("trait", mannered))
    }
    found = {"plain": gaps(lm, about, joined["plain"])[0].tolist()}
    found |= {name: gaps(lm, about, joined["trait"], *of)[0].tolist() for name, of in hooks.items()}
    return {
        "trait": trait,
        "seed": seed,
        "prompts": len(prompts),
        "gaps": found,
        "loss": {n: loss_of(lm, *of) for n, of in hooks.items()},
    }
