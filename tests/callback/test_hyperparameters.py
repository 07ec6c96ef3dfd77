"""The settings of hooks among the hyperparameters of a run: beside the module's, and never in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    ScaleController,
    Schedule,
    SteeringController,
    SteeringVector,
)
from mi_crow_lightning.report.hook_settings import settings_of
from mi_crow_lightning.vectors.content import content_hash
from tests.callback.runs import STAGES, OnEvent, data_of, module_of, run, told
from tests.models import Module, trainer

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

EVER = Schedule()


def hooked(**options: Any) -> HookCallback:
    half = ScaleController("model.0", 0.5, hook_id="half", schedule=EVER)
    watch = ActivationStatistics("model.*", statistics=["rms"], name=options.get("name"))
    return HookCallback(watch, half, **options)


OURS = {"hooks/0/class": "ScaleController", "hooks/0/factor": 0.5, "hooks/1/statistics": "rms"}


class Saving(Module):
    """A module that keeps its hyperparameters, as most do."""

    def __init__(self, lr: float = 0.1, name: str = "mine") -> None:
        super().__init__(module_of().model)
        self.save_hyperparameters()


def session(folder: Path) -> dict[str, Any]:
    """The values that TensorBoard's page HParams shows of a run; empty if it shows none."""
    from tensorboard.plugins.hparams import metadata

    log = EventAccumulator(str(folder)).Reload()
    content = log.summary_metadata.get(metadata.SESSION_START_INFO_TAG)
    if content is None:
        return {}
    info = metadata.parse_session_start_info_plugin_data(content.plugin_data.content)
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}


def in_file(folder: Path) -> dict[str, Any]:
    return dict(load_hparams_from_yaml(folder / "hparams.yaml"))


def logged(stage: str, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> TensorBoardLogger:
    logger = options.pop("logger")
    run(stage, trainer(*callbacks, logger=logger, **options), module, data_of())
    return logger  # type: ignore[no-any-return]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", [Saving, module_of])
def test_tensorboard_shows_them_beside_those_of_the_module(stage: str, kind: Any, tmp_path: Path) -> None:
    logger = logged(stage, kind(), hooked(), logger=TensorBoardLogger(tmp_path))
    theirs = {"lr": 0.1, "name": "mine"} if kind is Saving else {}
    for found in (session(Path(logger.log_dir)), in_file(Path(logger.log_dir))):
        assert found.items() >= {**OURS, **theirs}.items()
        assert {name for name in found if not name.startswith("hooks/")} == theirs.keys()
    scalars = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
    assert ("hp_metric" in scalars) == (kind is Saving)  # Lightning's own, as without hooks


def logs(params: dict[str, Any], metrics: dict[str, float]) -> Any:
    def function(runner: pl.Trainer, module: pl.LightningModule, index: Any) -> None:
        assert isinstance(runner.logger, TensorBoardLogger)
        runner.logger.log_hyperparams(params, metrics)

    return function


@pytest.mark.documents("reliability/hyperparameters-of-your-own-go-to-tensorboard-by-log-hyperparams")
@pytest.mark.parametrize("event", ["on_fit_start", "on_train_start", "on_train_batch_end", "on_fit_end"])
@pytest.mark.parametrize(("kind", "own"), [(module_of, True), (module_of, False), (Saving, False)])
def test_hyperparameters_that_a_user_logs_are_those_that_tensorboard_shows(
    event: str, kind: Any, own: bool, tmp_path: Path
) -> None:
    """As Lightning's documentation says, with ``default_hp_metric=False`` where it would log a set of its own."""
    theirs = OnEvent(event, logs({"width": 32}, {"hp/accuracy": 0.75}))
    logger = TensorBoardLogger(tmp_path, default_hp_metric=own)
    logged("fit", kind(), theirs, hooked(), logger=logger)
    assert session(Path(logger.log_dir)) == {"width": 32}
    scalars = EventAccumulator(logger.log_dir).Reload()
    assert [event.value for event in scalars.Scalars("hp/accuracy")][-1] == 0.75
    if event == "on_fit_start":
        assert in_file(Path(logger.log_dir)).items() >= {**OURS, "width": 32}.items()


def test_hyperparameters_that_a_user_logs_before_the_run_stay_too(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"width": 32}, {"hp/accuracy": 0.75})
    logged("fit", module_of(), hooked(), logger=logger)
    assert session(Path(logger.log_dir)) == {"width": 32}


def test_without_a_set_of_its_own_a_logger_gets_none(tmp_path: Path) -> None:
    logger = logged("fit", module_of(), hooked(), logger=TensorBoardLogger(tmp_path, default_hp_metric=False))
    assert session(Path(logger.log_dir)) == {} and in_file(Path(logger.log_dir)).items() >= OURS.items()


def test_a_run_that_crashes_is_shown_too(tmp_path: Path) -> None:
    def crash(*event: Any) -> None:
        raise ArithmeticError("crash")

    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(ArithmeticError):
        logged("fit", module_of(), hooked(), OnEvent("on_train_batch_start", crash), logger=logger)
    assert session(Path(logger.log_dir)).items() >= OURS.items()


