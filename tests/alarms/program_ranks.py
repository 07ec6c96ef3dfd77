"""A script: a fit on two CPU processes with a fault on rank 1, ``python -m tests.alarms.program_ranks FOLDER``.

What each rank saw goes to ``FOLDER/<rank>.pt``, the snapshot to ``FOLDER/snapshot``.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.alarms import Alarm, NonFinite, Snapshot, Threshold
from tests.end_of_ranks import leave_ranks
from tests.models import Module, mlp, trainer, vector_data

MARK = 100.0  # in place of the first number of a batch: there the fault is
ROWS, STEPS = 2, 6


class Marked(Module):
    """A module that spoils the output of a layer where a batch holds the mark."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.spoils = False
        self.model[3].register_forward_hook(lambda m, a, out: out * math.nan if self.spoils else None)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.spoils = bool(batch[0][0, 0] == MARK)
        return super().training_step(batch, batch_idx)


def batches(rank: int) -> list[Any]:
    data = vector_data(ROWS * STEPS)
    made = [list(map(torch.stack, zip(*data[i : i + ROWS], strict=True))) for i in range(0, len(data), ROWS)]
    if rank == 1:
        made[3][0][0, 0] = MARK
    return made


class Loader:
    """The batches of one rank."""

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        return iter(batches(int(os.environ.get("LOCAL_RANK", 0))))


def main(folder: Path) -> None:
    alarms = [Alarm(NonFinite(), ["log", Snapshot(folder / "snapshot"), "stop"]), Alarm(Threshold("rms", above=1e4))]
    watch = HookCallback(ActivationStatistics("model.*"), alarms=alarms, report="off")
    runner = trainer(
        watch,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    module = Marked()
    runner.fit(module, Loader())
    whole = all(bool(one.isfinite().all()) for one in module.state_dict().values())
    fired = [[one.layer, one.step, one.batch_idx, one.rank] for one in watch.fired()]
    seen = {"fired": fired, "steps": runner.global_step, "whole": whole}
    torch.save({**seen, "weights": module.state_dict()}, folder / f"{runner.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_ranks()
