"""Steer along a trait while it is trained in: does the model that comes of it show the trait less?"""

import mi_crow_lightning as mcl
from examples.science.lab import ALWAYS, LAYER, gaps, load, loss_of
from examples.science.measures.fine_tuning import fit, restored
from examples.science.measures.ruler import Ruler
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
