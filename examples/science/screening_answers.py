"""Find planted answers in sets of instructions with answers: ``python -m examples.science.screening_answers``.

10 sets of 200 neutral answers with 10 planted ones each, for each of three traits. An answer has 3 to 5 sentences; in a
planted one each has the trait. The direction is from neutral answers of the same form. What decides: the projections of
5 or more of the 10 exceed the 99th percentile of other neutral answers, in at least 9 sets, and at most 2 % of the
neutral ones. Without ``--decisive`` also minus own answers, by `make science`'s directions, the trait in half of each.
"""

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path

from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.answers import answered, pairs_of_answers
from examples.science.lab import LAYER, load, own_answers, trainer, up_to
from examples.science.reading import direction
from examples.science.texts import TRAITS, pairs_of
from mi_crow_lightning.language_model import ScreeningTable

PARTS = {"develop": (100, 1, 100, 100), "trial": (3, 10, 200, 500), "fifth": (5, 10, 200, 4000)}
PLANTED, EXTRACTED, TOKENS, PERCENTILE = 10, 24, 32, 99  # in each set, answers of a kind, of an own answer
LEAST_SETS, LEAST_FOUND, MOST_NEUTRAL = 0.9, 5, 0.02  # of the sets, of the planted samples, of the neutral samples


def report(name, groups, planted, folder):
    """Print how many of a planted kind, and of the neutral samples, are above the threshold; return whether enough."""
    others, found, wrong, number = ScreeningTable(groups["other neutral", 0]), [], [], 0
    others.save(folder / name / "others.jsonl", "w")
    while ("neutral", number) in groups:
        table = ScreeningTable(groups[planted, number] + groups["neutral", number]).ranked()
        table.save(folder / name / f"set_{number}.jsonl", "w")
        above, number = table.above(others.percentile(PERCENTILE)), number + 1
        found.append(sum(row.label for row in above))
        wrong.append(len(above) - found[-1])
    enough, share = sum(one >= LEAST_FOUND for one in found), sum(wrong) / number / len(groups["neutral", 0])
    whole = ScreeningTable(row for one in range(number) for kind in (planted, "neutral") for row in groups[kind, one])
    print(f"{name}: {enough} of {number} sets, {sum(found)} planted, {share:.2%} of neutral", end=", ")
    print(f"auroc {whole.auroc():.3f}; by set {found} and {wrong}")
    return enough >= LEAST_SETS * number and share <= MOST_NEUTRAL


def main(part, output, decisive=False):
    (seed, sets, neutral, others), folder, lm = PARTS[part], Path(output) / part, load()
    planted = [*TRAITS] if decisive else [*TRAITS, *(f"half {trait}" for trait in TRAITS)]
    kinds = [("neutral", sets, neutral), ("other neutral", 1, others), *((kind, sets, PLANTED) for kind in planted)]
    samples = sorted(answered(part, kinds, seed), key=lambda one: len(one["prompt"] + one["completion"]))
    vectors = {trait: direction(lm, pairs_of_answers(trait, EXTRACTED, 0)) for trait in TRAITS}
    vectors |= {f"{trait} of make science": direction(lm, pairs_of(trait, 0)) for trait in TRAITS if not decisive}
    screening = mcl.DataScreening(lm, LAYER, vectors=vectors, generation=False)

    def screened(samples):
        with up_to(lm):
            trainer().validate(screening, DataLoader(samples, batch_size=32), verbose=False)
        return {vector: screening.table(vector) for vector in vectors}

    tables, scores = screened(samples), ("projection",) if decisive else ("projection", "difference")
    answers = {} if decisive else own_answers(lm, sorted({one["prompt"] for one in samples}, key=len), TOKENS)
    own = screened([{"prompt": one, "completion": answer} for one, answer in answers.items()]) if answers else {}
    for vector, score in product(vectors, scores):
        trait, groups = vector.split()[0], defaultdict(list)
        less = {row.prompt: row.projection for row in own[vector]} if score == "difference" else defaultdict(float)
        for row in tables[vector]:
            row = row._replace(score=row.projection - less[row.prompt], reference=less[row.prompt])
            groups[samples[row.sample]["kind"], samples[row.sample]["set"]].append(row)
        for kind in (kind for kind in planted if kind.endswith(trait)):
            enough = report(f"{kind}, direction {vector}, {score}", groups, kind, folder)
            if (vector, score) == (kind, "projection"):
                print(f"what decides for {trait}: reached={enough}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="trial", help="other samples, on which this was developed")
    parser.add_argument("--decisive", action="store_true", help="only what decides")
    parser.add_argument("--output", default="outputs/screening", help="a folder for the scores")
    main(**vars(parser.parse_args()))
