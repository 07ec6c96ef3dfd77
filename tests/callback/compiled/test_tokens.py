"""Which tokens are read and steered in a compiled graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule, SteeringController
from tests.callback.compiled.cases import (
    QUIET,
    Chain,
    Counted,
    Silent,
    as_it_is,
    assert_same_numbers,
    in_place,
    small_llama,
    wrapped,
)
from tests.callback.runs import run
from tests.models import WIDTH, token_data, trainer

pytestmark = QUIET


@pytest.mark.documents(
    "compatibility/generate-of-a-compiled-model/detectors",
    "compatibility/generate-of-a-compiled-model/controllers",
    "compatibility/generate-of-a-compiled-model/logging",
)
@pytest.mark.parametrize("way", [wrapped, in_place])
def test_generating_steers_and_counts_as_without_compiling(way: Any) -> None:
    outputs, callbacks = [], []
    for how in (as_it_is, way):
        steer = SteeringController("block:1", torch.arange(WIDTH) / 8, 1.0)
        callbacks.append(HookCallback(ActivationStatistics("block:1", schedule=Schedule()), steer))
        module = small_llama()
        module.model.eval()
        outputs.append(run("predict", trainer(callbacks[-1]), how(module, "eager"), token_data(8)))
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert_same_numbers(*callbacks)


def test_lengths_are_no_reason_to_compile_anew() -> None:
    """Not even where the module that is given the mask is the compiled one, and is called from outside."""
    counted = Counted()
    batches = []
    for length in (5, 7, 9, 11, 13):
        rows = token_data(4, length)
        batches.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    watch = HookCallback(ActivationStatistics("model.lm_head"))
    data: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer(watch).validate(wrapped(small_llama(), counted.backend), data, verbose=False)
    assert counted.graphs <= 3 and counted.breaks == 0


class Sequences(Silent):
    """A model that is given no mask."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Chain(nn.Linear(4, 8), nn.Linear(8, 2)))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(batch["x"])


@pytest.mark.parametrize("by", ["batch", "token_mask"])
def test_padding_that_the_batch_tells(by: str) -> None:
    name = "attention_mask" if by == "batch" else "real"
    rows = [{"x": torch.randn(3, 4), name: torch.tensor([1, 1, i % 2])} for i in range(8)]
    options = {} if by == "batch" else {"token_mask": lambda batch: batch["real"]}
    counted, callbacks, edited = Counted(), [], []
    for way in (as_it_is, in_place):
        watch = ActivationStatistics("model.0", schedule=Schedule())
        callbacks.append(HookCallback(watch, ScaleController("model.0", 3.0), **options))  # type: ignore[arg-type]
        edited.append(torch.cat(run("predict", trainer(callbacks[-1]), way(Sequences(), counted.backend), rows)))
    assert_same_numbers(*callbacks)
    assert callbacks[0].effects()[0].tokens == 20
    torch.testing.assert_close(*edited)
    assert (counted.graphs, counted.breaks) == (1, 0)
