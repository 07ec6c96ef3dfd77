"""A vector of the wrong width is refused when a run starts, also by a fit before the predict, and by a dry run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mi_crow_lightning import (
    AblationController,
    ClampController,
    HookCallback,
    PatchController,
    ProjectionDetector,
    SteeringController,
    attached,
)
from mi_crow_lightning.errors import VectorMismatch
from tests.callback.runs import STAGES, OnEvent, data_of, module_of, run
from tests.models import WIDTH, assert_same_handles, handles, llama, trainer

WRONG, UP = torch.ones(64), 48

HOOKS: dict[str, tuple[int, Callable[[], Any]]] = {  # with the width of the layer
    "a block": (WIDTH, lambda: SteeringController("block:1", WRONG)),
    "one block of several": (
        WIDTH,
        lambda: SteeringController("block:*", {0: torch.ones(WIDTH), 1: WRONG, 2: WRONG, 3: WRONG}),
    ),
    "the input of a block": (WIDTH, lambda: SteeringController("block:1", WRONG, hook_type="pre_forward")),
    "a linear layer": (UP, lambda: AblationController("block:1.mlp.up_proj", WRONG)),
    "the input of a linear layer": (
        UP,
        lambda: ClampController("block:1.mlp.down_proj", WRONG, 1.0, hook_type="pre_forward"),
    ),
    "a norm": (WIDTH, lambda: PatchController("block:1.input_layernorm", WRONG)),
    "an embedding": (WIDTH, lambda: SteeringController("model.model.embed_tokens", WRONG)),
    "a subspace that is transposed": (WIDTH, lambda: AblationController("block:1", torch.eye(3))),
    "stored activations": (WIDTH, lambda: PatchController("block:1", torch.zeros(1, 7, 64))),
    "projections": (WIDTH, lambda: ProjectionDetector("block:*", WRONG)),
    "projections by name": (WIDTH, lambda: ProjectionDetector("block:1", vectors={"a": WRONG, "b": -WRONG})),
}


def watching(hook: Any, **options: Any) -> HookCallback:
    return HookCallback(**{"controllers" if hook.edits else "detectors": hook}, **options)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", HOOKS)
def test_a_run_is_refused_before_its_first_batch(case: str, stage: str) -> None:
    width, make = HOOKS[case]
    module, batches = module_of("llama"), []
    before = handles(module)
    seen = [
        OnEvent(f"on_{name}_batch_start", lambda *_: batches.append(1))
        for name in ("train", "validation", "test", "predict")
    ]
    with pytest.raises(VectorMismatch, match=rf"has (64|3) features, and the layer's activations have {width}"):
        run(stage, trainer(watching(make()), *seen), module, data_of("llama"))
    assert not batches
    assert_same_handles(before, module)


@pytest.mark.parametrize("case", HOOKS)
def test_a_dry_run_reports_it_and_goes_on(case: str) -> None:
    width, make = HOOKS[case]
    watch = watching(make(), dry_run=True)
    assert len(run("predict", trainer(watch), module_of("llama"), data_of("llama"))) == 5
    (refusal,) = watch.report().refusals
    assert refusal.startswith("VectorMismatch: ") and f"the layer's activations have {width}" in refusal


FITTING: dict[str, Callable[[], Any]] = {
    "a block": lambda: SteeringController("block:1", torch.ones(WIDTH)),
    "one for each layer": lambda: SteeringController(
        "block:1.mlp.*_proj",
        {"mlp.gate_proj": torch.ones(UP), "mlp.up_proj": torch.ones(UP), "mlp.down_proj": torch.ones(WIDTH)},
    ),
    "the input of a linear layer": lambda: SteeringController(
        "block:1.mlp.down_proj", torch.ones(UP), hook_type="pre_forward"
    ),
    "a subspace": lambda: AblationController("block:1", torch.eye(3, WIDTH)),
    "stored activations": lambda: PatchController("block:1", torch.zeros(1, WIDTH)),
    "projections": lambda: ProjectionDetector("block:*", torch.ones(WIDTH)),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_vector_that_fits_is_not_refused(case: str) -> None:
    runner: pl.Trainer = trainer(watching(FITTING[case]()))
    assert len(run("predict", runner, module_of("llama"), data_of("llama"))) == 5


def test_it_is_refused_outside_a_trainer_too() -> None:
    model = llama()
    before = handles(model)
    with (
        pytest.raises(VectorMismatch, match=r"layer 'model\.layers\.1' has 64 features"),
        attached(model, SteeringController("block:1", WRONG)),
    ):
        raise AssertionError("the block was entered")
    assert_same_handles(before, model)
