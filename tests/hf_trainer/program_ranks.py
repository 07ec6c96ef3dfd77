"""A script: ``transformers.Trainer`` on two CPU processes, ``python -m tests.hf_trainer.program_ranks FOLDER``.

Each process is started by this script as torchrun would. ``FOLDER/<rank>.pt`` gets what a rank tells.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from mi_crow_lightning import ActivationStatistics, HookTrainerCallback, Schedule, SteeringController
from mi_crow_lightning.alarms import Alarm, NonFinite
from mi_crow_lightning.errors import RanksDiffer
from tests.hf_trainer.fits import numbers, trainer, weights
from tests.models import WIDTH, llama

OPTIONS: dict[str, Any] = dict(eval_strategy="steps", eval_steps=2, max_steps=4, save_strategy="steps", save_steps=3)

STILL: dict[str, Any] = dict(learning_rate=0.0, save_strategy="no")  # weights that no rank's share of the loss moves


# transformers 4 loads an optimizer's state to "cpu:0" on ranks of a CPU, which torch refuses.
RESUMES = int(transformers.__version__.partition(".")[0]) >= 5


def watching(layers: str = "block:*") -> HookTrainerCallback:
    detector = ActivationStatistics(layers, statistics=["mean", "abs_max"], schedule=Schedule())
    steer = SteeringController("block:1", torch.ones(WIDTH), strength=0.5, schedule=Schedule(stages="train"))
    return HookTrainerCallback(detector, steer, report="off")


def fit(folder: Path, batch: int, **options: Any) -> dict[str, Any]:
    """What a fit tells: its numbers, effects and weights."""
    model, watch = llama(attention_dropout=0.0), watching()
    changes = dict(per_device_train_batch_size=batch, per_device_eval_batch_size=batch)
    runner = trainer(model, folder, **{**OPTIONS, **changes, **options.pop("arguments", {})})
    with watch.attach(runner):
        runner.train(**options)
    effects = [(one.hook, one.layer, one.tokens) for one in watch.effects()]
    return {"rows": numbers(watch.history()), "effects": effects, "weights": weights(model)}


def alarmed(folder: Path, rank: int) -> dict[str, Any]:
    """What a fit tells in which the third batch of rank 1 gives NaN at a block."""
    model, batches = llama(attention_dropout=0.0), itertools.count()

    def spoil(layer: Any, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        return out * math.nan if next(batches) == 2 and rank == 1 else None

    model.model.layers[1].register_forward_hook(spoil)
    alarm = Alarm(NonFinite(), ["log", "stop"])
    watch = HookTrainerCallback(ActivationStatistics("block:*"), alarms=alarm, report="off")
    with watch.attach(runner := trainer(model, folder)):
        runner.train()
    fired = [[one.layer, one.step, one.batch_idx, one.rank] for one in watch.fired()]
    return {"fired": fired, "steps": runner.state.global_step, "weights": weights(model)}


def on_a_rank(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    told = {"whole": fit(folder / "whole", 2), "still": fit(folder / "still", 2, arguments=STILL)}
    if RESUMES:
        told["resumed"] = fit(folder / "whole", 2, resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))
    told["alarmed"] = alarmed(folder / "alarmed", rank)
    model, watch = llama(), watching("block:*" if rank else "block:0")
    try:
        with watch.attach(trainer(model, folder / "other")) as _:
            watch._attached_to().train()
    except RanksDiffer as error:
        told["refused"] = str(error)
    torch.save(told, folder / f"{rank}.pt")


def main(folder: Path) -> None:
    if "RANK" in os.environ:
        on_a_rank(folder)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.hf_trainer.program_ranks", str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
