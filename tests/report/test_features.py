"""What a run uses: each fact of the Trainer found in a real run, and what is said of it true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy

from mi_crow_lightning import ActivationStatistics, LayerActivationDetector
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.report import Feature, Support, trainer_features
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of, run
from tests.models import Module, mlp, trainer
from tests.report.reported import DEGRADED, SUPPORTED, UNTESTED, not_used, report_of, watching


def test_a_plain_run_uses_nothing_special() -> None:
    report = report_of("fit")
    assert not_used(report) == {
        "torch.compile",
        "gradient accumulation",
        "gradient checkpointing",
        "PEFT",
        "quantisation",
        "attention kernel",
        "logger",
    }
    assert report.feature("strategy") == Feature("strategy", "SingleDeviceStrategy, 1 process", SUPPORTED)
    assert report.feature("precision") == Feature("precision", "32-true", SUPPORTED)
    with pytest.raises(KeyError, match=r"the report has no feature 'speed'; it has: torch\.compile, strategy"):
        report.feature("speed")


# Compiling: what is told is what happens.


def compiled_whole() -> pl.LightningModule:
    return torch.compile(module_of(), backend="eager")  # type: ignore[return-value]


def compiled_model() -> pl.LightningModule:
    return Module(torch.compile(mlp(), backend="eager"))  # type: ignore[arg-type]


def compiled_in_place() -> pl.LightningModule:
    module = module_of()
    module.compile(backend="eager")
    return module


def compiled_layer(index: int) -> pl.LightningModule:
    module = module_of()
    module.model[index].compile(backend="eager")  # type: ignore[index]
    return module


class Direct(LayerActivationDetector):
    """Asks for the layer's inputs too, so that a graph can neither trace nor call it."""

    def process_activations(self, module: torch.nn.Module, input: tuple[Any, ...], output: Any) -> None:
        super().process_activations(module, input, output)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (compiled_whole, "the LightningModule"),
        (compiled_model, "model"),
        (compiled_in_place, "the LightningModule"),
    ],
)
def test_a_run_that_is_refused_for_what_is_compiled_says_so(make: Callable[[], pl.LightningModule], what: str) -> None:
    watch = watching(Direct("model.3"))
    with pytest.raises(RegistrationError, match=r"'model\.3' lies in .*, which is compiled") as caught:
        fit(make(), data_of(), watch)
    assert watch.report().feature("torch.compile") == Feature("torch.compile", what, Support.REFUSED, str(caught.value))
    assert watch.report().refusals == (str(caught.value),)


@pytest.mark.parametrize("make", [compiled_model, compiled_in_place])
def test_hooks_that_can_be_traced_are_supported(make: Callable[[], pl.LightningModule]) -> None:
    watch = watching(ActivationStatistics("model.3"))
    fit(make(), data_of(), watch)
    feature = watch.report().feature("torch.compile")
    assert feature.support is SUPPORTED and feature.note.startswith("hooks on layers inside are traced")
    assert watch.report().refusals == () and watch.history()


def test_a_compiled_layer_without_a_hook_is_no_obstacle() -> None:
    watch = watching(LayerActivationDetector("model.0"))
    fit(compiled_layer(3), data_of(), watch)
    assert watch.report().feature("torch.compile") == Feature(
        "torch.compile", "model.3", SUPPORTED, "no hooked layer lies inside"
    )
    assert watch.report().refusals == ()


# The Trainer.


def sharded() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


@pytest.mark.parametrize(
    ("strategy", "value", "support"),
    [
        ("auto", "SingleDeviceStrategy, 1 process", SUPPORTED),
        ("ddp", "DDPStrategy, 2 processes", SUPPORTED),
        ("ddp_spawn", "DDPStrategy, 2 processes", DEGRADED),
        ("ddp_fork", "DDPStrategy, 2 processes", DEGRADED),
        ("ddp_notebook", "DDPStrategy, 2 processes", DEGRADED),
        (sharded, "ModelParallelStrategy, 2 processes", SUPPORTED),
    ],
)
def test_strategies(strategy: Any, value: str, support: Support) -> None:
    made = strategy() if callable(strategy) else strategy
    feature = trainer_features.strategy(trainer(strategy=made, devices=1 if strategy == "auto" else 2))
    assert (feature.value, feature.support) == (value, support)
    assert bool(feature.note) == (strategy != "auto")


class OwnStrategy(SingleDeviceStrategy):
    pass


