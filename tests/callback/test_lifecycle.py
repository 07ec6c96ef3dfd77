"""One callback over many runs, several callbacks in one run, what counts and what does not."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, RegistrationError, Schedule
from tests.callback.runs import OnEvent, Seen, data_of, fit, module_of, run, told
from tests.models import Module, handles, loader, mlp, trainer, vector_data

EVERY = Schedule()


@pytest.mark.documents("compatibility/fit-validate-test-predict-in-any-order/detectors")
def test_one_callback_over_fit_validate_test_predict_and_fit() -> None:
    seen = Seen(schedule=EVERY)
    watch = HookCallback(detectors=[seen, ActivationStatistics("model.0", statistics=["mean"], schedule=EVERY)])
    module, expected = module_of(), []
    for stage, reached in [
        ("fit", ["train"] * 5 + ["validate"] * 3),
        ("validate", ["validate"] * 5),
        ("test", ["test"] * 5),
        ("predict", ["predict"] * 5),
        ("fit", ["train"] * 5 + ["validate"] * 3),
    ]:
        seen.calls.clear()
        before = len(watch.history())
        run(stage, trainer(watch), module, data_of())
        assert [call[0] for call in seen.calls] == reached
        expected = [(row.stage, row.step) for row in watch.history()[before:]]
        assert (
            expected
            == {
                "fit": [*(("train", step) for step in range(5)), ("validate", 4)],
                "validate": [("validate", 0)],
                "test": [("test", 5)],
                "predict": [("predict", 5)],
            }[stage]
        )


def test_one_trainer_runs_every_stage() -> None:
    watch, module, data = HookCallback(detectors=Seen(schedule=EVERY)), module_of(), data_of()
    runner = trainer(watch)
    for stage in ("fit", "validate", "test", "predict"):
        run(stage, runner, module, data)
    assert [len(watch.detectors[0].batches(s)) for s in ("train", "validate", "test", "predict")] == [5, 8, 5, 5]


@pytest.mark.documents("compatibility/sanity-check/detectors", "compatibility/sanity-check/logging")
def test_the_sanity_check_never_counts() -> None:
    looks: list[int] = []
    watch = HookCallback(detectors=[Seen(schedule=EVERY), ActivationStatistics("model.0")])
    look = OnEvent("on_sanity_check_end", lambda trainer, module, index: looks.append(len(watch.history())))
    run("fit", trainer(watch, look, num_sanity_val_steps=2), module_of(), data_of())
    assert looks == [0]
    assert watch.detectors[0].batches("validate") == [0, 1, 2]
    counts = [row.step for row in watch.history() if row.stage == "validate" and row.name == "mean"]
    assert counts == [4]


def test_training_and_the_validation_inside_of_it_do_not_mix() -> None:
    def means(**changes: Any) -> dict[str, list[tuple[int, float]]]:
        watch = HookCallback(detectors=ActivationStatistics("model.0", statistics=["mean"], schedule=EVERY))
        run("fit", trainer(watch, max_epochs=2, log_every_n_steps=4, **changes), module_of("cnn"), data_of("cnn"))
        rows = watch.history()
        return {stage: [(r.step, r.value) for r in rows if r.stage == stage] for stage in ("train", "validate")}

    alone, together = means(limit_val_batches=0), means(val_check_interval=2)
    assert together["train"] == alone["train"]
    assert [step for step, _ in together["validate"]] == [1, 3, 6, 8]


def test_a_detector_of_training_is_not_on_in_validation_and_the_other_way_round() -> None:
    for stage in ("train", "validate"):
        watch = HookCallback(detectors=Seen(schedule=Schedule(stages=stage)))
        run("fit", trainer(watch, val_check_interval=2), module_of(), data_of())
        assert {call[0] for call in watch.detectors[0].calls} == {stage}


def test_two_controllers_of_two_callbacks_act_in_the_order_of_the_callbacks() -> None:
    def predicted(*edits: Any) -> torch.Tensor:
        callbacks = [HookCallback(controllers=FunctionController("model.0", edit)) for edit in edits]
        return torch.cat(run("predict", trainer(*callbacks), module_of().eval(), data_of()))

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert torch.equal(predicted(add, double), predicted(lambda x: double(add(x))))
    assert torch.equal(predicted(double, add), predicted(lambda x: add(double(x))))
    assert not torch.equal(predicted(add, double), predicted(double, add))


class Distillation(Module):
    """A student beside its teacher."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.teacher = mlp().requires_grad_(False)

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.model(x), self.teacher(x) + y[:, None])


def test_root_chooses_one_model_of_two() -> None:
    student, teacher = (
        HookCallback(detectors=ActivationStatistics("block:0", name=name), root=root)
        for root, name in (("model", "student"), ("teacher", "teacher"))
    )
    fit(Distillation(), vector_data(), student, teacher)
    firsts = [[row.value for row in watch.history() if row.name == "mean"] for watch in (student, teacher)]
    assert {row.layer for row in (*student.history(), *teacher.history())} == {"0"}
    assert firsts[0][0] == firsts[1][0] and firsts[0][1:] != firsts[1][1:]
    assert {row.tag.split("_")[0] for row in teacher.history()} == {"teacher"}


