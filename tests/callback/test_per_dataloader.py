"""HookCallback(per_dataloader=True): each dataloader of an evaluation has its own readings, named as self.log does."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    HookCallback,
    ScaleController,
    Schedule,
)
from mi_crow_lightning.loggers import read_compact, read_compact_histograms
from tests.callback.configured import cli, hook_callbacks, ours, watch
from tests.models import handles, trainer

LAYER = "layer"
FIRST, SECOND = torch.arange(8.0).view(4, 2), torch.arange(12.0).view(6, 2) + 100
MEANS = {0: FIRST.mean().item(), 1: SECOND.mean().item()}
BOTH = torch.cat([FIRST, SECOND]).mean().item()
TAGS = {index: f"activations_mean/val/{LAYER}/dataloader_idx_{index}" for index in (0, 1)}


class Two(pl.LightningModule):
    """Validates, tests and predicts on two dataloaders, and logs the mean of each as we read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self.layer(batch)).mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        rows = torch.cat(batch) if isinstance(batch, (list, tuple)) else batch
        self.layer(rows)
        self.log("own", rows.mean(), batch_size=len(rows))

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        rows: Tensor = self.layer(batch)
        return rows

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), 0.1)


def loaders() -> list[DataLoader[Any]]:
    return [DataLoader(FIRST, batch_size=2), DataLoader(SECOND, batch_size=4)]  # type: ignore[arg-type]


def watching(**options: Any) -> HookCallback:
    detector = ActivationStatistics(LAYER, statistics=["mean", "max"], schedule=Schedule())
    return HookCallback(detectors=[detector], **{"per_dataloader": True, **options})


def means(watch: HookCallback, stage: str = "validate") -> dict[str, float]:
    return {row.tag: row.value for row in watch.history() if row.stage == stage and row.name == "mean"}


def test_each_has_its_own_numbers_under_the_suffix_of_self_log() -> None:
    watch, module = watching(), Two()
    run = trainer(watch)
    run.validate(module, loaders(), verbose=False)
    assert means(watch) == {TAGS[index]: pytest.approx(MEANS[index]) for index in (0, 1)}
    for index in (0, 1):
        assert run.callback_metrics[TAGS[index]] == run.callback_metrics[f"own/dataloader_idx_{index}"]
    assert {row.layer for row in watch.history()} == {LAYER} and not handles(module)


def test_the_report_says_that_they_are_read_apart() -> None:
    watch, usual = watching(), watching(per_dataloader=False)
    for callback in (watch, usual):
        trainer(callback).validate(Two(), loaders(), verbose=False)
    feature = watch.report().feature("dataloaders")
    assert (feature.value, feature.support.value) == ("2 read apart", "supported")
    assert "dataloaders" not in str(usual.report())
    trainer(watch).validate(Two(), loaders()[:1], verbose=False)
    assert watch.report().feature("dataloaders").value == "read apart"


