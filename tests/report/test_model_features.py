"""What a model uses: each fact found in a real run, and what is said of it true."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mi_crow_lightning.report import Feature, Support
from mi_crow_lightning.report import model_features as model
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of
from tests.models import Module, gpt2, llama
from tests.report.reported import DEGRADED, SUPPORTED, UNTESTED, report_of, watching


def asleep(module: Module) -> Module:
    module.eval()
    return module


def wrapped_blocks(module: Module) -> Module:
    layers = module.model.model.layers  # type: ignore[union-attr]
    for i, block in enumerate(layers):  # type: ignore[arg-type]
        layers[i] = checkpoint_wrapper(block)  # type: ignore[index,operator]
    module.model.config.use_cache = False  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize(
    ("change", "stage", "support", "note"),
    [
        (lambda module: module, "fit", Support.NOT_USED, ""),
        (checkpointed, "fit", SUPPORTED, "a layer's second run is not observed; edits are repeated in it"),
        (wrapped_blocks, "fit", SUPPORTED, "a layer's second run is not observed; edits are repeated in it"),
        (checkpointed, "predict", SUPPORTED, "no effect outside fit"),
        (
            lambda module: asleep(checkpointed(module)),
            "fit",
            DEGRADED,
            "no effect in modules that are in evaluation mode: call .train() before fit",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.* hooked layers are in evaluation mode:UserWarning")
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
def test_gradient_checkpointing(change: Any, stage: str, support: Support, note: str) -> None:
    feature = report_of(stage, "llama", change(module_of("llama"))).feature("gradient checkpointing")
    assert (feature.support, feature.note) == (support, note)


def test_gradient_checkpointing_that_was_switched_off_again_is_not_used() -> None:
    module = checkpointed(module_of("gpt2"))
    assert model.checkpointing(module, fitting=True).support is SUPPORTED
    getattr(module.model, "activation_checkpointing_disable", module.model.gradient_checkpointing_disable)()
    assert model.checkpointing(module, fitting=True).support is Support.NOT_USED


@pytest.mark.parametrize(("kernel", "support"), [("eager", SUPPORTED), ("sdpa", SUPPORTED)])
def test_a_supported_attention_kernel_is_told_and_kept_bit_identical(kernel: str, support: Support) -> None:
    def left(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        module = module_of("llama")
        module.model.set_attn_implementation(kernel)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks))

    watch = watching()
    assert_bit_equal(left(), left(watch))
    assert watch.report().feature("attention kernel") == Feature("attention kernel", kernel, support)


def test_attention_kernels_that_no_test_runs_are_untested() -> None:
    both = Module(nn.ModuleList([llama(), gpt2()]))
    both.model[0].set_attn_implementation("flex_attention")  # type: ignore[index,operator]
    assert model.attention_kernels(both) == Feature("attention kernel", "flex_attention, sdpa", UNTESTED)


class Int8Linear(nn.Module):
    """Weights in eight bits, as quantisation libraries keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


def test_weights_in_whole_numbers_are_told_as_quantised() -> None:
    module = Module(nn.Sequential(Int8Linear(), nn.Linear(4, 4), Int8Linear()))
    assert model.quantisation(module) == Feature("quantisation", "2 Int8Linear", UNTESTED)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.* are deprecated:UserWarning")
def test_torchs_own_quantised_layers_are_told() -> None:
    module = Module(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    module.model = torch.ao.quantization.quantize_dynamic(module.model, {nn.Linear}, torch.qint8)
    assert model.quantisation(module) == Feature("quantisation", "1 Linear, 1 LinearPackedParams", UNTESTED)
