"""A GAN: manual optimization, two optimizers that take turns, two networks without a stack of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as judged

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, Schedule
from mi_crow_lightning.errors import LayerNotFound
from tests.callback.runs import assert_bit_equal
from tests.metrics.noted import Noted
from tests.models import loader, trainer, vector_data
from tests.models_in_trainers.harness import assert_steered, assert_watched, edit, fitted


class Gan(pl.LightningModule):
    """A generator and a discriminator, each with an optimizer."""

    def __init__(self, toggle: bool = True, every: int = 1, steer: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 1))
        self.toggle, self.every, self.losses = toggle, every, list[float]()
        if steer:
            self.generator[1].register_forward_hook(lambda m, a, x: edit(x))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = batch[0]
        of_generator, of_discriminator = self.optimizers()  # type: ignore[misc]
        noise = torch.randn(len(real), 4)
        if batch_idx % self.every == 0:
            made = self.generator(noise)
            self.take_step(of_discriminator, self.verdict(real, 1.0) + self.verdict(made.detach(), 0.0))
        self.take_step(of_generator, lambda: self.verdict(self.generator(noise), 1.0))

    def verdict(self, x: Tensor, wanted: float) -> Tensor:
        logits = self.discriminator(x)
        return judged(logits, torch.full_like(logits, wanted))

    def take_step(self, optimizer: Any, loss: Any) -> None:
        if self.toggle:
            self.toggle_optimizer(optimizer)
        value = loss() if callable(loss) else loss
        if value.requires_grad:
            optimizer.zero_grad()
            self.manual_backward(value)
            optimizer.step()
        self.log("loss", value)
        self.losses.append(value.item())
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.verdict(batch[0], 1.0))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        made: Tensor = self.generator(batch[0][:, :4])
        return made

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (self.generator, self.discriminator)]


LAYERS = ["generator.0", "generator.2", "discriminator.0", "discriminator.1"]


@pytest.mark.documents("compatibility/manual-optimization-two-optimizers/detectors")
@pytest.mark.parametrize("toggle", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_all_passes_of_both_networks_are_counted_in_the_batchs_reading(toggle: bool, every: int) -> None:
    assert_watched(lambda: Gan(toggle, every), vector_data(20), LAYERS)


def test_the_generator_is_steered_in_predict() -> None:
    assert_steered(Gan, vector_data(10), "generator.1")


@pytest.mark.documents("compatibility/manual-optimization-two-optimizers/controllers")
def test_steering_it_while_both_are_trained_is_as_by_hand() -> None:
    steer = FunctionController("generator.1", edit, schedule=Schedule())
    steered, module = fitted(Gan, vector_data(20), HookCallback(controllers=steer))
    by_hand, other = fitted(lambda: Gan(steer=True), vector_data(20))
    assert_bit_equal(steered, by_hand)
    assert module.losses == other.losses and len(module.losses) == 10


@pytest.mark.documents("compatibility/manual-optimization-two-optimizers/logging")
def test_curves_lie_under_lightnings_own_and_not_at_twice_the_step(tmp_path: Path) -> None:
    """Lightning's global step counts each optimizer's step, the x of its loggers counts batches."""
    logger, detector = CSVLogger(str(tmp_path)), Noted("discriminator.1", statistics=["mean"])
    runner = trainer(HookCallback(detector), logger=logger, log_every_n_steps=2, limit_val_batches=0)
    runner.fit(Gan(), loader(vector_data(20)), loader(vector_data(4)))
    assert runner.global_step == 10 and len(detector.noted) == 2
    lines = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    own, ours = ({row["step"] for row in rows if row[tag]} for tag in ("loss", "activations_mean/discriminator.1"))
    assert own == ours == {"1", "3"}


def test_every_n_steps_counts_batches() -> None:
    detector = Noted("generator.1", schedule=Schedule(every_n_steps=2))
    fitted(Gan, vector_data(20), HookCallback(detector))
    assert len(detector.noted) == 2  # of five batches, and ten steps of optimizers


def test_neither_network_is_the_main_one() -> None:
    watch = HookCallback(ActivationStatistics("block:*"))
    with pytest.raises(LayerNotFound, match="the model has no stack of blocks"):
        trainer(watch, limit_val_batches=0).fit(Gan(), loader(vector_data(4)), loader(vector_data(4)))
    one = HookCallback(ActivationStatistics("block:*"), root="generator")
    fitted(Gan, vector_data(4), one)
    assert {row.layer for row in one.history()} == {"0", "1", "2"}
