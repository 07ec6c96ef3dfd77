"""Faults of what surrounds the hooks: loggers, other callbacks, the data, the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, HookError, Schedule
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.loggers import read_compact
from tests.callback.runs import STAGES, OnEvent, Seen, data_of, fit, module_of, run, told
from tests.models import WIDTH, Module, assert_same_handles, handles, loader, mlp, trainer, vector_data

pytestmark = pytest.mark.faults

EVERY = Schedule()


def watching() -> HookCallback:
    return HookCallback(
        detectors=[
            ActivationStatistics("model.0", statistics=["mean"], schedule=EVERY),
            Seen("model.3", schedule=EVERY),
        ],
        controllers=FunctionController("model.3", lambda x: x + 1, schedule=EVERY),
    )


# Loggers.


class Recorder(Logger):
    """Keeps what it is given; it has no experiment."""

    def __init__(self, fails: str | None = None) -> None:
        super().__init__()
        self.fails, self.rows = fails, []

    name = version = "recorder"  # type: ignore[assignment]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.fails in metrics:
            raise ConnectionError("server gone")
        self.rows.append((step, metrics))


TAG = "activations_mean/model.0"


@pytest.mark.documents("reliability/a-logger-has-no-experiment")
def test_a_logger_without_an_experiment_gets_the_numbers() -> None:
    logger = Recorder()
    fit(module_of(), data_of(), watching(), logger=logger)
    assert [step for step, metrics in logger.rows if TAG in metrics] == [0, 1, 2, 3, 4]


@pytest.mark.documents("reliability/a-logger-raises")
@pytest.mark.parametrize("ours", [True, False])
def test_a_logger_that_raises_ends_the_run_as_it_does_for_lightning(ours: bool) -> None:
    module, watch, failing = module_of(), watching(), Recorder("loss" if not ours else TAG)
    with pytest.raises(ConnectionError, match="server gone"):
        fit(module, data_of(), watch, logger=failing)
    assert handles(module) == {}


@pytest.mark.documents("reliability/a-logger-raises-beside-other-loggers")
def test_a_logger_that_raises_costs_the_other_loggers_nothing(tmp_path: Path) -> None:
    csv, last = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")
    watch, module = watching(), module_of()
    words = "another logger failed too: ConnectionError: server gone"
    with told(words, RuntimeWarning), pytest.raises(ConnectionError, match="server gone"):
        fit(module, data_of(), watch, logger=[csv, Recorder(TAG), Recorder(TAG), last])
    assert TAG in (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert [row.step for row in read_compact(last.log_dir) if row.name == "mean"] == [0]
    assert [row.step for row in watch.history() if row.name == "mean"] == [0] and handles(module) == {}


class NoWriter(Recorder):
    """Lightning asks for the experiment when a run starts; here it is lost after the first step."""

    @property
    def experiment(self) -> Any:
        if self.rows:
            raise PermissionError("read-only folder")


@pytest.mark.documents("reliability/logger-experiment-raises")
def test_a_logger_whose_experiment_is_lost_costs_the_others_nothing() -> None:
    after, module = Recorder(), module_of()
    with pytest.raises(PermissionError, match="read-only folder"):
        fit(module, data_of(), watching(), logger=[NoWriter(), after])
    assert TAG in after.rows[-1][1] and handles(module) == {}


@pytest.mark.documents("reliability/the-log-folder-cannot-be-made")
@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_log_folder_that_cannot_be_made_ends_the_run_before_the_first_batch_is_over(
    tmp_path: Path, logger: Any
) -> None:
    """A file where the folder should be: unlike a read-only folder it stops the superuser, too."""
    (tmp_path / "logs").touch()
    module, batches = module_of(), []
    count = OnEvent("on_train_batch_end", lambda trainer, module, index: batches.append(index))
    with pytest.raises(OSError, match=str(tmp_path / "logs")):
        fit(module, data_of(), watching(), count, logger=logger(tmp_path / "logs"))
    assert batches == [] and handles(module) == {}


# Other callbacks.

EVENTS = {
    "fit": [
        *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
        *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end"),
        *("on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"),
        *("on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"),
    ],
    "predict": [
        *("setup", "on_predict_start", "on_predict_epoch_start", "on_predict_batch_start", "on_predict_batch_end"),
        *("on_predict_epoch_end", "on_predict_end", "teardown"),
    ],
}


def crash(*args: Any) -> None:
    raise ArithmeticError("not ours")


@pytest.mark.documents("reliability/another-callback-raises-in-any-event-before-or-after-the-hookcallback")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("stage", "event"), [(stage, event) for stage in EVENTS for event in EVENTS[stage]])
def test_another_callback_that_raises(stage: str, event: str, first: bool) -> None:
    watch, module, broken = watching(), module_of(), OnEvent(event, crash)
    order = (broken, watch) if first else (watch, broken)
    with pytest.raises(ArithmeticError, match="not ours"):
        run(stage, trainer(*order, num_sanity_val_steps=0), module, data_of())
    assert handles(module) == {} and not any(hook.registered for hook in watch.detectors + watch.controllers)


@pytest.mark.documents("reliability/another-callback-raises-in-its-on-exception")
def test_another_callback_that_raises_while_it_is_told_of_an_exception() -> None:
    """Lightning then tells no callback after it, so nothing can be taken off before the next run."""
    breaks = OnEvent("on_train_batch_end", crash)
    breaks.on_exception = crash  # type: ignore[method-assign]
    module, watch = module_of(), watching()
    with pytest.raises(ArithmeticError):
        fit(module, data_of(), watch, breaks)  # the HookCallback stands first: all is well
    assert handles(module) == {}
    with pytest.raises(ArithmeticError):
        fit(module, data_of(), breaks, watch)
    assert handles(module) != {}
    fit(module, data_of(), watch)
    assert handles(module) == {}


# Data.


@pytest.mark.documents("reliability/no-batches-at-all")
@pytest.mark.parametrize("stage", STAGES)
def test_no_batches_at_all(stage: str) -> None:
    watch, module = watching(), module_of()
    limits = {f"limit_{name}_batches": 0 for name in ("train", "val", "test", "predict")}
    run(stage, trainer(watch, **limits), module, data_of())
    assert handles(module) == {} and watch.history() == [] and watch.effects() == []


class Breaks(Dataset[Any]):
    """Its ninth sample raises."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        if index == 8:
            raise LookupError("sample 8 is gone")
        return vector_data()[index]


