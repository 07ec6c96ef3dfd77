"""Padded batches without any mask: one warning a stage, and none where a mask is found."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from mi_crow_lightning.hooks.positions.unmasked import is_padded
from tests.models import llama

PADDED = torch.tensor([[0, 0, 0, 0, 0, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2]])
WHOLE = torch.arange(3, 19).reshape(2, 8)


class Module(pl.LightningModule):
    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.model = llama(**changes)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.model(**{name: value for name, value in batch.items() if name != "labels"})


def warned(watch: HookCallback, batches: list[dict[str, Tensor]], **changes: Any) -> list[str]:
    """The warnings about padding in a validation."""
    options: dict[str, Any] = dict(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer = pl.Trainer(callbacks=[watch], enable_model_summary=False, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.validate(Module(**changes), DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    return [str(one.message) for one in caught if "padd" in str(one.message)]


def statistics() -> dict[str, Any]:
    return {"detectors": ActivationStatistics("block:*", statistics=["rms"], histogram=False)}


def steering() -> dict[str, Any]:
    return {"controllers": SteeringController("block:0", torch.ones(32), schedule=Schedule(stages="validate"))}


@pytest.mark.parametrize("kind", [statistics, steering])
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_said_once_and_names_the_cure(kind: Any, side: str) -> None:
    ids = PADDED if side == "left" else PADDED.flip(1)
    watch = HookCallback(**kind())
    (said,) = warned(watch, [{"input_ids": ids}] * 3)
    assert "every position (no mask found)" in str(watch.report()) and "all but padding" not in str(watch.report())
    assert "look padded" in said and "token_mask" in said and "(2, 8)" in said


@pytest.mark.parametrize("kind", [statistics, steering])
def test_with_a_mask_from_anywhere_nothing_is_said(kind: Any) -> None:
    mask = (PADDED != 0).long()
    assert not warned(HookCallback(**kind(), token_mask=lambda batch: batch["input_ids"] != 0), [{"input_ids": PADDED}])
    watch = HookCallback(**kind())
    assert not warned(watch, [{"input_ids": PADDED, "attention_mask": mask}])
    assert "all but padding" in str(watch.report())


def test_nothing_is_said_of_texts_that_are_not_padded() -> None:
    assert not warned(HookCallback(**statistics()), [{"input_ids": WHOLE}])
    all_rows = torch.tensor([[0, 0, 5, 6], [0, 0, 7, 8]])  # a prefix, perhaps
    assert not warned(HookCallback(**statistics()), [{"input_ids": all_rows}])


def test_without_a_padding_id_the_end_of_a_text_stands_for_it() -> None:
    ended = torch.tensor([[5, 6, 2, 2], [5, 6, 7, 8]])
    assert warned(HookCallback(**statistics()), [{"input_ids": ended}], pad_token_id=None)
    assert not warned(HookCallback(**statistics()), [{"input_ids": ended}])  # 0 is its padding


def test_one_padding_id_alone_may_be_a_token() -> None:
    assert not is_padded(torch.tensor([[0, 5, 6], [7, 8, 9]]), (0,)) and not is_padded(torch.zeros(2, 2).long(), (0,))


def test_a_dry_run_after_a_run_without_masks_says_nothing_of_that_run() -> None:
    watch = HookCallback(**statistics())
    warned(watch, [{"input_ids": PADDED}])
    assert "no mask found" in str(watch.report())
    watch.dry_run = True
    warned(watch, [{"input_ids": PADDED}])
    assert "all but padding" in str(watch.report())
