"""Whether the shift of a projection predicts the trait after fine-tuning."""

from collections.abc import Sequence

import numpy as np

from examples.science.arithmetic import interval, pearson, without_group_means, z_scores
from examples.science.texts import LEVELS, TRAITS
from examples.science.verdicts.fine_tunes import PAIRS, Rows, changes, correlation, mean_r, same_set, scatter


def rival(rows: Rows, trait: str) -> float:
    """Return the correlation of the score with the share of the trait's own texts in the set."""
    share = [row["level"] if row["trait"] == trait else 0.0 for row in rows]
    return pearson(share, [row["score"][trait] for row in rows])


def strict(rows: Rows, of: str = "shift") -> float:
    """Return the correlation within cells of one set's trait and level, where only domain and seed differ."""
    cells = [(row["trait"], row["level"]) for row in rows]
    x, y = ([row[part][trait] for trait in TRAITS for row in rows] for part in (of, "score"))
    x, y = (np.concatenate([z_scores(part) for part in np.split(np.array(both), len(TRAITS))]) for both in (x, y))
    groups = [(trait, *cell) for trait in TRAITS for cell in cells]
    return pearson(without_group_means(x, groups), without_group_means(y, groups))


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return how well the shift of the neutral texts' projections predicts the traits, and the verdict."""
    rows = changes(parts)
    own, others = [pair for pair in PAIRS if pair[0] == pair[1]], [pair for pair in PAIRS if pair[0] != pair[1]]
    same, cross = (interval(mean_r("shift", pairs), rows, same_set) for pairs in (own, others))
    by_level = {level: [row for row in rows if row["level"] == level] for level in LEVELS}
    within = {f"{level:.0%}": mean_r("shift", own)(of_level) for level, of_level in by_level.items() if of_level}
    mean_within = float(np.mean(list(within.values())))
    met = same[0] >= bounds["same"] and same[1] > cross[0] and mean_within >= bounds["within"]
    single = {trait: correlation(rows, "shift", trait, trait) for trait in TRAITS}
    found = {"same-trait r": same, "cross-trait r": cross, "mean r within a level": mean_within, "within": within}
    found |= {"strict r": interval(strict, rows, same_set), "r of each trait": single}
    found |= {"trivial rival, r": {trait: rival(rows, trait) for trait in TRAITS}, "fine-tunes": len(rows)}
    found["loss, mean change"] = float(
        np.mean([r["loss"] - part["base"]["loss"] for part in parts for r in part["rows"]])
    )
    return {"met": met, "found": found}


figure = scatter("shift", "shift on neutral texts, in spreads")