@pytest.mark.documents(
    "compatibility/ctrl-c-crash-sigterm/logging", "reliability/the-dataset-raises-in-this-process-or-in-a-worker"
)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_the_dataset_raises(stage: str, workers: int) -> None:
    module, watch = module_of(), watching()
    context = "fork" if workers else None  # no import anew
    broken = DataLoader(Breaks(), batch_size=4, num_workers=workers, multiprocessing_context=context)
    validation = [loader(data_of())] if stage == "fit" else []
    with pytest.raises(LookupError, match="sample 8 is gone"):
        getattr(trainer(watch, num_sanity_val_steps=0), stage)(module, broken, *validation)
    assert handles(module) == {} and len(watch.detectors[1].calls) == 2
    if stage == "fit":  # what was read before is kept
        assert [row.step for row in watch.history() if row.name == "mean"] == [0, 1]


# The model.


class Configured(Module):
    """Makes its model in `configure_model`."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(nn.Identity())
        self.error = error

    def configure_model(self) -> None:
        if self.error is not None:
            raise self.error
        if isinstance(self.model, nn.Identity):
            self.model = mlp()


@pytest.mark.documents(
    "compatibility/layers-made-in-configure-model/detectors",
    "compatibility/layers-made-in-configure-model/controllers",
    "reliability/configure-model-raises",
)
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_configure_model_raises_or_makes_the_layers(stage: str) -> None:
    watch, module = watching(), Configured(MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        run(stage, trainer(watch), module, data_of())
    assert handles(module) == {}
    module.error = None
    run(stage, trainer(watch), module, data_of())
    assert handles(module) == {} and len(watch.detectors[1].calls) >= 5


def replace(module: Module) -> None:
    module.model[3] = nn.Linear(WIDTH, WIDTH)


def delete(module: Module) -> None:
    module.model = nn.Sequential(*[layer for i, layer in enumerate(module.model) if i != 3])


def replace_all(module: Module) -> None:
    module.model = mlp().train()


@pytest.mark.documents(
    "compatibility/a-layer-that-is-replaced-during-a-run/detectors",
    "compatibility/a-layer-that-is-replaced-during-a-run/controllers",
    "reliability/a-hooked-layer-is-replaced-or-deleted-during-a-run",
)
@pytest.mark.parametrize("change", [replace, delete, replace_all])
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_hooked_layer_that_is_replaced_or_deleted_is_told(stage: str, change: Any) -> None:
    """Else a hook would stand on a layer that nobody calls, and nothing would be seen, or steered."""
    event = "on_train_batch_start" if stage == "fit" else "on_predict_batch_start"

    def third(trainer: pl.Trainer, module: Any, index: int) -> None:
        if index == 2:
            old.append(module.model)
            change(module)

    old: list[nn.Module] = []
    seen, module, words = Seen("model.3", schedule=EVERY), module_of(), r"no longer in the model: model\.3\. They were"
    with told(rf"batch 2: RegistrationError: layers .* {words}[\s\S]*disabled from now on", RuntimeWarning):
        run(stage, trainer(OnEvent(event, third), HookCallback(detectors=seen)), module, data_of())
    assert [batch for _, _, batch, _, _ in seen.calls] == [0, 1]
    assert handles(module) == handles(old[0]) == {}

    edit, module = FunctionController("model.3", lambda x: x + 1, schedule=EVERY), module_of()
    with pytest.raises(HookError, match=words) as caught:
        run(stage, trainer(OnEvent(event, third), HookCallback(controllers=edit)), module, data_of())
    assert isinstance(caught.value.original_error, RegistrationError)
    assert handles(module) == handles(old[1]) == {}


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.documents("reliability/a-hooked-layer-is-wrapped-during-a-run")
def test_a_wrapper_around_a_hooked_layer_is_no_matter() -> None:
    def wrap(trainer: pl.Trainer, module: Any, index: int) -> None:
        if index == 2:
            module.model = Wrapper(module.model)

    seen, module = Seen("model.3", schedule=EVERY), module_of()
    fit(module, data_of(), OnEvent("on_train_batch_start", wrap), HookCallback(detectors=seen))
    assert seen.batches("train") == [0, 1, 2, 3, 4] and handles(module) == {}


@pytest.mark.documents(
    "compatibility/a-dtype-that-changes-between-runs/detectors",
    "compatibility/a-dtype-that-changes-between-runs/controllers",
    "compatibility/a-dtype-that-changes-between-runs/logging",
    "reliability/the-model-changes-its-dtype-between-runs",
)
def test_the_model_changes_its_dtype_between_runs() -> None:
    """As between devices, buffers are made anew for what is there when a run starts."""
    watch, module = watching(), module_of().eval()
    steer = FunctionController("model.0", lambda x: x * 2)
    watch.controllers.append(steer)
    data = data_of()
    single = run("predict", trainer(watch), module, data)
    module.double()
    double = run("predict", trainer(watch), module, [(x.double(), y) for x, y in data])
    assert torch.allclose(torch.cat(single).double(), torch.cat(double), atol=1e-5)
    values = [row.value for row in watch.history() if row.name == "mean"]
    assert len(values) == 2 and values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.documents("reliability/handles-of-others-are-on-the-model")
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_foreign_handles_stay_whatever_fails(stage: str) -> None:
    module = module_of()
    module.model[3].register_forward_hook(lambda *call: None)
    before = handles(module)
    with pytest.raises(ArithmeticError):
        run(stage, trainer(watching(), OnEvent(EVENTS[stage][4], crash)), module, data_of())
    assert_same_handles(before, module)