def test_a_strategy_that_no_test_runs_is_untested() -> None:
    feature = trainer_features.strategy(trainer(strategy=OwnStrategy("cpu")))
    assert feature == Feature("strategy", "OwnStrategy, 1 process", UNTESTED)


def half_amp() -> dict[str, Any]:
    """Lightning makes "16-mixed" bfloat16 on a CPU, unless it is given the plugin itself."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]}


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: {"precision": name} for name in trainer_features._PRECISIONS},  # type: ignore[misc]
    "16-mixed": half_amp,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_supported_precision_is_told_and_kept_bit_identical(precision: str) -> None:
    def left(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        module = module_of()
        return fingerprint(module, fit(module, data_of(), *callbacks, **PRECISIONS[precision]()))

    watch = watching()
    assert_bit_equal(left(), left(watch))
    assert len({row.step for row in watch.history()}) == 5
    told = watch.report().feature("precision")
    assert (told.value, told.support) == (precision, SUPPORTED)
    assert bool(told.note) == (precision not in ("32-true", "64-true"))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_gradient_accumulation_is_told_where_there_are_gradients(stage: str) -> None:
    feature = report_of(stage, accumulate_grad_batches=3).feature("gradient accumulation")
    if stage == "fit":
        assert (feature.value, feature.support) == ("3 batches a step", SUPPORTED)
    else:
        assert feature == Feature.unused("gradient accumulation")


@pytest.mark.parametrize(
    ("scalars", "tensorboard", "csv"),
    [
        ("all", "all numbers, and histograms", "all numbers, and no histograms"),
        (
            "summary",
            "min, median and max over the layers; each number is in the event file",
            "min, median and max over the layers, and no histograms",
        ),
        (
            ["mean"],
            "mean; each number is in the event file",
            "mean, and no histograms",
        ),
        ("none", "no numbers; each number is in the event file", "no numbers, and no histograms"),
    ],
)
def test_each_logger_is_told_with_what_it_shows(tmp_path: Any, scalars: Any, tensorboard: str, csv: str) -> None:
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")]
    watch = watching(ActivationStatistics("model.*", statistics=["mean"]), scalars=scalars)
    run("validate", trainer(watch, logger=loggers), module_of(), data_of())
    assert [feature for feature in watch.report().features if feature.name == "logger"] == [
        Feature("logger", "TensorBoardLogger", SUPPORTED, tensorboard),
        Feature("logger", "CSVLogger", DEGRADED, csv),
    ]
    written = (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().partition("\n")[0]
    found = {tag.rpartition("/")[2] for tag in written.split(",") if tag.startswith("activations")}
    assert (
        found
        == {
            "all": {f"model.{i}" for i in range(6)},
            "summary": {"min", "median", "max"},
            "none": set(),
        }[scalars if isinstance(scalars, str) else "all"]
    )


def test_a_logger_that_shows_the_main_statistics_is_told(tmp_path: Any) -> None:
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")]
    watch = watching(ActivationStatistics("model.*"))
    run("validate", trainer(watch, logger=loggers), module_of(), data_of())
    assert [feature for feature in watch.report().features if feature.name == "logger"] == [
        Feature(
            *("logger", "TensorBoardLogger", SUPPORTED),
            "the main statistics, and histograms; each number is in the event file",
        ),
        Feature("logger", "CSVLogger", DEGRADED, "the main statistics, and no histograms"),
    ]


def test_a_logger_that_keeps_nothing_is_told() -> None:
    feature = report_of("validate", logger=True, fast_dev_run=True).feature("logger")
    assert (feature.value, feature.support) == ("DummyLogger", DEGRADED)


@pytest.mark.parametrize(
    ("choice", "value", "note"),
    [
        (in_numba.Choice(lambda *activation: None), "by numba", "compiled"),
        (in_numba.Choice(None, "it is off"), "by numpy", "numba is several times faster: it is off"),
    ],
)
def test_what_measures_statistics(
    choice: in_numba.Choice, value: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_numba, "choice", lambda: choice)
    assert report_of("predict").feature("CPU statistics") == Feature("CPU statistics", value, SUPPORTED, note)


def test_nothing_measures_where_no_statistics_are_watched() -> None:
    watch = watching(LayerActivationDetector("block:0"))
    run("predict", trainer(watch), module_of("mlp"), data_of("mlp"))
    assert "CPU statistics" not in {feature.name for feature in watch.report().features}
