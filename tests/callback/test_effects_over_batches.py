"""What controllers changed over the batches of an evaluation, against hooks of the test's own around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from mi_crow_lightning import HookCallback, ScaleController, Schedule, SteeringController
from mi_crow_lightning.loggers import HistoryRow, read_compact
from tests.callback.runs import data_of, module_of, run
from tests.callback.test_effects import NAMES, Around, V, near
from tests.callback.test_per_dataloader import LAYER, Two, loaders
from tests.models import trainer

PREFIX = "steering_by_batch"


class AroundBatches(Around):
    """Notes in which batch each call was."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.calls: list[int] = []  # before each batch, and after the last

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append(len(self.made))
        super().on_predict_batch_start(*args, **kwargs)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start

    def of_batch(self, batch: int) -> list[float]:
        """The four quantities of one batch, counted from 1."""
        ends = [*self.calls, len(self.made)]
        return list(self.expected(slice(ends[batch - 1], ends[batch])))


def logged(folder: Path, logger: TensorBoardLogger) -> list[HistoryRow]:
    logger.finalize("success")
    return list(read_compact(logger.log_dir))


def over_batches(rows: list[HistoryRow]) -> dict[tuple[int, str], dict[str, float]]:
    """By batch and place, the quantities by name."""
    found: dict[tuple[int, str], dict[str, float]] = {}
    for row in rows:
        if row.tag.startswith(PREFIX):
            found.setdefault((row.step, row.layer), {})[row.name] = row.value
    return found


@pytest.mark.parametrize("stage", ["predict", "test", "validate"])
def test_each_batch_of_an_evaluation_is_a_point(stage: str, tmp_path: Path) -> None:
    layer, logger = "model.model.layers.1", TensorBoardLogger(tmp_path)
    around = AroundBatches(layer)
    steer = SteeringController(layer, 0.1 * V, 2.0, hook_id="steer", schedule=Schedule())
    watch = HookCallback(controllers=[steer, ScaleController("block:2-3", 1.5, hook_id="scale", schedule=Schedule())])
    run(stage, trainer(watch, around, logger=logger), module_of("llama"), near())
    rows = logged(tmp_path, logger)
    found = over_batches(rows)
    places = {f"steer/{layer}", *(f"scale/model.model.layers.{i}" for i in (2, 3))}
    assert set(found) == {(batch, place) for batch in (1, 2, 3) for place in places}
    for batch in (1, 2, 3):
        quantities = [found[batch, f"steer/{layer}"][name] for name in NAMES]
        assert quantities == pytest.approx(around.of_batch(batch), rel=1e-5)
    # The readings of the whole stage are what they are without.
    assert {row.tag for row in watch.history()} == {row.tag for row in rows if not row.tag.startswith(PREFIX)}
    whole = {row.name: row.value for row in watch.history() if row.layer == f"steer/{layer}"}
    assert [whole[name] for name in NAMES] == pytest.approx(around.expected(), rel=1e-5)
    for name in ("tokens", "fired"):
        assert whole[name] == sum(found[batch, f"steer/{layer}"][name] for batch in (1, 2, 3))


def test_a_fit_has_its_readings_alone(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    steer = SteeringController("block:1", V, hook_id="steer", schedule=Schedule(stages=["train", "validate"]))
    run("fit", trainer(HookCallback(controllers=steer), logger=logger), module_of("llama"), data_of("llama"))
    rows = logged(tmp_path, logger)
    assert over_batches(rows) == {} and {row.stage for row in rows} == {"train", "validate"}


def test_batches_without_the_controller_are_gaps_and_numbers_go_on(tmp_path: Path) -> None:
    class Odd(Schedule):
        def due(self, moment: Any) -> bool:
            return moment.batch_idx % 2 == 1

    logger = TensorBoardLogger(tmp_path)
    watch = HookCallback(controllers=ScaleController("block:1", 3.0, hook_id="scale", schedule=Odd(stages="predict")))
    run("predict", trainer(watch, logger=logger), module_of("llama"), near())
    found = over_batches(logged(tmp_path, logger))
    assert set(found) == {(2, "scale/model.model.layers.1")}
    assert found[2, "scale/model.model.layers.1"]["mean_ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize("apart", [False, True])
def test_dataloaders_together_or_apart(apart: bool, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    watch = HookCallback(controllers=ScaleController(LAYER, 2.0, hook_id="scale"), per_dataloader=apart)
    trainer(watch, logger=logger).predict(Two(), loaders())
    tokens = [(row.tag, row.step, row.value) for row in logged(tmp_path, logger) if row.name == "tokens"]
    tag = f"{PREFIX}_tokens/predict/scale/{LAYER}"
    points = [point for point in tokens if point[0].startswith(PREFIX)]
    # A row of zeros is not changed by its scale: none of these is one.
    if apart:
        first, second = (f"{tag}/dataloader_idx_{index}" for index in (0, 1))
        assert points == [(first, 1, 2), (first, 2, 2), (second, 1, 4), (second, 2, 2)]
    else:
        assert points == [(tag, batch, rows) for batch, rows in ((1, 2), (2, 2), (3, 4), (4, 2))]


def test_without_tensorboard_nothing_is_written_and_the_run_is_the_same() -> None:
    def predicted(*callbacks: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return trainer(*callbacks).predict(Two(), DataLoader(torch.arange(8.0).view(4, 2)))  # type: ignore[arg-type,return-value]

    watch = HookCallback(controllers=ScaleController(LAYER, 2.0))
    with_points = predicted(watch)
    assert all(torch.equal(2 * bare, steered) for bare, steered in zip(predicted(), with_points, strict=True))
    assert {row.step for row in watch.history()} == {4}
