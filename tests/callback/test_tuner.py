"""The Tuner and the finders: what they try is neither watched nor steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from mi_crow_lightning import FunctionController, HookCallback, ProjectionDetector, SteeringController
from tests.callback.plain_hooks import EVERY, counts, in_order, watching
from tests.callback.runs import assert_bit_equal
from tests.metrics.noted import Noted
from tests.models import Module, handles, loader, mlp, trainer, vector_data


class Tunable(Module):
    """With its own data, a batch size and a learning rate, as the Tuner wants them; an odd last batch."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.batch_size, self.lr = 4, 1e-2

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(vector_data(22), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(vector_data(10), self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


TUNING: dict[str, Callable[[pl.Trainer, pl.LightningModule], Any]] = {
    "lr_find": lambda runner, module: Tuner(runner).lr_find(module, num_training=15, update_attr=False),
    "scale_batch_size": lambda runner, module: Tuner(runner).scale_batch_size(
        module, init_val=2, max_trials=2, steps_per_trial=2
    ),
    "scale for predict": lambda runner, module: Tuner(runner).scale_batch_size(
        module, method="predict", init_val=2, max_trials=2, steps_per_trial=2
    ),
}


@pytest.fixture
def quiet_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.mark.documents(
    "compatibility/tuner-learning-rate-and-batch-size-finders/detectors",
    "compatibility/tuner-learning-rate-and-batch-size-finders/controllers",
    "compatibility/tuner-learning-rate-and-batch-size-finders/logging",
)
@pytest.mark.parametrize("way", TUNING)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.usefixtures("quiet_tuner")
def test_the_tuner_is_neither_watched_nor_steered(tmp_path: Path, way: str, before: bool) -> None:
    """Its short runs have none of the Trainer's callbacks; and it restores what an earlier fit left."""

    def trained(*ours: pl.Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        module = Tunable()
        options: dict[str, Any] = dict(default_root_dir=tmp_path, log_every_n_steps=4, num_sanity_val_steps=0)
        if before:
            trainer(*ours, **options).fit(module)  # six steps, of which the last two are not read
        runner = trainer(*ours, **options)
        told = len(ours[0].history()) if ours else 0  # type: ignore[attr-defined]
        TUNING[way](runner, module)
        assert not handles(module) and (not ours or len(ours[0].history()) == told)  # type: ignore[attr-defined]
        runner.fit(module.train())  # which the Tuner's predict leaves in evaluation mode
        assert not handles(module)
        return module.state_dict()

    watch = watching()
    assert_bit_equal(trained(watch), trained())
    # Four steps of four, which are read, and the validation; the next fit does not find what was not read.
    assert counts(watch) == [16 * 32, 10 * 32] * (2 if before else 1)
    steered = HookCallback(controllers=SteeringController("model.3", torch.ones(32), 0.5, schedule=EVERY))
    trained(steered)
    assert {effect.stage: effect.fired for effect in steered.effects()} == {"train": 6, "validate": 3}


@pytest.mark.documents("compatibility/tuner-learning-rate-and-batch-size-finders/detectors")
@pytest.mark.filterwarnings("ignore:.* ran in stage .* and changed nothing:UserWarning")
@pytest.mark.parametrize(
    "finder",
    [
        lambda: LearningRateFinder(num_training_steps=3, update_attr=False),
        lambda: BatchSizeFinder(steps_per_trial=2, init_val=4, max_trials=1),
    ],
    ids=["learning rate", "batch size"],
)
@pytest.mark.parametrize("order", ["ours first", "ours last"])
@pytest.mark.usefixtures("quiet_tuner")
def test_finders_are_not_watched(tmp_path: Path, finder: Callable[[], pl.Callback], order: str) -> None:
    def trained(*ours: pl.Callback, second: Sequence[pl.Callback] = ()) -> dict[str, Any]:
        torch.manual_seed(0)
        module = Tunable()
        for also in ((), second):
            callbacks = in_order([*ours, *also], [finder()], order)
            options: dict[str, Any] = dict(default_root_dir=tmp_path, log_every_n_steps=4, num_sanity_val_steps=0)
            trainer(*callbacks, **options).fit(module)
            assert not handles(module)
        return module.state_dict()

    def make(name: str) -> HookCallback:
        along = ProjectionDetector("model.3", torch.ones(32), schedule=EVERY, name=f"{name}_along")
        edit = FunctionController("model.0", lambda x: x * 1, hook_id=name, schedule=EVERY)
        return HookCallback([Noted("model.0", schedule=EVERY, name=name), along], edit, name=name)

    both, second = make("both"), make("second")
    assert_bit_equal(trained(both, second=[second]), trained())
    # The second run does not find what the first had not read: the finder's checkpoint is not that of a run to resume.
    assert counts(both) == [16 * 32, 10 * 32] * 2
    rows = [[(row.step, row.value) for row in one.history() if row.layer] for one in (both, second)]
    assert len(rows[0]) == 2 * len(rows[1]) and rows[0][len(rows[1]) :] == rows[1]
