"""Alarms where numbers are not plain float32: autocast, a gradient scaler, half precision, sharded weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.alarms import Action, Alarm, NonFinite, Rule, Snapshot, Threshold, default_alarms, replay
from mi_crow_lightning.alarms._watch import gradient_norm
from tests.alarms.test_alarms import Faulty
from tests.alarms.test_evaluations import Loss
from tests.callback.runs import Trace, assert_bit_equal, data_of, fingerprint, fit, module_of, told
from tests.models import KINDS


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh of this process alone."""
    file = tmp_path_factory.mktemp("mesh") / "store"
    distributed.init_process_group("gloo", store=distributed.FileStore(str(file), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def scaled() -> dict[str, Any]:
    """fp16 with a gradient scaler on a CPU, which the Trainer's own argument replaces with bfloat16."""
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))}


@pytest.mark.parametrize("options", [dict(precision="bf16-mixed"), scaled()], ids=["bfloat16", "float16"])
def test_a_layer_that_is_not_finite_under_autocast_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    module = Faulty()
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(NonFinite(), [Snapshot(tmp_path), "stop"]))
    with told("a snapshot of the pass is in", RuntimeWarning):
        runner = fit(module, data_of(), watch, **options)
    (firing,) = watch.fired()
    assert (firing.layer, firing.step, firing.batch_idx, firing.before_step) == ("model.3", 3, 3, True)
    assert runner.global_step == 4 and all(bool(one.isfinite().all()) for one in module.state_dict().values())
    (file,) = tmp_path.iterdir()
    assert replay(file, Faulty()).same


@pytest.mark.documents("reliability/a-gradient-overflows-under-a-gradient-scaler-with-a-nonfinite-alarm")
def test_gradients_that_overflow_are_left_to_the_scaler_and_counted_by_nobody_else() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(NonFinite(), ["log", "stop"]))
    options = {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}
    runner = fit(Faulty(backward=True), data_of(), watch, **options)
    assert watch.fired() == [] and runner.global_step == 5
    assert scaler.get_scale() == 2.0**15  # the step was left out


@pytest.mark.parametrize("kind", ["mlp", "llama"])
@pytest.mark.parametrize("options", [dict(precision="bf16-mixed"), scaled], ids=["bfloat16", "float16"])
def test_a_run_under_autocast_is_bit_identical(options: Any, kind: str, tmp_path: Path) -> None:
    found = []
    for alarms in ([], [*default_alarms(), Alarm(NonFinite(), Snapshot(tmp_path))]):
        torch.manual_seed(1)
        module, trace = module_of(kind), Trace()
        watch = HookCallback(ActivationStatistics(KINDS[kind][2]), alarms=alarms)
        given = options if isinstance(options, dict) else options()
        runner = fit(module, data_of(kind), trace, watch, max_epochs=2, accumulate_grad_batches=2, **given)
        found.append((trace.losses, trace.states, fingerprint(module, runner)))
        assert watch.fired() == []
    assert_bit_equal(*found)


def model_of(*weights: Tensor) -> nn.Module:
    made = nn.ParameterList([nn.Parameter(torch.zeros_like(one)) for one in weights])
    for parameter, weight in zip(made, weights, strict=True):
        parameter.grad = weight
    return made


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
def test_the_norm_of_plain_and_sharded_gradients_together(mesh: Any, value: float) -> None:
    torch.manual_seed(0)
    plain, whole, shard = (torch.randn(3, 4) for _ in range(3))
    shard[1, 2] = value
    expected = torch.cat([plain, whole, shard]).double().norm()
    sharded = [distribute_tensor(one, mesh, [how]) for one, how in ((whole, Replicate()), (shard, Shard(0)))]
    for order in ((plain, *sharded), (*sharded, plain)):
        found = gradient_norm(model_of(*order))
        assert found is not None and type(found) is Tensor and found.shape == ()
        torch.testing.assert_close(found.double(), expected, equal_nan=True, rtol=1e-6, atol=0)


def test_the_norm_of_gradients_over_two_meshes(mesh: Any) -> None:
    other = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
    gradients = [distribute_tensor(torch.full((2,), 2.0), one, [Shard(0)] * one.ndim) for one in (mesh, other)]
    assert gradient_norm(model_of(*gradients)) == pytest.approx(4.0)


def test_the_norm_of_gradients_in_float16_is_beyond_float16() -> None:
    """Each of them is finite, and so is their norm: no alarm may say that it is not."""
    large = torch.full((8,), 60_000.0, dtype=torch.float16)
    assert gradient_norm(model_of(large, torch.ones(2))) == pytest.approx(60_000 * 8**0.5, rel=1e-3)
    assert gradient_norm(model_of(large.clone().fill_(math.inf))) == math.inf
    assert gradient_norm(model_of()) is None


def test_a_rule_on_the_loss_reads_it_without_the_scale() -> None:
    """Under a gradient scaler too, where the loss that backward runs on is multiplied."""
    found = []
    for options in ({}, scaled()):
        rule, module = Loss(), module_of()
        watch = HookCallback(ActivationStatistics("model.0"), alarms=Alarm(rule, "log"))
        module.model[2].p = 0.0  # type: ignore[index, union-attr]
        fit(module, data_of(), watch, accumulate_grad_batches=2, **options)
        found.append(rule.seen)
    assert len(found[0]) == 3 and found[1] == pytest.approx(found[0], rel=1e-2)  # the model computes in float16


@pytest.mark.parametrize("rule", [NonFinite(), Threshold("loss", above=0.0)], ids=["not finite", "loss"])
@pytest.mark.parametrize("made", ["AdamW", "fused", "SGD"])
def test_a_stop_under_a_scaler_leaves_the_step_out(made: str, rule: Rule) -> None:
    """A fused optimizer unscales gradients itself, in the step: its scaler fails where there are none."""
    optimizers: dict[str, Any] = {
        "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1),
        "fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
        "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
    }
    kept: list[Any] = []

    class Keep(Action):
        def act(self, firing: Any, run: Any) -> None:
            kept.append({name: one.clone() for name, one in run.module.state_dict().items()})

    module = Faulty()
    module.configure_optimizers = lambda: optimizers[made](module.parameters())  # type: ignore[method-assign]
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(rule, [Keep(), "stop"]))
    fit(module, data_of(), watch, **scaled())
    assert len(watch.fired()) == 1
    assert_bit_equal(kept[0], dict(module.state_dict()))