def test_the_users_switch_between_runs_and_within_one() -> None:
    seen = Seen(schedule=EVERY)
    watch, module = HookCallback(detectors=seen), module_of()
    seen.disable()
    fit(module, data_of(), watch)
    assert seen.calls == []

    def switch(trainer: Any, pl_module: Any, batch_idx: int) -> None:
        (seen.enable if batch_idx in (1, 3) else seen.disable)()

    for order in ([OnEvent("on_train_batch_start", switch), watch], [watch, OnEvent("on_train_batch_start", switch)]):
        seen.calls.clear()
        fit(module, data_of(), *order)
        assert seen.batches("train") == [1, 3]
    assert not handles(module)


def test_enabling_a_hook_that_is_not_due_attaches_nothing() -> None:
    seen, counts = Seen(schedule=Schedule(batches=[4])), []

    def switch(trainer: Any, pl_module: Any, batch_idx: int) -> None:
        seen.enable()
        counts.append(len(handles(pl_module)))

    fit(module_of(), data_of(), HookCallback(detectors=seen), OnEvent("on_train_batch_start", switch))
    assert [bool(count) for count in counts] == [False] * 4 + [True]


def test_no_training_batches_at_all() -> None:
    watch = HookCallback(detectors=[Seen(schedule=EVERY), ActivationStatistics("model.0")])
    fit(module_of(), data_of(), watch, limit_train_batches=0)
    assert watch.history() == [] and not any(hook.registered for hook in watch.detectors)


def test_fast_dev_run_logs_its_one_step() -> None:
    watch = HookCallback(detectors=ActivationStatistics("model.0", statistics=["mean"]), log_every_n_steps=50)
    run("fit", trainer(watch, fast_dev_run=True, log_every_n_steps=50), module_of(), data_of())
    assert [(row.stage, row.step) for row in watch.history()] == [("train", 0), ("validate", 0)]


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_several_dataloaders_give_one_reading(stage: str) -> None:
    watch = HookCallback(
        detectors=[Seen(schedule=EVERY), ActivationStatistics("model.0", statistics=["mean"], schedule=EVERY)]
    )
    module, data = module_of(), data_of()

    def step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return module.loss(batch)

    setattr(module, {"validate": "validation_step", "predict": "predict_step"}[stage], step)
    getattr(trainer(watch), stage)(module, [loader(data), loader(data[:8])])
    assert [(batch, at) for _, _, batch, at, _ in watch.detectors[0].calls] == [
        *((batch, 0) for batch in range(5)),
        *((batch, 1) for batch in range(2)),
    ]
    (row,) = watch.history()
    mean = module.model[0](torch.stack([x for x, _ in [*data, *data[:8]]])).double().mean()
    assert row.step == (0 if stage == "validate" else 7)
    assert row.value == pytest.approx(mean.item(), rel=1e-5)


def test_a_model_run_in_another_callbacks_batch_end_counts_only_if_that_callback_comes_first() -> None:
    """Our handles come off in our own batch end; the documentation says to list HookCallback first."""

    def calls(first: bool) -> int:
        seen = Seen(schedule=EVERY)
        extra = OnEvent("on_train_batch_end", lambda trainer, module, index: module.model(torch.zeros(1, 8)))
        watch = HookCallback(detectors=seen)
        fit(module_of(), data_of(), *((watch, extra) if first else (extra, watch)))
        return len(seen.calls)

    assert calls(first=True) == 5
    assert calls(first=False) == 10


def test_an_interval_longer_than_the_run_is_told_at_its_start() -> None:
    watch = HookCallback(detectors=ActivationStatistics("model.0"))
    with told("writes readings every 50 steps, and this run takes 5: training will show none"):
        fit(module_of(), data_of(), watch, log_every_n_steps=50)
    assert watch.history() == []
    with told("every 4 steps, and this run takes 3"):
        fit(module_of(), data_of(), HookCallback(detectors=Seen()), log_every_n_steps=4, accumulate_grad_batches=2)
    # Not where it fits, where it is off, or where nothing would be written anyway.
    fit(module_of(), data_of(), watch, log_every_n_steps=5)
    fit(module_of(), data_of(), watch, log_every_n_steps=0)
    edit = HookCallback(controllers=FunctionController("model.0", lambda x: x))
    fit(module_of(), data_of(), edit, log_every_n_steps=50)


class RunsAnother(pl.Callback):
    """In the middle of a fit, another Trainer predicts with the same callback."""

    def __init__(self, watch: HookCallback) -> None:
        self.watch, self.message = watch, ""

    def on_train_batch_end(self, outer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            with pytest.raises(RegistrationError) as caught:
                run("predict", trainer(self.watch), module_of(), data_of())
            self.message = str(caught.value)


def test_a_callback_serves_one_running_trainer() -> None:
    seen = Seen(schedule=Schedule(stages="train"))
    watch = HookCallback(detectors=seen)
    other = RunsAnother(watch)
    fit(module_of(), data_of(), watch, other)
    assert "is in the run of another Trainer" in other.message
    assert seen.batches("train") == [0, 1, 2, 3, 4]  # the outer run kept its hooks
