"""The Trainer's own switches: weights as in a run without ours, and readings right."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from torch import Tensor

from mi_crow_lightning import HookCallback, SteeringController
from tests.callback.plain_hooks import EVERY, Reference, counts, means, watching
from tests.callback.runs import OnEvent, assert_bit_equal, data_of, fit, module_of, run
from tests.metrics.noted import Noted
from tests.models import handles, loader, trainer


@pytest.mark.documents("compatibility/accumulation-that-changes-between-epochs/detectors")
def test_gradient_accumulation_that_changes() -> None:
    def trained(*ours: pl.Callback) -> dict[str, Any]:
        module = module_of()
        fit(module, data_of(), *ours, GradientAccumulationScheduler({0: 1, 1: 2, 2: 4}), max_epochs=3)
        return module.state_dict()

    watch = watching()
    assert_bit_equal(trained(watch), trained())
    assert [step for step, _ in means(watch, "train")] == list(range(5 + 3 + 2))
    assert [count // (4 * 32) for count in counts(watch)] == [1] * 5 + [2, 2, 1] + [4, 1]


@pytest.mark.documents("compatibility/max-time-early-stopping-max-steps/detectors")
@pytest.mark.parametrize("way", ["max_time", "Timer", "max_steps"])
def test_runs_that_stop_before_their_end(way: str) -> None:
    watch, module, reference = watching(), module_of(), Reference()
    options: dict[str, Any] = {
        "max_time": {"max_time": {"seconds": 0}, "max_epochs": -1, "min_steps": 7},
        "Timer": {"max_epochs": -1, "min_steps": 7},
        "max_steps": {"max_steps": 7, "max_epochs": -1},
    }[way]
    timer = [Timer(duration={"seconds": 0})] if way == "Timer" else []
    read: list[float] = []
    take = OnEvent("on_train_batch_end", lambda trainer, module, index: read.append(reference.mean()))
    runner = fit(module, data_of(), watch, reference, take, *timer, **options)
    assert [step for step, _ in means(watch, "train")] == list(range(7)) and runner.global_step == 7
    assert [value for _, value in means(watch, "train")] == pytest.approx(read, rel=1e-6)
    assert not handles(module)
    fit(module, data_of(), watch)
    assert len(means(watch, "train")) == 7 + 5


@pytest.mark.documents("compatibility/limit-batches-overfit-batches-val-check-interval/detectors")
@pytest.mark.parametrize(
    ("options", "train", "validate"),
    [
        ({"overfit_batches": 2}, 2, [2]),
        ({"limit_train_batches": 0.5, "limit_val_batches": 1}, 2, [1]),
        ({"limit_train_batches": 3}, 3, [3]),
        ({"val_check_interval": 0.4}, 5, [3, 3]),
        ({"fast_dev_run": 2}, 2, [2]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, 10, [3]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_of_the_data(options: dict[str, Any], train: int, validate: list[int]) -> None:
    """Five batches of training, of 4; three of validation, of 4, 4 and 2."""

    def trained(*ours: pl.Callback) -> tuple[dict[str, Any], Reference]:
        module, reference = module_of(), Reference()
        run("fit", trainer(*ours, reference, **{"num_sanity_val_steps": 0, **options}), module, data_of())
        assert not handles(module)
        return module.state_dict(), reference

    watch = watching()
    weights, reference = trained(watch)
    assert_bit_equal(weights, trained()[0])
    assert [step for step, _ in means(watch, "train")] == list(range(train))
    assert [value for _, value in means(watch, "validate")] == pytest.approx(reference.validations, rel=1e-6)
    sizes = {1: 4, 2: 8, 3: 10}
    seen = counts(watch)
    assert sorted(seen) == sorted([4 * 32] * train + [sizes[batches] * 32 for batches in validate])


def test_predictions_that_are_not_returned() -> None:
    def predicted(keep: bool) -> tuple[Any, HookCallback, list[Tensor]]:
        outputs: list[Tensor] = []

        class Writer(pl.Callback):
            def on_predict_batch_end(self, trainer: Any, pl_module: Any, outs: Tensor, *rest: Any) -> None:
                outputs.append(outs.clone())

        steer = SteeringController("model.0", torch.ones(32), 2.0)
        watch = HookCallback(Noted("model.0", schedule=EVERY), steer)
        runner, module = trainer(watch, Writer()), module_of()
        result = runner.predict(module, loader(data_of()), return_predictions=keep)
        assert not handles(module)
        return result, watch, outputs

    (kept, one, outputs), (nothing, other, again) = predicted(True), predicted(False)
    assert nothing is None and len(kept) == 5
    assert_bit_equal(outputs, again)
    assert one.effects() == other.effects() and other.effects()[0].tokens == 20
    assert means(one, "predict") == means(other, "predict") and counts(other) == [20 * 32]


@pytest.mark.documents("compatibility/fit-twice-then-other-stages/detectors")
def test_one_callback_over_trainers_and_stages_of_one_trainer() -> None:
    """A fit twice with one Trainer and with another, then all other stages: each reads its own batches alone."""
    watch, module = watching(), module_of()
    runner = trainer(watch, num_sanity_val_steps=0, log_every_n_steps=4)
    for _ in range(2):
        run("fit", runner, module, data_of())
        runner.fit_loop.max_epochs += 1
    run("fit", trainer(watch, num_sanity_val_steps=0, log_every_n_steps=4), module, data_of())
    for stage in ("validate", "test", "predict"):
        run(stage, runner, module, data_of())
    assert not handles(module)
    # Steps 4 to 7 of the first Trainer's two fits: its second does not go on with the first's last step.
    sizes = [16, 10, 12, 10, 16, 10, 20, 20, 20]
    assert [count // 32 for count in counts(watch)] == sizes
