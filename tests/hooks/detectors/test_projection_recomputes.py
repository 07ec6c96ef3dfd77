"""`ProjectionDetector` as a condition where gradient checkpointing runs a pass again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mi_crow_lightning import HookCallback, Schedule
from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks import ProjectionDetector, SteeringController
from tests.callback.runs import data_of, fit, module_of
from tests.hooks.controllers.cases import BATCH
from tests.hooks.detectors.projections import V, registered
from tests.hooks.test_token_controller import checkpoint_blocks
from tests.models import WIDTH, Module, llama


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_a_recompute_is_edited_as_its_pass_was(reentrant: bool | None) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        module, data = module_of("llama"), data_of("llama")
        module.model.config.attention_dropout = 0.0
        for layer in module.model.model.layers:
            layer.self_attn.attention_dropout = 0.0
        if checkpointed:
            checkpoint_blocks(module.model, bool(reentrant))
        detector = ProjectionDetector("block:0", V[0], schedule=Schedule())
        when = detector.above(0.0)
        steer = SteeringController("block:1-2.mlp", 0.1 * V[1], when=when, schedule=Schedule())
        fit(module, data, HookCallback(detector, steer), max_steps=2)
        return [parameter.detach() for parameter in module.parameters()]

    pairs = zip(gradients(reentrant is not None), gradients(False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_several_passes_before_one_backward(reentrant: bool) -> None:
    """As in DPO: each recompute gets what was seen in its own pass, though the masks agree."""
    other = {**BATCH, "input_ids": BATCH["input_ids"].roll(1, 0)}

    def gradients(checkpointed: bool) -> list[Any]:
        model = llama(attention_dropout=0.0).train()
        if checkpointed:
            checkpoint_blocks(model, reentrant)
        detector = ProjectionDetector("block:0", V[0])
        steer = SteeringController("block:1-2.mlp", 0.1 * V[1], when=detector.above(0.0))
        registered(detector, steer, model=model)
        sum(model(**batch, labels=batch["input_ids"]).loss for batch in (BATCH, other)).backward()  # type: ignore
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(gradients(True), gradients(False), strict=True))


class Checkpointed(nn.Module):
    """Layers without a token module."""

    def __init__(self, checkpointed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(8, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        return checkpoint(self.after, before, use_reentrant=False) if self.checkpointed else self.after(before)  # type: ignore


def fit_several(passes: int, checkpointed: bool = True) -> list[Tensor]:
    """The weights after training with several passes before each backward pass, steered under a condition."""

    class Several(Module):
        def loss(self, batch: Any) -> Tensor:
            return sum(super(Several, self).loss((i + batch[0], batch[1])) for i in range(passes))  # type: ignore

    detector = ProjectionDetector("before", V[0], schedule=Schedule())
    steer = SteeringController("after.0", V[1], when=detector.above(0.0), schedule=Schedule())
    module = Several(Checkpointed(checkpointed))
    fit(module, data_of(), HookCallback(detector, steer))
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("passes", [1, 2])
def test_passes_without_a_token_module_are_recomputed_as_they_were(passes: int) -> None:
    pairs = zip(fit_several(passes), fit_several(passes, checkpointed=False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_where_passes_cannot_be_told_apart_a_recompute_is_refused() -> None:
    with pytest.raises(ConditionMismatch, match=r"runs 'model.after.0' again, and it is not known which of several"):
        fit_several(passes=34)
