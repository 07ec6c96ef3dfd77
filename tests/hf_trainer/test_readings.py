"""A fine-tune by transformers.Trainer gives the readings of the same fine-tune by Lightning, and stays what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    ActivationStatistics,
    GradientStatistics,
    HookCallback,
    HookTrainerCallback,
    Schedule,
    WeightStatistics,
)
from mi_crow_lightning.metrics import STATISTICS
from tests import models
from tests.hf_trainer.fits import numbers, rows, trainer, weights

torch.set_num_threads(1)


def detectors() -> list[Any]:
    return [
        ActivationStatistics("block:*", statistics=STATISTICS),
        GradientStatistics("block:*"),
        WeightStatistics("block:1"),
        ActivationStatistics(
            "block:0", name="few", statistics=["mean"], schedule=Schedule(stages="train", start_step=3)
        ),
    ]


class Same(models.Module):
    """The module that trains as ``tests.hf_trainer.fits.trainer`` does."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)


def by_lightning(model: Any, *, accumulate: int = 1) -> HookCallback:
    watch = HookCallback(detectors(), report="off", root="model")
    options: dict[str, Any] = dict(max_epochs=-1, max_steps=6, log_every_n_steps=2, num_sanity_val_steps=0)
    runner = models.trainer(watch, **options, accumulate_grad_batches=accumulate, val_check_interval=3 * accumulate)
    loaders = DataLoader(rows(), batch_size=2), DataLoader(rows(8), batch_size=4)
    runner.fit(Same(model), *loaders)
    return watch


@pytest.mark.documents("compatibility/transformers-trainer/detectors")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_readings_are_those_of_lightning_to_the_last_bit(accumulate: int, tmp_path: Path) -> None:
    theirs = models.llama(attention_dropout=0.0)
    other = by_lightning(theirs, accumulate=accumulate)
    model, watch = models.llama(attention_dropout=0.0), HookTrainerCallback(detectors())
    options: dict[str, Any] = dict(gradient_accumulation_steps=accumulate, eval_strategy="steps", eval_steps=3)
    runner = trainer(model, tmp_path, **options)
    with watch.attach(runner):
        runner.train()
    assert all(map(torch.equal, weights(model).values(), weights(theirs).values()))
    # In a fit, Lightning counts the steps before the batch that trained last, transformers those after it.
    counted = [(stage, step + 1, *rest) for stage, step, *rest in numbers(other.history())]
    assert numbers(watch.history()) == counted and len(counted) > 100
    assert {row[0] for row in counted} == {"train", "validate"}
