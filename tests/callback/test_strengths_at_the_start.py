"""Strengths that are one for each sample, and fit no batch, are refused before the first batch of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from mi_crow_lightning import HookCallback, Schedule, SteeringController
from mi_crow_lightning.errors import HookError, StrengthMismatch
from tests.callback.runs import OnEvent, data_of, fit, module_of, run, told
from tests.models import WIDTH, Module, assert_same_handles, handles, llama, trainer

EVENTS = {"fit": "train", "validate": "validation", "test": "test", "predict": "predict"}


def steering(count: int, **options: Any) -> SteeringController:
    return SteeringController("block:1", torch.ones(WIDTH), torch.ones(count), schedule=Schedule(), **options)


@pytest.mark.parametrize("stage", EVENTS)
def test_strengths_of_no_batch_are_refused_before_the_first(stage: str) -> None:
    batches: list[int] = []
    seen = OnEvent(f"on_{EVENTS[stage]}_batch_start", lambda *_: batches.append(1))
    name = "train" if stage == "fit" else stage
    watch, module = HookCallback(controllers=steering(3)), module_of("llama")
    before = handles(module)
    with pytest.raises(StrengthMismatch, match=rf"strength has 3 values, .* batches of {name} have 4: give one"):
        run(stage, trainer(watch, seen), module, data_of("llama"))
    assert not batches
    assert_same_handles(before, module)
    (refusal,) = watch.report().refusals
    assert "strength has 3 values" in refusal


def loader_of(size: int, count: int = 12) -> DataLoader[Any]:
    return DataLoader(data_of("llama")[:count], batch_size=size)  # type: ignore[arg-type]


def test_a_fit_is_refused_for_its_validation_too() -> None:
    watch = HookCallback(
        controllers=SteeringController("block:1", torch.ones(WIDTH), torch.ones(6), schedule=Schedule("validate"))
    )
    with pytest.raises(StrengthMismatch, match=r"batches of validate have 4: give one"):
        trainer(watch).fit(module_of("llama"), loader_of(6), loader_of(4))
    trainer(watch).fit(module_of("llama"), loader_of(4), loader_of(6))


def test_a_dry_fit_reports_it_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    watch, module = HookCallback(controllers=steering(3), dry_run=True), module_of("llama")
    with caplog.at_level("INFO", "mi_crow_lightning"):
        fit(module, data_of("llama"), watch)
    (refusal,) = watch.report().refusals
    assert "the batches of train have 4" in refusal
    said = [record.getMessage() for record in caplog.records if record.name == "mi_crow_lightning"]
    assert sum("This run would be refused: SteeringController" in text for text in said) == 1


class Joined(Module):
    """A module whose steps join the batches of two dataloaders."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        joined = {name: torch.cat([batch[0][name], batch[1][name]]) for name in batch[0]}
        return super().training_step(joined, batch_idx)


def test_batches_of_several_dataloaders_may_be_joined() -> None:
    watch = HookCallback(controllers=steering(10, on_error="raise"))
    runner = trainer(watch, limit_val_batches=0)
    runner.fit(Joined(llama()), [loader_of(4, 12), loader_of(6, 18)], loader_of(4))
    assert watch.effects()[0].fired == 3


def test_a_dry_run_reports_it_and_goes_on() -> None:
    watch = HookCallback(controllers=steering(3), dry_run=True)
    assert len(run("predict", trainer(watch), module_of("llama"), data_of("llama"))) == 5
    (refusal,) = watch.report().refusals
    assert "strength has 3 values" in refusal


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data_of("llama")[:3])


class Batches:
    """An iterable that is not a DataLoader, of one batch of three."""

    def __iter__(self) -> Any:
        yield torch.utils.data.default_collate(data_of("llama")[:3])


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(data_of("llama")[:3], batch_size=4),  # type: ignore[arg-type]
        DataLoader(Stream(), batch_size=4),
        DataLoader(
            data_of("llama")[:4], batch_size=4, collate_fn=lambda rows: torch.utils.data.default_collate(rows[1:])
        ),  # type: ignore[arg-type]
        Batches(),
    ],
    ids=["fewer samples than a batch", "a stream", "a collate_fn", "no DataLoader"],
)
def test_strengths_that_fit_what_is_really_loaded_are_used(loader: Any) -> None:
    (result,) = trainer(HookCallback(controllers=steering(3))).predict(module_of("llama"), loader)
    (bare,) = trainer().predict(module_of("llama"), loader)
    assert not torch.equal(_logits(result), _logits(bare))


def _logits(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result["logits"]


def test_what_is_off_or_off_in_this_stage_is_not_refused() -> None:
    off, later = steering(3), SteeringController("block:1", torch.ones(WIDTH), torch.ones(3), schedule=Schedule("test"))
    off.disable()
    with told("is off in this whole predict"):
        run("predict", trainer(HookCallback(controllers=[off, later])), module_of("llama"), data_of("llama"))


def test_strengths_of_the_last_batch_alone_fail_in_the_first() -> None:
    """A step may give the model any rows, so a number that fits some batch is left to the pass."""
    loader = DataLoader(data_of("llama")[:7], batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(HookError, match="strength has 3 values"):
        trainer(HookCallback(controllers=steering(3))).predict(module_of("llama"), loader)
