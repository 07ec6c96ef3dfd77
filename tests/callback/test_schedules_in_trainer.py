"""Schedules in a real Trainer: which micro-batches are seen, and where readings lie on Lightning's x axis."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule
from tests.callback.runs import OnEvent, Seen, data_of, fit, module_of, run
from tests.models import Module, llama, mlp, token_data, trainer, vector_data

EVERY = Schedule()


def rows_with(folder: Path, column: str) -> dict[int, float]:
    """The values of one column of Lightning's CSV, by its x."""
    (file,) = folder.rglob("metrics.csv")
    with file.open() as lines:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(lines) if row.get(column)}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(epochs=1), [(1, b) for b in range(5)]),
        (Schedule(batches=[0, 3]), [(e, b) for e in range(3) for b in (0, 3)]),
        (Schedule(every_n_batches=2), [(e, b) for e in range(3) for b in (1, 3)]),
        (Schedule(every_n_epochs=2), [(1, b) for b in range(5)]),
        (Schedule(start_step=4, stop_step=7), [(0, 4), (1, 0), (1, 1)]),
        (Schedule(epochs=0) & ~Schedule(batches=range(3)) | Schedule(epochs=2, batches=0), [(0, 3), (0, 4), (2, 0)]),
    ],
    ids=["epochs", "batches", "every_n_batches", "every_n_epochs", "steps", "combined"],
)
def test_batches_that_are_due(schedule: Any, expected: list[tuple[int, int]]) -> None:
    seen = Seen(schedule=schedule)
    fit(module_of(), data_of(), HookCallback(detectors=seen), max_epochs=3)
    assert [(epoch, batch) for _, epoch, batch, _, _ in seen.calls] == expected


def test_every_n_steps_takes_all_micro_batches_of_the_step() -> None:
    # Ten batches in steps of 4 + 4 + 2, twice; steps 1, 3 and 5 are each second one.
    seen = Seen(schedule=Schedule(every_n_steps=2))
    fit(module_of(), data_of() * 2, HookCallback(detectors=seen), max_epochs=2, accumulate_grad_batches=4)
    assert [(epoch, batch, step) for _, epoch, batch, _, step in seen.calls] == [
        *((0, batch, 1) for batch in (4, 5, 6, 7)),
        *((1, batch, 3) for batch in (0, 1, 2, 3)),
        *((1, batch, 5) for batch in (8, 9)),
    ]


@pytest.mark.documents("compatibility/gradient-accumulation/logging")
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_readings_lie_on_lightnings_own_x(tmp_path: Path, accumulate: int, every: int) -> None:
    seen = Seen()
    watch = HookCallback(detectors=[seen, ActivationStatistics("model.0", statistics=["mean"])])
    logger = CSVLogger(tmp_path)
    run(
        "fit",
        trainer(
            watch,
            logger=logger,
            max_epochs=2,
            accumulate_grad_batches=accumulate,
            log_every_n_steps=every,
            val_check_interval=5,
        ),
        module_of(),
        data_of() * 2,
    )
    losses, means = rows_with(tmp_path, "loss"), rows_with(tmp_path, "activations_mean/model.0")
    assert list(means) == list(losses) and len(means) == (20 if accumulate == 1 else 6) // every
    values = rows_with(tmp_path, "val_loss"), rows_with(tmp_path, "activations_mean/val/model.0")
    assert list(values[0]) == list(values[1]) and len(values[0]) == 4
    assert {step for stage, _, _, _, step in seen.calls if stage == "train"} == set(means)


