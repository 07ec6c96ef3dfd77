"""Whether the projections of the training texts predict the trait, before anything is trained."""

from collections.abc import Sequence

import numpy as np

from examples.science.arithmetic import auroc, interval
from examples.science.texts import TRAITS
from examples.science.verdicts.fine_tunes import changes, correlation, mean_r, same_set, scatter


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return how well the projections of the training texts predict the traits, and the verdict."""
    rows = changes(parts)
    own = [(trait, trait) for trait in TRAITS]
    r = interval(mean_r("data", own), rows, same_set)
    areas = {}
    for trait in TRAITS:
        single = {
            level: [row["single"] for row in rows if (row["trait"], row["level"]) == (trait, level)] for level in (0, 1)
        }
        areas[trait] = auroc(np.ravel(single[1]), np.ravel(single[0]))
    area = float(np.mean(list(areas.values())))
    found = {"mean r over traits": r, "r of each trait": {t: correlation(rows, "data", t, t) for t in TRAITS}}
    found |= {"mean AUROC of single texts": area, "AUROC of each trait": areas}
    return {"met": r[0] >= bounds["r"] and area >= bounds["auroc"], "found": found}


figure = scatter("data", "training texts less plain ones")
