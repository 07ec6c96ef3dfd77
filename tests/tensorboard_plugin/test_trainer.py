"""What a real Trainer logs is what the tab answers: every statistic of every stage, and what controllers changed."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mi_crow_lightning import ActivationStatistics, HookCallback, SteeringController
from mi_crow_lightning.loggers import HistoryRow
from tests.models import WIDTH, Module, llama, loader, token_data
from tests.tensorboard_plugin.wsgi import Log

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

OPTIONS = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}


def numbers_of(log: Log) -> dict[tuple[str, str, int, str], np.float32]:
    """Every number that the tab answers, by stage, statistic, step and layer."""
    found = {}
    (run,) = log.index()["runs"]
    for series in run["statistics"]:
        asked = {key: series[key] for key in ("prefix", "name", "stage")}
        header, arrays = log.unpacked("matrix", run=run["name"], **asked)
        for step, row in zip(arrays["steps"], arrays["values"], strict=True):
            for layer, value in zip(header["layers"], row, strict=True):
                found[series["stage"], f"{series['prefix']}_{series['name']}", int(step), layer] = value
    return found


def key(row: HistoryRow) -> tuple[str, str, int, str]:
    return row.stage, row.tag.partition("/")[0], row.step, row.layer


@pytest.mark.parametrize("scalars", ["none", "all"])
def test_the_tab_answers_the_history_of_a_run(scalars: str, tmp_path: Path) -> None:
    data = token_data(count=12)
    vector = torch.ones(WIDTH)
    callback = HookCallback(
        detectors=[ActivationStatistics("block:*")],
        controllers=[SteeringController("block:1", vector)],
        scalars=scalars,
    )
    logger = TensorBoardLogger(str(tmp_path), "run")
    trainer = pl.Trainer(callbacks=[callback], logger=logger, max_epochs=2, **OPTIONS)
    module = Module(llama())
    trainer.fit(module, loader(data[:8]), loader(data[8:]))
    trainer.predict(module, loader(data[8:]))
    logger.finalize("success")
    answered = numbers_of(Log(tmp_path))
    expected = {key(row): np.float32(row.value) for row in callback.history()}
    assert {row.stage for row in callback.history()} == {"train", "validate", "predict"} and len(expected) > 200
    for place, value in expected.items():
        assert np.array_equal(answered[place], value, equal_nan=True), place
