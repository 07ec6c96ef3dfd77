"""A dry run: everything is told, nothing is attached, and not a bit changes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from tests.callback.runs import (
    BATCH_EVENT,
    STAGES,
    Seen,
    Trace,
    assert_bit_equal,
    data_of,
    fingerprint,
    fit,
    module_of,
    run,
)
from tests.models import WIDTH, assert_same_handles, handles, trainer


def hooks() -> dict[str, Any]:
    """Hooks that would be on in every stage; the controller would change every number."""
    return dict(
        detectors=[ActivationStatistics("model.*", schedule=Schedule()), LayerActivationDetector("model.0", name="x")],
        controllers=[FunctionController("model.2", lambda x: x + 1, schedule=Schedule())],
    )


def left_by(stage: str, *callbacks: pl.Callback) -> dict[str, Any]:
    pl.seed_everything(7, verbose=False)
    module, trace = module_of(), Trace()
    runner = trainer(*callbacks, trace)
    result = run(stage, runner, module, data_of())
    metrics = {name: value.clone() for name, value in runner.callback_metrics.items()}
    return {**fingerprint(module, runner), "losses": trace.losses, "metrics": metrics, "result": result}


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_is_bit_identical_to_one_without_the_callback(stage: str) -> None:
    watch = HookCallback(**hooks(), dry_run=True)
    bare = left_by(stage)
    assert_bit_equal(bare, left_by(stage, watch))
    assert watch.history() == []
    assert watch.detectors[1].get_captured() is None  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):  # the same hooks, for real, are seen by this comparison
        assert_bit_equal(bare, left_by(stage, HookCallback(**hooks())))


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_attached_while_batches_run(stage: str) -> None:
    module, seen = module_of(), []
    before = handles(module)

    def look(*_: Any) -> None:
        seen.append(True)
        assert_same_handles(before, module)

    step = getattr(module, BATCH_EVENT[stage])
    setattr(module, BATCH_EVENT[stage], lambda batch, batch_idx: (look(), step(batch, batch_idx))[1])
    watch = HookCallback(**hooks(), dry_run=True)
    run(stage, trainer(watch), module, data_of())
    assert len(seen) == 5
    assert not any(hook.registered for hook in (*watch.detectors, *watch.controllers))


def test_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = HookCallback(**hooks(), dry_run=True)
    with caplog.at_level(logging.INFO):
        fit(module_of(), data_of(), watch, max_epochs=2)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "mi_crow_lightning"]
    assert said == str(watch.report())
    assert said.startswith("HookCallback(dry_run=True) in fit: 3 hooks on 6 layers, and nothing is attached.\n")


def test_it_tells_what_a_real_run_would() -> None:
    reports = []
    for dry_run in (False, True):
        watch = HookCallback(
            [ActivationStatistics("block:*")],
            [SteeringController("block:2", vector=torch.ones(WIDTH), strength=2.0)],
            dry_run=dry_run,
        )
        run("predict", trainer(watch, limit_predict_batches=1), module_of("llama"), data_of("llama"))
        reports.append(watch.report())
    real, dry = reports
    assert (real.hooks, real.layers, real.features) == (dry.hooks, dry.layers, dry.features)
    assert (real.dry_run, dry.dry_run) == (False, True)


class Whole(Seen):
    """Gets the layer's inputs and output, so that a graph can neither trace nor call it."""

    def process_activations(self, module: Any, args: Any, output: Any) -> None:
        super().process_activations(module, args, output)


def test_everything_that_would_be_refused_is_told_at_once_and_the_run_goes_on() -> None:
    module = module_of()
    module.model.compile(backend="eager")
    twice = [ActivationStatistics("model.0"), ActivationStatistics("model.0")]
    detectors = [Seen("model.three", hook_id="misspelt"), Whole("model.3", hook_id="compiled"), *twice]
    watch = HookCallback(detectors, dry_run=True)
    assert len(run("predict", trainer(watch), module, data_of())) == 5
    misspelt, compiled, shared = watch.report().refusals
    assert misspelt.startswith("LayerNotFound: the model has no layer 'model.three'")
    assert "'model.3' lies in 'model', which is compiled. There, Whole is not known" in compiled
    assert "would both write the mean of 'model.0'" in shared
    text = str(watch.report())
    assert text.count("This run would be refused: ") == 3
    plan = watch.report().hooks[0]
    assert plan.layers == () and plan.refused == misspelt and plan.hook == "Seen 'misspelt'"


def test_a_root_that_is_not_there_refuses_every_hook() -> None:
    watch = HookCallback([Seen("0"), Seen("1")], root="modle", dry_run=True)
    fit(module_of(), data_of(), watch)
    (refusal, other) = watch.report().refusals
    assert refusal == other and refusal.startswith("root='modle' is not a module of Module")


class Looks(Seen):
    """Looks at the model's handles when it is prepared, which is after the hooks before it were."""

    def __init__(self, module: Any) -> None:
        super().__init__("model.3")
        self.module = module

    def prepare(self, layers: Any, device: Any) -> None:
        self.handles = handles(self.module)


def test_nothing_is_attached_while_hooks_are_tried_either() -> None:
    module = module_of()
    look = Looks(module)
    fit(module, data_of(), HookCallback([Seen("model.0"), look], dry_run=True))
    assert look.handles == {}


class Unready(Seen):
    def prepare(self, layers: Any, device: Any) -> None:
        raise OSError("no file")


def test_a_hook_that_cannot_be_prepared_is_told() -> None:
    watch = HookCallback([Unready()], dry_run=True)
    fit(module_of(), data_of(), watch)
    assert watch.report().refusals == ("OSError: no file",)


def test_a_tag_shared_with_another_callback_is_told() -> None:
    real = HookCallback([ActivationStatistics("model.0")], name="real")
    dry = HookCallback([ActivationStatistics("model.0")], name="dry", dry_run=True)
    fit(module_of(), data_of(), real, dry)
    assert len(dry.report().refusals) == 1 and real.report().refusals == ()
    assert real.history()


def test_hooks_of_a_dry_run_can_be_used_for_real() -> None:
    detector = Seen()
    fit(module_of(), data_of(), HookCallback([detector], dry_run=True))
    assert detector.calls == []
    fit(module_of(), data_of(), HookCallback([detector]))
    assert len(detector.calls) == 5


FORKED = """
import torch
from mi_crow_lightning import HookCallback
from tests.callback.runs import Seen, data_of, module_of, run
from tests.models import trainer

torch.set_num_threads(1)
watch = HookCallback([Seen()], dry_run=True)
run("validate", trainer(watch), module_of(), data_of())
print(watch.report().feature("strategy").value, flush=True)
run("validate", trainer(watch, strategy="ddp_fork", devices=2), module_of(), data_of())
watch.report()
"""


def test_the_report_of_a_dry_run_before_does_not_pass_for_that_of_a_forked_one() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert ran.stdout.startswith("SingleDeviceStrategy")
    assert "RanElsewhere: report() has no results of the last run" in ran.stderr


def test_dry_run_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match="dry_run='no' must be True or False"):
        HookCallback(dry_run="no")  # type: ignore[arg-type]
