"""A model that is copied or saved in the middle of a batch, and a run that is terminated in it: nothing is left."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning import HookCallback, SteeringController
from tests.callback.plain_hooks import EVERY
from tests.callback.runs import OnEvent, Seen, data_of, fit, module_of
from tests.metrics.noted import Noted


@pytest.mark.documents(
    "compatibility/copy-deepcopy-model-torch-save-model/detectors",
    "compatibility/copy-deepcopy-model-torch-save-model/controllers",
)
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


@pytest.mark.documents("compatibility/ctrl-c-crash-sigterm/detectors")
def test_a_terminated_run_leaves_nothing() -> None:
    """In a process of its own: without Lightning's handler the signal would end this one."""
    script = [sys.executable, "-W", "ignore", "-c", TERMINATED]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    said = [line for line in done.stdout.splitlines() if line]
    assert said == ["SIGTERMException 3 0 False", "5 0"] * 2, done.stderr[-2000:]
