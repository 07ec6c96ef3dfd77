"""Does the shift of a projection predict the trait after fine-tuning, and do the data predict it before?"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from examples.science.arithmetic import auroc, interval, pearson, without_group_means, z_scores
from examples.science.texts import LEVELS, TRAITS

Rows = Sequence[dict]
PAIRS = list(product(TRAITS, TRAITS))


def correlation(rows: Rows, of: str, along: str, scored: str) -> float:
    """Return the correlation over fine-tunes of what is seen along one trait with the change of a trait's score."""
    return pearson([row[of][along] for row in rows], [row["score"][scored] for row in rows])


def mean_r(of: str, pairs: Sequence[tuple[str, str]]) -> Callable[[Rows], float]:
    """Return a function of rows: the mean correlation over pairs of traits."""
    return lambda rows: float(np.mean([correlation(rows, of, along, scored) for along, scored in pairs]))


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


def same_set(row: dict) -> tuple:
    """Return which of the 24 sets a fine-tune belongs to; its seeds are drawn together."""
    return row["trait"], row["level"], row["domain"]


def changes(parts: Sequence[dict]) -> list[dict]:
    """Return the fine-tunes of all parts, with scores less those of the base model."""
    return [
        {**row, "score": {t: row["score"][t] - part["base"]["score"][t] for t in TRAITS}}
        for part in parts
        for row in part["rows"]
    ]


def shift(parts: Sequence[dict], bounds: dict) -> dict:
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


def data(parts: Sequence[dict], bounds: dict) -> dict:
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
