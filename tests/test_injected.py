"""LightningModules of many kinds, trained as if there were no hooks: with some in every Trainer all is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.injected import MODES, injected
from tests.models import KINDS, Module, handles, loader, mlp, trainer, vector_data


def fitted_and_used(module: pl.LightningModule, data: list[Any], **options: Any) -> None:
    """Fit, test and predict, as a test that has never heard of hooks would."""
    runner = trainer(**{"max_epochs": 2, "num_sanity_val_steps": 1, **options})
    runner.fit(module, loader(data), loader(data[:8]))
    runner.test(module, loader(data[:8]), verbose=False)
    runner.predict(module, loader(data[:8]))


def of_kind(kind: str) -> Callable[[], None]:
    return lambda: fitted_and_used(Module(KINDS[kind][0](), new_tokens=2), KINDS[kind][1](8), max_epochs=1)


class Gan(pl.LightningModule):
    """Two optimizers, stepped by hand; the one model runs in the other's step too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        maker, judge = self.optimizers()
        made = self.maker(batch[0])
        self.toggle_optimizer(judge)
        self.manual_backward((self.judge(made.detach()) - self.judge(batch[0])).mean())
        judge.step()
        judge.zero_grad()
        self.untoggle_optimizer(judge)
        if batch_idx % 2:
            self.manual_backward(-self.judge(self.maker(batch[0])).mean())
            maker.step()
            maker.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("judged", self.judge(self.maker(batch[0])).mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.maker(batch[0])

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=0.01) for one in (self.maker, self.judge)]


class ByClosure(Module):
    """Its optimizer runs the step several times."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class SharedAndSkipped(nn.Module):
    """One layer in two places, one in every other call, one in no call, in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.by_name = nn.ModuleDict({"again": self.layers[0], "out": nn.Linear(8, 5)})
        self.norm, self.calls = nn.BatchNorm1d(8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.norm(self.layers[0](x))
        if self.calls % 2:
            x = self.layers[1](x)
        out: Tensor = self.by_name["out"](self.by_name["again"](x))
        return out


class Parameters(pl.LightningModule):
    """No layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse_loss(batch[0] * self.weight, batch[0].roll(1))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return batch[0] * self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def plain(make: Callable[[], pl.LightningModule], **options: Any) -> Callable[[], None]:
    return lambda: fitted_and_used(make(), vector_data(12), **options)


SUITE: dict[str, Callable[[], None]] = {
    **{kind: of_kind(kind) for kind in ("llama", "cnn", "mlp")},
    "accumulation": plain(lambda: Module(mlp()), accumulate_grad_batches=2, gradient_clip_val=0.1),
    "bf16": plain(lambda: Module(mlp()), precision="bf16-mixed"),
    "two optimizers by hand": plain(Gan),
    "closure": plain(lambda: ByClosure(mlp())),
    "shared and skipped": plain(lambda: Module(SharedAndSkipped())),
    "no layers": plain(Parameters),
    "fast_dev_run": plain(lambda: Module(mlp()), fast_dev_run=2),
}


@pytest.mark.parametrize("name", SUITE)
def test_weights_are_bit_equal_whatever_is_injected(name: str) -> None:
    left = {}
    for mode in MODES:
        pl.seed_everything(3, verbose=False)
        with injected(mode) as runs:
            SUITE[name]()
        left[mode] = runs
    assert len(left["none"]) == 3
    assert all(runs == left["none"] for runs in left.values()), left


def test_a_difference_and_a_handle_that_stays_are_noticed() -> None:
    """So that the test above can fail."""
    with injected("none") as runs:
        for seed in (1, 2):
            module = Module(mlp())
            torch.manual_seed(seed)  # of dropout
            fitted_and_used(module, vector_data(12))
    assert runs[0] != runs[3]
    module = Module(mlp())
    module.on_train_end = lambda: module.model[0].register_forward_hook(lambda *_: None)  # type: ignore[method-assign]
    with injected("both"), pytest.raises(AssertionError):
        fitted_and_used(module, vector_data(12))
    assert len(handles(module)) == 1
