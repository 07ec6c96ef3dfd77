"""A script: runs in processes that are spawned or forked, ``python -m tests.callback.program_spawned FOLDER``.

What the process that starts them finds afterwards goes to ``FOLDER/found.pt``, what is there in them to
``FOLDER/<strategy>.<rank>.pt``.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import torch

from mi_crow_lightning import ContrastDetector, HookCallback, LayerActivationDetector
from mi_crow_lightning.errors import RanElsewhere
from tests.callback.program_ranks import ALWAYS, EVEN, LAYER, Ranked, detectors, in_one, steering, told
from tests.models import trainer


class Inside(pl.Callback):
    """Saves what the callback tells in each process of the run."""

    def __init__(self, watch: HookCallback, contrast: ContrastDetector, file: str) -> None:
        self.watch, self.contrast, self.file = watch, contrast, file

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        known = told(self.watch, trainer) | {"report": self.watch.report().feature("strategy").support.value}
        known["vector"] = self.contrast.vectors(force=True)[LAYER]
        torch.save(known, f"{self.file}.{trainer.global_rank}.pt")


def tried(*asks: Any) -> list[str]:
    said = []
    for ask in asks:
        try:
            said.append(repr(ask()))
        except RanElsewhere as error:
            said.append(str(error))
    return said


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    contrast, held = ContrastDetector(LAYER), LayerActivationDetector(LAYER, name="kept", schedule=ALWAYS)
    watch = HookCallback([*detectors(), contrast, held], steering(), monitor=["*"])
    asks = (watch.history, watch.effects, watch.report, contrast.vectors, contrast.moments, contrast.separability)
    in_one(watch).predict(Ranked(EVEN))
    for strategy in ("ddp_spawn", "ddp_fork"):
        inside = Inside(watch, contrast, f"{folder}/{strategy}")
        runner = trainer(watch, inside, strategy=strategy, devices=2, use_distributed_sampler=False)
        runner.predict(Ranked(EVEN), return_predictions=False)
        metrics = {tag: float(value) for tag, value in runner.callback_metrics.items()}
        found[strategy] = {"metrics": metrics, "said": tried(*asks, held.get_captured)}
        in_one(watch).predict(Ranked(EVEN))
        found[strategy]["after"] = len(watch.history()) and len(contrast.vectors(force=True)) and len(watch.effects())
    torch.save(found, f"{folder}/found.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
