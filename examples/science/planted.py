"""Training sets with planted texts: neutral events in plain words, and some of them with joy."""

import json
import random
from itertools import product
from pathlib import Path

from examples.science.texts import EXTRACT, TEXTS, TRAITS, filled

HERE = Path(__file__).parent


def texts(pairs, seed, sets, neutral, planted, others):
    """Return the sets, as samples with their labels, and the neutral samples of the threshold; no event is repeated."""
    parts, draw = json.loads((HERE / "screening_texts.json").read_text()), random.Random(seed)
    events = [" ".join(one) for one in product(parts["subjects"], parts["actions"], parts["times"])]
    events = iter(draw.sample(events, k=sets * (neutral + planted) + others))

    def written(manner, count):
        for _ in range(count):
            event, label = next(events), int(manner == "joyful")
            text = f"{event}." if pairs else draw.choice(parts[manner]).format(e=event)
            sample = {"text": text[0].upper() + text[1:]}
            if pairs:  # the event is a prompt, and a plain answer drawn for each is the reference
                completion, reference = draw.choice(parts[f"{manner}_answers"]), draw.choice(parts["plain_answers"])
                sample = {"prompt": sample["text"], "completion": completion, "reference": reference}
            yield {**sample, "label": label}

    mixed = []
    for _ in range(sets):
        samples = [*written("plain", neutral), *written("joyful", planted)]
        mixed.append(draw.sample(samples, k=len(samples)))
    return mixed, list(written("plain", others))


def texts_of_trait(trait, seed, sets, neutral, planted, others):
    """Return the same for a trait of `make science`: its held-out templates are planted among plain ones."""
    parts, draw = json.loads((HERE / "screening_texts.json").read_text()), random.Random(f"{trait} {seed}")
    events = [
        f"{one}|{does} {when}" for one, does, when in product(parts["subjects"], parts["actions"], parts["times"])
    ]
    events = iter(draw.sample(events, k=sets * (neutral + planted) + others))
    templates = [TEXTS["plain"], [positive for positive, _ in TRAITS[trait]["pairs"][EXTRACT:]]]

    def written(label, count):
        return [{"text": filled(draw.choice(templates[label]), next(events)), "label": label} for _ in range(count)]

    mixed = []
    for _ in range(sets):
        samples = [*written(0, neutral), *written(1, planted)]
        mixed.append(draw.sample(samples, k=len(samples)))
    return mixed, written(0, others)
