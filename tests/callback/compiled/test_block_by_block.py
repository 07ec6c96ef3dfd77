"""Blocks that are compiled one by one: hooks on them, around them and inside of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    ScaleController,
)
from mi_crow_lightning.errors import RegistrationError
from tests.callback.compiled.cases import QUIET, Chain, Counted, small_mlp, three_blocks
from tests.callback.runs import fit, run
from tests.models import trainer, vector_data

pytestmark = QUIET


@pytest.mark.documents(
    "compatibility/blocks-compiled-one-by-one-hooks-on-them/detectors",
    "compatibility/blocks-compiled-one-by-one-hooks-on-them/controllers",
)
@pytest.mark.parametrize("by", ["compile()", "torch.compile"])
def test_hooks_on_compiled_blocks_stand_outside_and_may_be_any(by: str) -> None:
    outputs, captured, counted = [], [], Counted()
    for backend in (None, counted.backend):
        module, capture = small_mlp(), LayerActivationDetector("model.3")
        module.model[3] = Chain(module.model[3])  # type: ignore[index]
        if backend is not None and by == "compile()":
            module.model[3].compile(backend=backend)  # type: ignore[index]
        elif backend is not None:
            module.model[3] = torch.compile(module.model[3], backend=backend)  # type: ignore[index,operator]
        compiled_call = module.model[3]._compiled_call_impl  # type: ignore[index]
        twice = FunctionController("model.3", lambda x: x * 2, hook_type="pre_forward")
        watch = HookCallback(capture, [twice, FunctionController("model.3", lambda x: x + 1)])
        outputs.append(torch.cat(run("predict", trainer(watch), module, vector_data(8))))
        captured.append(capture.tensor_metadata["activations"])
        assert module.model[3]._compiled_call_impl is compiled_call  # type: ignore[index]
    assert torch.equal(*outputs) and torch.equal(*captured)
    assert (counted.graphs, counted.breaks) == (1, 0)


def test_a_hook_outside_sees_an_error_of_the_block_and_copies_have_no_hook() -> None:
    import copy

    module, copies = small_mlp(), []

    class Keep(LayerActivationDetector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            super().observe(x, ctx)
            copies.append(copy.deepcopy(module.model[3]))  # type: ignore[index]

    module.model[3].compile(backend="eager")  # type: ignore[index]
    run("predict", trainer(HookCallback(Keep("model.3"))), module, vector_data(4))
    assert len(copies) == 1 and copies[0]._compiled_call_impl is None and not copies[0]._forward_hooks


@pytest.mark.documents(
    "compatibility/layers-inside-more-than-two-such-blocks/detectors",
    "compatibility/layers-inside-more-than-two-such-blocks/controllers",
)
@pytest.mark.parametrize("hook", [ActivationStatistics("model.*.0"), ScaleController("model.*.0", 2.0)])
def test_layers_inside_of_many_compiled_blocks_are_refused(hook: Any) -> None:
    hooks = {"controllers" if hook.edits else "detectors": hook}
    with pytest.raises(
        RegistrationError, match="3 modules of class Chain are compiled one by one, and with hooks inside"
    ):
        fit(three_blocks(), vector_data(), HookCallback(**hooks))