@pytest.mark.parametrize(
    ("watch", "options"),
    [
        (lambda: hooked(log_hyperparams=False), {}),
        (hooked, {"enable_autolog_hparams": False}),
        (lambda: hooked(dry_run=True), {}),
        (HookCallback, {}),
    ],
)
def test_they_can_be_left_out(watch: Any, options: dict[str, Any], tmp_path: Path) -> None:
    logger, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")
    run("fit", trainer(watch(), logger=[logger, table], **options), Saving(), data_of())
    wanted = {} if options else {"lr", "name"}
    assert set(session(Path(logger.log_dir))) == set(wanted)
    for folder in (logger.log_dir, table.log_dir):
        found = in_file(Path(folder)) if Path(folder, "hparams.yaml").exists() else {}
        assert set(found) == set(wanted)


def test_csv_has_both_in_its_file(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path)
    run("fit", trainer(hooked(), logger=table), Saving(), data_of())
    assert in_file(Path(table.log_dir)).items() >= {**OURS, "lr": 0.1, "name": "mine"}.items()


def test_checkpoints_hold_what_the_module_saved_and_no_more(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_train_steps=1)
    module, logger = Saving(), TensorBoardLogger(tmp_path)
    run("fit", trainer(hooked(), keep, logger=logger, enable_checkpointing=True), module, data_of())
    (file, *_) = (tmp_path / "kept").glob("*.ckpt")
    kept = torch.load(file, weights_only=False)["hyper_parameters"]
    assert dict(kept) == {"lr": 0.1, "name": "mine"} == dict(module.hparams) == dict(module.hparams_initial)
    assert Saving.load_from_checkpoint(file, hparams_file=f"{logger.log_dir}/hparams.yaml").hparams.lr == 0.1


def test_several_callbacks_are_numbered_together(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")]
    callbacks = [hooked(name="a"), hooked(name="b", log_hyperparams=False), hooked(name="c")]
    run("fit", trainer(*callbacks, logger=loggers), Saving(), data_of())
    for found in (session(Path(loggers[0].log_dir)), in_file(Path(loggers[1].log_dir))):
        classes = {name: value for name, value in found.items() if name.endswith("/class")}
        expected = ["ScaleController", "ActivationStatistics"] * 2
        assert classes == {f"hooks/{i}/class": kind for i, kind in enumerate(expected)}


class Refusing(Logger):
    """A logger of someone else's, which never expected hyperparameters."""

    name, version = "refusing", 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *rest: Any, **named: Any) -> None:
        raise NotImplementedError("no hyperparameters")


@pytest.mark.documents("reliability/a-logger-does-not-take-the-settings-of-hooks")
def test_a_logger_that_takes_none_does_not_end_the_run() -> None:
    with told("Refusing did not take the settings of hooks.*log_hyperparams=False", RuntimeWarning):
        run("fit", trainer(hooked(), logger=Refusing()), module_of(), data_of())
    run("fit", trainer(hooked(log_hyperparams=False), logger=Refusing()), module_of(), data_of())


def test_a_steered_run_can_be_told_from_its_log(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(method="mean_difference", model="tiny", samples={"joy": 24, "calm": 24})
    vector = SteeringVector({"model.0": torch.randn(32)}, metadata={"seed": 3}, **facts)
    vector.save(tmp_path / "joy.safetensors")
    steer = SteeringController(
        ["model.0"], str(tmp_path / "joy.safetensors"), 4.0, schedule=Schedule(stages=["predict", "test"])
    )
    logger = logged("predict", Saving(), HookCallback(controllers=steer), logger=TensorBoardLogger(tmp_path))
    found = session(Path(logger.log_dir))
    assert {name.removeprefix("hooks/0/"): value for name, value in found.items() if "hooks" in name} == {
        "class": "SteeringController",
        "layers": "model.0",
        "schedule": "Schedule(stages=['predict', 'test'])",
        "tokens": "all",
        "strength": 4.0,
        "vector/hash": content_hash(vector),
        "vector/norm": pytest.approx(vector.norms()["model.0"]),
        "vector/file": str(tmp_path / "joy.safetensors"),
        "vector/method": "mean_difference",
        "vector/model": "tiny",
        "vector/samples": '{"joy": 24, "calm": 24}',
        "vector/metadata": '{"seed": 3}',
    }


@pytest.mark.parametrize(
    ("strength", "shown"),
    [
        (2, 2.0),
        ("batch", "batch"),
        (torch.tensor([1.0, 2.0]), "[1.0, 2.0]"),
        ({0: 1.0, 1: 2.0}, "{0: 1.0, 1: 2.0}"),
        (abs, "builtins.abs"),
    ],
)
def test_every_kind_of_strength_is_plain(strength: Any, shown: Any) -> None:
    assert settings_of([ScaleController("0", 2.0, strength=strength)])["hooks/0/strength"] == shown


def test_texts_are_bounded_and_another_vector_has_another_hash() -> None:
    many = ScaleController([f"model.{i}" for i in range(1000)], 2.0, hook_id="x" * 200)
    found = settings_of([many, SteeringController("0", torch.ones(4)), SteeringController("0", -torch.ones(4))])
    assert all(len(value) <= 250 for value in found.values() if isinstance(value, str))
    assert found["hooks/1/vector/hash"] != found["hooks/2/vector/hash"]
    assert {type(value) for value in found.values()} <= {str, int, float, bool}
