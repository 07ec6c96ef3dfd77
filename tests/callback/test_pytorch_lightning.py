"""A Trainer of ``pytorch_lightning``, whose classes are copies of those of ``lightning``, is read as one of these."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as ours
import pytest
import pytorch_lightning as theirs
import torch
from torch.utils.data import DataLoader

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule, trainer_facts
from mi_crow_lightning._lightning_classes import is_a, is_just_a
from tests.callback.test_hyperparameters import in_file, session

pytestmark = [  # what pyproject.toml ignores of the other package
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers:UserWarning"),
]

PACKAGE = Path(__file__).parents[2] / "mi_crow_lightning"
CHECKED = ["loggers.TensorBoardLogger", "loggers.MLFlowLogger", "loggers.WandbLogger", "loggers.logger.DummyLogger"]
CHECKED += [f"strategies.{kind}Strategy" for kind in ("SingleDevice", "DDP", "ModelParallel", "FSDP", "DeepSpeed")]
CHECKED += ["strategies.launchers._MultiProcessingLauncher", "overrides.distributed._IndexBatchSamplerWrapper"]
CHECKED += ["LightningModule"]


def named(package: ModuleType, path: str) -> Any:
    module, _, name = f"{package.__name__}.{path}".rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", CHECKED)
def test_a_class_is_that_of_the_other_package(path: str) -> None:
    kind, copy = named(ours, path), named(theirs, path)
    below = type("Below", (copy,), {})
    for cls in (kind, copy, below):
        assert is_a(cls.__new__(cls), kind)
    assert is_just_a(copy.__new__(copy), kind) and not is_just_a(below.__new__(below), kind)
    assert not is_a(copy.__new__(copy), ours.Callback) and not is_a(copy, kind)


def test_another_class_of_that_name_is_not_it() -> None:
    assert not is_a(type("TensorBoardLogger", (), {})(), ours.loggers.TensorBoardLogger)
    fabrics = importlib.import_module("lightning.fabric.loggers").TensorBoardLogger
    assert not is_a(fabrics.__new__(fabrics), ours.loggers.TensorBoardLogger)


def test_no_check_asks_for_the_classes_of_one_package() -> None:
    """Neither by `isinstance` nor by ``type(...) is``."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        of_lightning = {
            one.asname or one.name.partition(".")[0]
            for node in imports
            for one in node.names
            if (getattr(node, "module", None) or one.name).partition(".")[0] == "lightning"
        }
        for node in ast.walk(tree):
            asks = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
            asks |= isinstance(node, ast.Compare) and any(isinstance(one, (ast.Is, ast.IsNot)) for one in node.ops)
            names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} if asks else set()
            found += [f"{path.name}:{node.lineno}" for _ in names & of_lightning]  # type: ignore[attr-defined]
    assert found == []


def run(pl: ModuleType, folder: Path) -> dict[str, Any]:
    """What a fit with hooks shows and writes."""
    demos = importlib.import_module(f"{pl.__name__}.demos.boring_classes")

    class Module(demos.BoringModel):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

    torch.manual_seed(0)
    half = ScaleController("layer", 0.5, schedule=Schedule())
    watch = HookCallback(ActivationStatistics("layer"), controllers=half, log_every_n_steps=1)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    loggers = [pl.loggers.TensorBoardLogger(folder, "", ""), pl.loggers.CSVLogger(folder, "csv", "")]
    trainer = pl.Trainer(callbacks=[watch], logger=loggers, max_steps=2, limit_val_batches=1, **options)
    trainer.fit(Module())
    tried = HookCallback(ActivationStatistics("layer"))
    pl.Trainer(callbacks=[tried], fast_dev_run=True, **options).fit(Module())
    return {
        "features": [*watch.report().features, *tried.report().features],
        "numbers": [(row.tag, row.step, row.value) for row in watch.history()],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "hyperparameters": (in_file(folder), session(folder)),
    }


def test_a_fit_is_the_same_in_both(tmp_path: Path) -> None:
    one, other = (run(package, tmp_path / package.__name__) for package in (ours, theirs))
    assert one == other
    assert {"TensorBoardLogger", "DummyLogger"} <= {feature.value for feature in one["features"]}
    for shown in one["hyperparameters"]:
        assert {"lr": 0.1, "hooks/0/factor": 0.5}.items() <= shown.items()


class Samples(theirs.Callback):
    """Keeps the samples of each batch."""

    def on_predict_batch_end(self, trainer: Any, *_: Any) -> None:
        self.samples = trainer_facts.samples_of_batch(trainer, 0, 0)


@pytest.mark.parametrize("package", [ours, theirs])
def test_samples_and_processes_of_a_trainer_are_known(package: ModuleType) -> None:
    demos, kept = importlib.import_module(f"{package.__name__}.demos.boring_classes"), Samples()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = DataLoader(demos.RandomDataset(32, 4), batch_size=3)
    trainer = package.Trainer(callbacks=[kept], enable_checkpointing=False, **quiet)
    trainer.predict(demos.BoringModel(), data, return_predictions=True)
    assert kept.samples == [0, 1, 2] and not trainer_facts.spawns(trainer)
    spawning = package.Trainer(strategy="ddp_spawn", devices=2, enable_checkpointing=False, **quiet)
    assert trainer_facts.spawns(spawning)
