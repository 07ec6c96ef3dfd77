"""Other callbacks, the Tuner, the Trainer's own switches: weights as in a run without ours, and readings right."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import FunctionController, HookCallback, ProjectionDetector, Schedule, SteeringController
from tests.callback.runs import OnEvent, Seen, assert_bit_equal, data_of, fit, module_of, run
from tests.metrics.noted import Noted
from tests.models import Module, handles, loader, mlp, trainer, vector_data

EVERY = Schedule()
Means = list[tuple[int, float]]


class Reference(pl.Callback):
    """The mean of a layer's outputs over the batches since the last reading, by a plain torch hook."""

    def __init__(self, layer: str = "model.0") -> None:
        self.layer = layer
        self.seen: list[Tensor] = []
        self.validations: list[float] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.handle = pl_module.get_submodule(self.layer).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output.detach().double().clone())

    def mean(self) -> float:
        taken, self.seen = torch.cat([one.flatten() for one in self.seen]), []
        return taken.mean().item()

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.clear()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        mean = self.mean()
        if not trainer.sanity_checking:
            self.validations.append(mean)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.handle.remove()


def watching(**options: Any) -> HookCallback:
    return HookCallback(Noted("model.0", schedule=EVERY), **options)


def means(watch: HookCallback, stage: str) -> Means:
    rows = watch.history()
    return [(row.step, row.value) for row in rows if (row.stage, row.name) == (stage, "mean")]


def counts(watch: HookCallback) -> list[int]:
    """How many numbers each reading is of."""
    return [int(sum(r.value.counts)) for one in watch.detectors[0].noted for r in one if r.name == "histogram"]


def averaging() -> dict[str, Callable[[], pl.Callback]]:
    found: dict[str, Callable[[], pl.Callback]] = {"mean": WeightAveraging}
    if hasattr(lightning_callbacks, "EMAWeightAveraging"):
        found["ema"] = lambda: lightning_callbacks.EMAWeightAveraging(decay=0.5)
    return found


def in_order(first: Sequence[pl.Callback], second: Sequence[pl.Callback], order: str) -> list[pl.Callback]:
    return [*first, *second] if order == "ours first" else [*second, *first]


@pytest.mark.parametrize("order", ["ours first", "ours last"])
@pytest.mark.parametrize("which", averaging())
def test_weight_averaging(which: str, order: str) -> None:
    def trained(*ours: pl.Callback) -> tuple[dict[str, Any], Reference]:
        module, reference = module_of(), Reference()
        theirs = [averaging()[which](), reference]
        run("fit", trainer(*in_order(ours, theirs, order), max_epochs=2), module, data_of())
        assert not handles(module)
        return module.state_dict(), reference

    watch = watching()
    weights, reference = trained(watch)
    assert_bit_equal(weights, trained()[0])
    # Validation runs the averaged weights: the plain hook saw the same.
    assert [value for _, value in means(watch, "validate")] == pytest.approx(reference.validations, rel=1e-6)
    assert len(reference.validations) == 2
    fit(module_of(), data_of(), watch)


@pytest.mark.parametrize("order", ["ours first", "ours last"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.filterwarnings("ignore:Found .* in eval mode:UserWarning")
def test_stochastic_weight_averaging(kind: str, order: str) -> None:
    def trained(*ours: pl.Callback) -> dict[str, Any]:
        module = module_of(kind)
        theirs = [StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)]
        fit(module, data_of(kind), *in_order(ours, theirs, order), max_epochs=3)
        assert not handles(module)
        return module.state_dict()

    watch = watching()
    assert_bit_equal(trained(watch), trained())
    # With batch norms an epoch without steps follows, for their running statistics: it is read as one more step.
    steps, a_batch = [step for step, _ in means(watch, "train")], counts(watch)[0]
    assert steps == list(range(15 + (kind == "cnn")))
    assert counts(watch) == [a_batch] * 15 + [5 * a_batch] * (kind == "cnn")


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


def test_gradient_accumulation_that_changes() -> None:
    def trained(*ours: pl.Callback) -> dict[str, Any]:
        module = module_of()
        fit(module, data_of(), *ours, GradientAccumulationScheduler({0: 1, 1: 2, 2: 4}), max_epochs=3)
        return module.state_dict()

    watch = watching()
    assert_bit_equal(trained(watch), trained())
    assert [step for step, _ in means(watch, "train")] == list(range(5 + 3 + 2))
    assert [count // (4 * 32) for count in counts(watch)] == [1] * 5 + [2, 2, 1] + [4, 1]


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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: saved_and_loaded(module)], ids=["copy", "save"])
def test_a_model_copied_in_the_middle_of_a_batch_carries_no_live_hook(copied: Callable[[Any], Any]) -> None:
    copies: list[nn.Module] = []
    watch = HookCallback(
        [Seen(schedule=EVERY), Noted("model.0", schedule=EVERY)],
        SteeringController("model.0", torch.ones(32), 2.0, schedule=EVERY),
    )
    during = OnEvent("on_train_batch_start", lambda trainer, module, index: copies.append(copied(module.model)))
    module = module_of()
    plain, x = [], torch.randn(2, 8)
    before = OnEvent("on_train_batch_start", lambda trainer, module, i: plain.append(module.model.eval()(x).detach()))
    wake = OnEvent("on_train_batch_start", lambda trainer, module, index: module.model.train() and None)
    fit(module, data_of()[:8], before, wake, watch, during)
    calls, read = len(watch.detectors[0].calls), list(watch.history())
    assert calls == 2 and len(copies) == 2
    for model, expected in zip(copies, plain, strict=True):
        assert torch.equal(model.eval()(x), expected)
    assert len(watch.detectors[0].calls) == calls and watch.history() == read


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


TERMINATED = """
import os, signal, sys
import torch
from mi_crow_lightning import HookCallback, Schedule, SteeringController, ActivationStatistics
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.callback.runs import OnEvent, Seen, data_of, run
from tests.callback.test_checkpoints import Plain
from tests.models import handles, trainer

module = Plain()
steer = SteeringController("model.0", torch.ones(32), 0.0, schedule=Schedule())
watch = HookCallback([Seen(schedule=Schedule()), ActivationStatistics("model.0", schedule=Schedule())], steer)
def terminate(trainer, pl_module, index):
    if index == 2 and not trainer.sanity_checking:
        assert handles(module)
        os.kill(os.getpid(), signal.SIGTERM)
for stage, event in ("fit", "on_train_batch_start"), ("validate", "on_validation_batch_start"):
    try:
        run(stage, trainer(watch, OnEvent(event, terminate)), module, data_of())
    except SystemExit as error:
        print(type(error).__name__, len(watch.detectors[0].calls), len(handles(module)), steer.registered)
    watch.detectors[0].calls.clear()
    run("predict", trainer(watch), module, data_of())
    print(len(watch.detectors[0].calls), len(handles(module)))
    watch.detectors[0].calls.clear()
"""


def test_a_terminated_run_leaves_nothing() -> None:
    """In a process of its own: without Lightning's handler the signal would end this one."""
    script = [sys.executable, "-W", "ignore", "-c", TERMINATED]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    said = [line for line in done.stdout.splitlines() if line]
    assert said == ["SIGTERMException 3 0 False", "5 0"] * 2, done.stderr[-2000:]