def test_own_interval_beside_the_trainers(tmp_path: Path) -> None:
    watch = HookCallback(detectors=ActivationStatistics("model.0", statistics=["mean"]), log_every_n_steps=3)
    fit(module_of(), data_of() * 2, watch, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    assert list(rows_with(tmp_path, "loss")) == [1, 3, 5, 7, 9]
    assert list(rows_with(tmp_path, "activations_mean/model.0")) == [2, 5, 8]


def test_a_reading_covers_all_that_was_seen_since_the_last() -> None:
    data, held = vector_data(), []
    module = module_of()
    watch = HookCallback(
        detectors=ActivationStatistics("model.0", statistics=["mean"], schedule=EVERY), log_every_n_steps=2
    )
    module.model[0].register_forward_hook(lambda layer, args, output: held.append(output.detach().double()))
    fit(module, data, watch)
    expected = [torch.cat(held[first : first + 2]).mean().item() for first in (0, 2)]
    assert [row.value for row in watch.history()] == pytest.approx(expected, rel=1e-12)


def test_tokens_are_counted_once_under_accumulation() -> None:
    """The mean over all real tokens of a step is the one of a slow recount."""
    module, held = Module(llama()), []
    data = token_data()
    watch = HookCallback(detectors=ActivationStatistics("block:1", statistics=["mean", "rms"]), log_every_n_steps=2)

    def recount(layer: nn.Module, args: Any, output: Any) -> None:
        x = output if isinstance(output, torch.Tensor) else output[0]
        held.append(x.detach().double())

    module.model.model.layers[1].register_forward_hook(recount)
    fit(module, data, watch, accumulate_grad_batches=2, max_epochs=2)
    masks = [torch.stack([row["attention_mask"] for row in data[i : i + 4]]).bool() for i in range(0, 20, 4)] * 2
    # Steps of an epoch: batches 01 23 4; logged are steps 1, 3 and 5.
    expected = [torch.cat([held[i][masks[i]] for i in batches]) for batches in ((2, 3), (5, 6), (9,))]
    means = [row.value for row in watch.history() if row.name == "mean"]
    assert means == pytest.approx([x.mean().item() for x in expected], rel=1e-9)
    squares = [row.value for row in watch.history() if row.name == "rms"]
    assert squares == pytest.approx([x.pow(2).mean().sqrt().item() for x in expected], rel=1e-9)


class Adversaries(Module):
    """Two networks with an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.judge = nn.Linear(5, 1)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            loss = sign * self.judge(self.model(batch[0])).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (self.model, self.judge)]


def test_two_optimizers_stepped_by_hand(tmp_path: Path) -> None:
    seen = Seen()
    watch = HookCallback(detectors=[seen, ActivationStatistics("model.0", statistics=["mean"])])
    runner = fit(Adversaries(), vector_data(), watch, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    assert runner.global_step == 10
    assert seen.batches("train") == [1, 1, 3, 3]
    assert list(rows_with(tmp_path, "loss")) == list(rows_with(tmp_path, "activations_mean/model.0")) == [1, 3]


@pytest.mark.documents("compatibility/an-optimizer-with-a-closure-lbfgs/detectors")
def test_passes_of_a_closure_all_count() -> None:
    module, seen = module_of(), Seen(schedule=EVERY)
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters(), max_iter=3)
    fit(module, data_of(), HookCallback(detectors=seen))
    assert seen.batches("train") == sorted(seen.batches("train")) and len(seen.calls) > 5


def test_a_restarted_trainer_goes_on_counting_steps() -> None:
    seen, module = Seen(), module_of()
    watch = HookCallback(detectors=seen, log_every_n_steps=3)
    runner = fit(module, data_of(), watch)
    runner.fit_loop.max_epochs = 2
    run("fit", runner, module, data_of())
    assert [step for *_, step in seen.calls] == [2, 5, 8]


def test_facts_in_the_context_are_those_of_the_trainer() -> None:
    facts: list[tuple[Any, ...]] = []

    class Facts(Seen):
        def observe(self, x: Any, ctx: Any) -> None:
            facts.append((ctx.stage.value, ctx.epoch, ctx.batch_idx, ctx.step, ctx.batch[0].shape[0], ctx.layer))

    steps: list[int] = []
    look = OnEvent("on_train_batch_start", lambda trainer, module, index: steps.append(trainer.global_step))
    fit(module_of(), data_of()[:10], HookCallback(detectors=Facts(schedule=EVERY)), look, max_epochs=2)
    assert facts == [
        ("train", epoch, batch, epoch * 3 + batch, size, "model.0")
        for epoch in range(2)
        for batch, size in enumerate((4, 4, 2))
    ]
    assert steps == [row[3] for row in facts]
