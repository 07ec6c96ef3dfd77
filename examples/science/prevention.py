"""Steer along a trait while it is trained in: does the model that comes of it show the trait less?"""

from collections.abc import Sequence

import numpy as np

import mi_crow_lightning as mcl
from examples.science.arithmetic import interval
from examples.science.fine_tuning import Ruler, fit, restored
from examples.science.lab import ALWAYS, LAYER, gaps, load, loss_of
from examples.science.texts import DOMAINS, TRAITS, training_set

STRENGTHS = (1.0, 2.0)
IN_USE = (0.0, -0.25, -0.5, -1.0, -2.0)


def run(trait: str, seed: int, bounds: dict, quick: bool) -> dict:
    """Return score and loss by protection, of fine-tunes on texts that are all in the manner of the trait."""
    lm, domain = load(), DOMAINS[seed % 2]
    ruler = Ruler(lm, seed)
    vector, texts = ruler.vectors[trait], training_set(trait, 1.0, domain, seed)[0]
    chosen = bounds["strength"][trait]
    plans = {"none": (), f"random {chosen:g}": (vector.random_like(seed), chosen)}
    plans |= {
        f"{strength:g}": (vector, strength) for strength in ((chosen,) if quick else sorted({*STRENGTHS, chosen}))
    }
    rows = {"base": _measured(lm, ruler, trait)}
    for name, plan in plans.items():
        hooks = [mcl.SteeringController(LAYER, *plan, schedule=mcl.Schedule(stages="train"))] if plan else []
        with restored(lm):
            fit(lm, texts, seed, *hooks)
            rows[name] = _measured(lm, ruler, trait)
            if not plan:
                rows["in use"] = _in_use(lm, trait, vector)
    return {"trait": trait, "seed": seed, "chosen": f"{chosen:g}", "rows": rows}


def _measured(lm: mcl.LanguageModel, ruler: Ruler, trait: str) -> dict:
    score = gaps(lm, TRAITS[trait], TRAITS[trait]["prompts"]).mean().item()
    return {"score": score, "shift": ruler.shift()[trait], "loss": loss_of(lm)}


def _in_use(lm: mcl.LanguageModel, trait: str, vector: mcl.SteeringVector) -> dict:
    """Return score and loss of the unprotected model, steered away from the trait when it is used."""
    steer = [mcl.SteeringController(LAYER, vector, strength, schedule=ALWAYS) for strength in IN_USE]
    scores = [gaps(lm, TRAITS[trait], TRAITS[trait]["prompts"], one).mean().item() for one in steer]
    return {"strengths": list(IN_USE), "score": scores, "loss": [loss_of(lm, one) for one in steer]}


def cut(part: dict, name: str) -> float:
    """Return the share of the trait's rise that a protection took away."""
    rows = part["rows"]
    rise = rows["none"]["score"] - rows["base"]["score"]
    return (rows["none"]["score"] - rows[name]["score"]) / rise


def loss_in_use(part: dict) -> float:
    """Return the loss of steering in use at the score that the protected model has."""
    use, score = part["rows"]["in use"], part["rows"][part["chosen"]]["score"]
    order = np.argsort(use["score"])
    return float(np.interp(score, np.array(use["score"])[order], np.array(use["loss"])[order]))


def prevention(parts: Sequence[dict], bounds: dict) -> dict:
    """Return how much of the rise was prevented, what it cost, and the verdict."""
    found, kept = {}, []
    for trait in TRAITS:
        of = [part for part in parts if part["trait"] == trait]
        cuts = interval(lambda some: float(np.mean([cut(one, one["chosen"]) for one in some])), of)
        loss = float(np.mean([one["rows"][one["chosen"]]["loss"] - one["rows"]["none"]["loss"] for one in of]))
        less = float(np.mean([one["rows"][one["chosen"]]["loss"] - loss_in_use(one) for one in of]))
        chance = float(np.mean([cut(one, f"random {one['chosen']}") for one in of]))
        name = f"{trait}, strength {bounds['strength'][trait]:g}"
        found[f"{name}: cut"], found[f"{name}: random vector's cut"] = cuts, chance
        found |= {f"{name}: loss less the unprotected": loss, f"{name}: loss less that of steering in use": less}
        kept.append(cuts[0] >= bounds["cut"] and loss <= bounds["loss"])
    return {"met": sum(kept) >= bounds["traits"], "found": found}
