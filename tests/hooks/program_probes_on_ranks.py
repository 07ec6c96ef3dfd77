"""A script: a `LinearProbe` on two CPU processes, ``python -m tests.hooks.program_probes_on_ranks FOLDER``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from mi_crow_lightning import HookCallback, LinearProbe
from tests.end_of_ranks import leave_ranks
from tests.hooks.detectors.probing import Labelled, labelled_data
from tests.models import llama, loader, trainer

ROWS = 4  # in a batch of all ranks


class Ranked(Labelled):
    """A model whose batches on several ranks are together those of one process."""

    def __init__(self, ranks: int) -> None:
        super().__init__(llama(attention_dropout=0.0))
        self.ranks = ranks

    def batches(self, count: int) -> Any:
        return loader(labelled_data(24, 3)[self.global_rank : count : self.ranks], ROWS // self.ranks)

    def train_dataloader(self) -> Any:
        return self.batches(24)

    def val_dataloader(self) -> Any:
        return self.batches(12)


def fitted(ranks: int, labels: Any = "label", **options: Any) -> tuple[dict[str, Any], LinearProbe]:
    """The readings and the probes of a fit of two epochs."""
    probe = LinearProbe("block:*", labels=labels, classes=3, lr=0.01)
    watch = HookCallback(probe)
    quiet = dict(num_sanity_val_steps=0, log_every_n_steps=3, use_distributed_sampler=False)
    trainer(watch, max_epochs=2, **quiet, **options).fit(Ranked(ranks))
    return {f"{row.tag} {row.step}": row.value for row in watch.history()}, probe


def missing_on_one(batch: Any) -> Any:
    """Labels that the second rank lacks from its third batch on."""
    missing_on_one.calls = getattr(missing_on_one, "calls", 0) + 1  # type: ignore[attr-defined]
    is_late = missing_on_one.calls > 8  # type: ignore[attr-defined]  # four layers a batch
    return None if torch.distributed.get_rank() == 1 and is_late else batch["label"]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found, probe = fitted(2, strategy=DDPStrategy(), devices=2)
    failed, off = fitted(2, missing_on_one, strategy=DDPStrategy(), devices=2)
    result = {"read": found, "probes": probe.state_dict()["probes"], "failed": failed, "enabled": off.enabled}
    result["steps"] = off.state_dict()["probes"]["steps"]
    torch.save(result, f"{folder}/{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
