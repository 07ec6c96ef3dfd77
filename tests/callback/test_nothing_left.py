"""However a run ends: no handle of ours stays, those of others do, and the callback can run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from mi_crow_lightning import ActivationStatistics, HookCallback, HookError, LayerNotFound, Schedule, SteeringController
from tests.callback.runs import (
    BATCH_EVENT,
    STAGES,
    FailingController,
    FailingDetector,
    OnEvent,
    Seen,
    data_of,
    interruptible,
    module_of,
    run,
    told,
    with_foreign_hooks,
)
from tests.models import WIDTH, Module, assert_same_handles, handles, trainer

EVERY = Schedule()


def watching() -> HookCallback:
    return HookCallback(
        detectors=[Seen("block:0", schedule=EVERY), ActivationStatistics("block:*", hook_type="pre_forward")],
        controllers=[SteeringController("block:1", torch.ones(WIDTH), schedule=EVERY)],
    )


def run_and_compare(stage: str, module: Module, *callbacks: pl.Callback, **changes: Any) -> None:
    """Run between two looks at the handles; what the run raises goes on."""
    before = with_foreign_hooks(module)
    try:
        run(stage, trainer(*callbacks, **changes), module, data_of("llama"))
    finally:
        assert_same_handles(before, module)
        for callback in callbacks:
            if isinstance(callback, HookCallback):
                assert not any(hook.registered or hook.context for hook in callback.detectors + callback.controllers)


def assert_works_again(watch: HookCallback, stage: str, module: Module) -> None:
    seen = watch.detectors[0]
    seen.calls.clear()
    run_and_compare(stage, module, watch)
    assert len(seen.batches({"fit": "train"}.get(stage, stage))) >= 5


def breaking(module: Module, stage: str, error: BaseException) -> Callable[[], None]:
    """Make the second step of a stage raise, after it ran the model; returns what makes it whole again."""
    step = getattr(module, BATCH_EVENT[stage])

    def broken(batch: Any, batch_idx: int) -> Any:
        result = step(batch, batch_idx)
        if batch_idx == 1:
            assert len(handles(module)) > 8, "the hooks are attached while the step runs"
            raise error
        return result

    setattr(module, BATCH_EVENT[stage], broken)
    return lambda: delattr(module, BATCH_EVENT[stage])


@pytest.mark.documents("reliability/a-run-ends-however-it-ends")
@pytest.mark.parametrize("stage", STAGES)
def test_after_the_end(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    assert_works_again(watch, stage, module)
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/a-step-raises-half-way")
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_crash(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    heal = breaking(module, stage, ArithmeticError("my own mistake"))
    with pytest.raises(ArithmeticError, match="my own mistake"):
        run_and_compare(stage, module, watch)
    heal()
    assert_works_again(watch, stage, module)


@pytest.mark.documents(
    "compatibility/ctrl-c-crash-sigterm/detectors", "reliability/ctrl-c-between-passes-or-inside-one"
)
@pytest.mark.parametrize("stage", STAGES)
def test_after_ctrl_c(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    heal = breaking(module, stage, KeyboardInterrupt())
    # Lightning turns Ctrl-C into an exit of the process.
    with interruptible(), pytest.raises(SystemExit):
        run_and_compare(stage, module, watch)
    heal()
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/ctrl-c-between-passes-or-inside-one")
@pytest.mark.parametrize("stage", STAGES)
def test_after_ctrl_c_inside_a_pass(stage: str) -> None:
    watch, module = watching(), module_of("llama")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = module.model.model.layers[2].mlp.register_forward_hook(interrupt)
    with interruptible(), pytest.raises(SystemExit):
        run_and_compare(stage, module, watch, num_sanity_val_steps=0)
    handle.remove()
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/a-run-ends-however-it-ends")
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_failing_detector(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    failing = FailingDetector("block:2", at=2, schedule=EVERY)
    with told(r"the detector broke[\s\S]*disabled from now on", RuntimeWarning):
        run_and_compare(stage, module, HookCallback(detectors=failing), watch)
    assert not failing.enabled
    assert_works_again(watch, stage, module)


@pytest.mark.documents("compatibility/ctrl-c-crash-sigterm/controllers", "reliability/a-run-ends-however-it-ends")
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_failing_controller(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    failing = HookCallback(controllers=FailingController("block:2", at=2, schedule=EVERY))
    with pytest.raises(HookError, match="the controller broke"):
        run_and_compare(stage, module, watch, failing)
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/a-run-ends-however-it-ends")
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_crash_in_the_start_of_a_later_callback(stage: str) -> None:
    watch, module = watching(), module_of("llama")

    def crash(*args: Any) -> None:
        raise ArithmeticError("a bad start")

    event = {"validate": "on_validation_start"}.get(stage, f"on_{stage}_start")
    with pytest.raises(ArithmeticError, match="a bad start"):
        run_and_compare(stage, module, watch, OnEvent(event, crash))
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/a-layer-that-is-not-there")
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_wrong_layer(stage: str) -> None:
    watch, module = watching(), module_of("llama")
    wrong = HookCallback(detectors=[Seen("block:0"), Seen("block:9", hook_id="wrong")])
    with pytest.raises(LayerNotFound, match="'block:9': the model has 4 blocks, 0 to 3"):
        run_and_compare(stage, module, watch, wrong)
    assert_works_again(watch, stage, module)


@pytest.mark.documents("reliability/a-batch-or-the-rest-of-an-epoch-is-skipped")
def test_after_a_skipped_rest_of_the_epoch() -> None:
    watch, module = watching(), module_of("llama")
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 2 else None
    run_and_compare("fit", module, watch, max_epochs=2, num_sanity_val_steps=0)
    assert watch.detectors[0].batches("train") == [0, 1, 0, 1]


@pytest.mark.documents("reliability/a-batch-or-the-rest-of-an-epoch-is-skipped")
def test_a_skipped_batch_leaves_no_handle_after_its_epoch() -> None:
    module, counts = module_of("llama"), []
    watch = HookCallback(detectors=Seen("block:0", schedule=Schedule(stages="train")))
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 2 else None
    look = OnEvent("on_train_epoch_end", lambda trainer, module, index: counts.append(len(handles(module))))
    run("fit", trainer(watch, look, max_epochs=2), module, data_of("llama"))
    assert counts == [0, 0]


@pytest.mark.documents("reliability/a-run-ends-however-it-ends")
@pytest.mark.parametrize("how", ["early stopping", "should_stop"])
def test_after_an_early_stop(how: str) -> None:
    watch, module = watching(), module_of("llama")

    def stop(trainer: Any, module: Any, batch_idx: int) -> None:
        trainer.should_stop = batch_idx == 1

    early = EarlyStopping("val_loss", min_delta=1e9, patience=1)
    stopper = early if how == "early stopping" else OnEvent("on_train_batch_end", stop)
    run_and_compare("fit", module, watch, stopper, max_epochs=5)
    assert len(watch.detectors[0].batches("train")) == (10 if how == "early stopping" else 2)
    assert_works_again(watch, "fit", module)


def test_handles_are_on_the_model_only_in_batches_that_are_due() -> None:
    module, counts = module_of("llama"), []
    due = Schedule(stages="train", batches=[1, 3])
    watch = HookCallback(
        detectors=ActivationStatistics("block:*", schedule=due),
        controllers=SteeringController("block:1", torch.ones(WIDTH), schedule=due),
    )
    step = module.training_step

    def looking(batch: Any, batch_idx: int) -> Any:
        counts.append(len(handles(module)))
        assert ("generate" in module.model.__dict__) == (batch_idx in (1, 3))
        return step(batch, batch_idx)

    module.training_step = looking
    between: list[int] = []
    look = OnEvent("on_train_batch_end", lambda trainer, module, index: between.append(len(handles(module))))
    run("fit", trainer(watch, look), module, data_of("llama"))
    assert [bool(count) for count in counts] == [False, True, False, True, False]
    assert between == [0] * 5