class Deep(Two):
    """As `Two`, with 40 layers: 320 tags, if all that is measured is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(nn.Identity() for _ in range(40)))


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize("apart", [True, False])
def test_the_tags_of_all_dataloaders_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, apart: bool, stage: str
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = HookCallback(detectors=[ActivationStatistics("layer.*")], per_dataloader=apart)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    run, module = trainer(watch, logger=logger, num_sanity_val_steps=1), Deep()
    with caplog.at_level("INFO"):
        if stage == "fit":
            run.fit(module, DataLoader(FIRST, batch_size=2), loaders())  # type: ignore[arg-type]
        else:
            getattr(run, stage)(module, loaders(), verbose=False)
    logger.finalize("success")
    said = [record.getMessage() for record in caplog.records if "tags a stage" in record.message]
    assert [text.partition(" are more")[0] for text in said] == ["HookCallback: 640 tags a stage"] * apart
    shown = {tag for tag in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] if "activations_mean/" in tag}
    short = {"fit": "val", "validate": "val", "test": "test"}[stage]
    ends = [f"/dataloader_idx_{index}" for index in (0, 1)] if apart else [""]
    layers = [f"layer.*/{word}" for word in ("min", "median", "max")] if apart else [f"layer.{i}" for i in range(40)]
    evaluated = {f"activations_mean/{short}/{layer}{end}" for layer in layers for end in ends}
    trained = {f"activations_mean/layer.{i}" for i in range(40)} if stage == "fit" else set()
    assert shown == evaluated | trained
    assert (
        watch.report().feature("logger").note.startswith("the main" if stage == "fit" or not apart else "min, median")
    )


def test_by_lightning_cli() -> None:
    run = cli(watch(detectors=ours("ActivationStatistics", LAYER, statistics=["mean"]), per_dataloader=True))
    (callback,) = hook_callbacks(run)
    run.trainer.validate(Two(), loaders(), verbose=False)  # one batch of each, as the configuration says
    wanted = {TAGS[0]: FIRST[:2].mean().item(), TAGS[1]: SECOND[:4].mean().item()}
    assert means(callback) == pytest.approx(wanted)


def test_by_default_one_reading_covers_all() -> None:
    watch = watching(per_dataloader=False)
    trainer(watch).validate(Two(), loaders(), verbose=False)
    assert means(watch) == {f"activations_mean/val/{LAYER}": pytest.approx(BOTH)}


@pytest.mark.parametrize("how", ["one dataloader", "a batch of each at once"])
def test_where_they_do_not_run_in_turn_the_tags_are_the_usual_ones(how: str) -> None:
    one = how == "one dataloader"
    given = loaders()[:1] if one else CombinedLoader(loaders(), mode="min_size")
    watch, module = watching(), Two()
    run = trainer(watch)
    run.validate(module, given, verbose=False)
    assert list(means(watch)) == [f"activations_mean/val/{LAYER}"]
    assert "own" in run.callback_metrics  # Lightning, too, adds no suffix here


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_in_test_and_predict(stage: str) -> None:
    watch = watching()
    run = trainer(watch)
    run.test(Two(), loaders(), verbose=False) if stage == "test" else run.predict(Two(), loaders())
    tags = [f"activations_mean/{stage}/{LAYER}/dataloader_idx_{index}" for index in (0, 1)]
    assert means(watch, stage) == {tags[index]: pytest.approx(MEANS[index]) for index in (0, 1)}
    steps = {row.tag: row.step for row in watch.history()}
    assert [steps[tag] for tag in tags] == [2, 4]  # batches so far


def test_in_a_fit_training_keeps_its_tags_and_other_callbacks_find_the_numbers(tmp_path: Path) -> None:
    watch, stop = watching(), EarlyStopping(TAGS[1], mode="min", patience=1)
    best = ModelCheckpoint(tmp_path, monitor=TAGS[0], filename="best")
    run = trainer(watch, stop, best, max_epochs=4, enable_checkpointing=True)
    run.fit(Two(), DataLoader(FIRST, batch_size=2), loaders())  # type: ignore[arg-type]
    assert stop.stopped_epoch == 1 and best.best_model_score == pytest.approx(MEANS[0])
    rows = [row for row in watch.history() if row.stage == "validate" and row.name == "mean"]
    assert [(row.step, row.tag) for row in rows] == [(step, TAGS[index]) for step in (1, 3) for index in (0, 1)]
    assert {row.tag for row in watch.history() if row.stage == "train"} == {
        f"activations_{name}/{LAYER}" for name in ("mean", "max")
    }


class OnlyFirst(Schedule):
    """A schedule of one dataloader."""

    def due(self, moment: Any) -> bool:
        return moment.dataloader_idx == 0


def test_a_dataloader_in_which_a_hook_was_off_has_no_reading() -> None:
    watch = HookCallback(
        detectors=[ActivationStatistics(LAYER, statistics=["mean"], schedule=OnlyFirst())], per_dataloader=True
    )
    trainer(watch).validate(Two(), loaders(), verbose=False)
    assert means(watch) == {TAGS[0]: pytest.approx(MEANS[0])}


@pytest.mark.parametrize("limit", [1, 2])
def test_after_a_run_that_broke_off_the_next_begins_with_the_first(limit: int) -> None:
    class Breaks(pl.Callback):
        def on_validation_batch_end(self, run: Any, module: Any, outputs: Any, batch: Any, *place: int) -> None:
            if place[-1] == 1 and len(place) == 2:
                raise KeyError("broken off")

    watch = watching()
    with pytest.raises(KeyError):
        trainer(watch, Breaks()).validate(Two(), loaders(), verbose=False)
    before = len(watch.history())
    trainer(watch, limit_val_batches=limit).validate(Two(), loaders(), verbose=False)
    found = {row.tag: row.value for row in watch.history()[before:] if row.name == "mean"}
    rows = {0: FIRST[: 2 * limit], 1: SECOND[: 4 * limit]}
    assert found == {TAGS[index]: pytest.approx(rows[index].mean().item()) for index in (0, 1)}


def test_what_controllers_change_is_counted_for_each_and_in_all() -> None:
    steer = ScaleController(LAYER, factor=2, hook_id="twice", schedule=Schedule())
    watch = HookCallback(controllers=[steer], per_dataloader=True)
    trainer(watch).validate(Two(), loaders(), verbose=False)
    found = {row.tag: row.value for row in watch.history() if row.name == "tokens"}
    assert sorted(found) == [f"steering_tokens/val/twice/{LAYER}/dataloader_idx_{index}" for index in (0, 1)]
    (effect,) = watch.effects()
    assert sum(found.values()) == effect.tokens and min(found.values()) > 0


@pytest.mark.parametrize("scalars", ["all", "summary", "none"])
def test_tensorboard_shows_and_keeps_both(tmp_path: Path, scalars: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    detector = ActivationStatistics(LAYER, statistics=["mean"])
    watch = HookCallback(detectors=[detector], scalars=scalars, per_dataloader=True)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer(watch, logger=logger).validate(Two(), loaders(), verbose=False)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    shown = {tag: values for tag, values in curves.items() if tag.startswith("activations_mean")}
    assert shown == ({} if scalars == "none" else {TAGS[index]: [pytest.approx(MEANS[index])] for index in (0, 1)})
    kept = list(read_compact(tmp_path))
    assert {row.tag: row.value for row in kept} == {TAGS[index]: pytest.approx(MEANS[index]) for index in (0, 1)}
    assert {row.layer for row in kept} == {LAYER}
    pictures = {row.tag: sum(row.counts) for row in read_compact_histograms(tmp_path)}
    assert pictures == {f"activations/val/{LAYER}/dataloader_idx_{index}": (8, 12)[index] for index in (0, 1)}


def test_other_loggers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(watching(), logger=logger).validate(Two(), loaders(), verbose=False)
    logger.save()
    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert TAGS[0] in text and TAGS[1] in text


def test_a_detector_of_a_whole_stage_is_refused() -> None:
    contrast = ContrastDetector(LAYER, stage="predict")
    with pytest.raises(ValueError, match="put it into another HookCallback, without per_dataloader"):
        HookCallback(detectors=[contrast], per_dataloader=True)
    with pytest.raises(TypeError, match="per_dataloader='yes' must be True or False"):
        HookCallback(detectors=[], per_dataloader="yes")  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def evaluate_on(rank: int, port: int, folder: str) -> None:
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    rows = [(FIRST[:1], SECOND), (FIRST[1:], SECOND[:0].new_full((2, 2), 7.0))][rank]  # uneven, in both dataloaders
    given = [DataLoader(part, batch_size=1) for part in rows]  # type: ignore[arg-type]
    watch = watching()
    run = trainer(watch, devices=2, strategy="ddp", use_distributed_sampler=False)
    run.validate(Two(), given, verbose=False)
    torch.save(means(watch), Path(folder, f"{rank}.pt"))


def test_ranks_read_each_dataloader_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(evaluate_on, (free_port(), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    second = torch.cat([SECOND, torch.full((2, 2), 7.0)])
    wanted = {TAGS[0]: pytest.approx(FIRST.mean().item()), TAGS[1]: pytest.approx(second.mean().item())}
    assert found == [wanted, wanted]
