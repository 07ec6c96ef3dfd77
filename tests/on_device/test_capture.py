"""Activations that are kept: those of a plain hook, where they were asked for, and no memory beside them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback, LayerActivationDetector
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import run
from tests.models import Module, llama, token_data, trainer

IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize("keep_on", ["cpu", None])
def test_it_holds_what_a_plain_hook_sees(device: torch.device, keep_on: str | None) -> None:
    model, seen = llama().eval().to(device), []
    detector = LayerActivationDetector("block:*", device=keep_on)
    Layers(model).register_hook(None, detector)
    for block in model.model.layers:
        block.register_forward_hook(
            lambda module, args, output: seen.append(output if isinstance(output, Tensor) else output[0])
        )
    model(IDS.to(device))
    held = list(detector.get_captured().values())
    assert len(held) == len(seen) == 4
    for one, other in zip(held, seen, strict=True):
        assert one.device == (torch.device("cpu") if keep_on else device) and not one.requires_grad
        assert torch.equal(one.cpu(), other.detach().cpu())


def test_chosen_tokens_in_another_dtype(device: torch.device) -> None:
    model = llama().eval().to(device)
    detector = LayerActivationDetector("block:1", tokens="last", target_dtype=torch.float16)
    Layers(model).register_hook(None, detector)
    call = {"input_ids": IDS.to(device), "attention_mask": torch.ones_like(IDS, device=device)}
    with torch.no_grad():
        expected = model(**call, output_hidden_states=True).hidden_states[2][:, -1]
    held = detector.get_captured()
    assert held.dtype == torch.float16
    assert torch.equal(held.reshape(-1, 32), expected.half().cpu())


def test_a_run_leaves_no_memory_behind(device: torch.device, on_device: dict[str, Any]) -> None:
    if device.type != "cuda":
        pytest.skip("of memory on a GPU; that of a CPU is in tests/callback")

    def left() -> int:
        watch = HookCallback([ActivationStatistics("block:*"), LayerActivationDetector("block:*", name="held")])
        module = Module(llama())
        run("validate", trainer(watch, **on_device), module, token_data())
        del module, watch
        gc.collect()
        return torch.cuda.memory_allocated(device)

    first = left()
    assert left() == left() == first
