"""nn.DataParallel runs copies in threads: hooks inside are refused; with one device or none it makes no copies."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from torch import nn
from torch.nn.functional import cross_entropy

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks import Layers
from tests.models import loader, mlp, trainer, vector_data
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched


def module_of(devices: int) -> Runs:
    wrapped = nn.DataParallel(mlp())
    wrapped.device_ids = list(range(devices))  # as it finds them on a machine that has so many
    return Runs(wrapped, lambda m, batch: cross_entropy(m(batch[0]), batch[1]), lambda m, batch: m(batch[0]))


REFUSED = (
    r"layer 'model.1' is inside nn.DataParallel, which runs copies of it in several threads, and hooks would mix them "
    r"up: leave nn.DataParallel out, and let the Trainer run one process per device with strategy='ddp'"
)


@pytest.mark.documents(
    "compatibility/nn-dataparallel-on-several-devices/detectors",
    "compatibility/nn-dataparallel-on-several-devices/controllers",
)
@pytest.mark.parametrize("devices", [2, 8])
def test_layers_of_copies_are_refused_at_the_start(devices: int) -> None:
    steer = ScaleController("model.1", 2.0, schedule=Schedule())
    for callback in (HookCallback(ActivationStatistics("model.1")), HookCallback(controllers=steer)):
        with pytest.raises(RegistrationError, match=REFUSED):
            trainer(callback).validate(module_of(devices), loader(vector_data(4)), verbose=False)
    with pytest.raises(RegistrationError, match=REFUSED.replace("model.1", "1")):
        Layers(module_of(devices).model).register_hook("1", ActivationStatistics())


class OneDeviceAgain(pl.Callback):
    """After the dry run was told of two devices: there are none to run on."""

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model.device_ids = []


def test_a_dry_run_reports_it() -> None:
    watch = HookCallback(ActivationStatistics("model.1"), dry_run=True)
    trainer(watch, OneDeviceAgain()).predict(module_of(2), loader(vector_data(4)))
    feature = watch.report().feature("nn.DataParallel")
    assert (feature.value, feature.support.value) == ("2 devices", "refused")
    assert feature.note == "hooks on the layers inside are refused: use the Trainer's strategy='ddp' instead"
    assert "is inside nn.DataParallel" in watch.report().refusals[0]


def test_without_copies_it_is_a_wrapper_like_others() -> None:
    layers = {"model.1": "model.module.1", "model.3": "model.module.3"}
    watch = assert_watched(lambda: module_of(0), vector_data(8), layers)
    assert_steered(lambda: module_of(0), vector_data(8), "model.1", "model.module.1")
    assert watch.report().feature("nn.DataParallel").support.value == "supported"
