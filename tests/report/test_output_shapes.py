"""Output shapes: those of a real forward pass, whatever way they were found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mi_crow_lightning.report.output_shapes import Call, output_shapes
from tests.models import BLOCKS, WIDTH, assert_same_handles, bert, cnn, gpt2, handles, llama, mlp, vit

TOKENS = {"input_ids": torch.ones(2, 7, dtype=torch.long)}
CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "llama": (llama, (), TOKENS),
    "gpt2": (gpt2, (), TOKENS),
    "bert": (bert, (), TOKENS),
    "vit": (vit, (), {"pixel_values": torch.zeros(2, 3, 16, 16)}),
    "mlp": (mlp, (torch.zeros(3, 8),), {}),
    "cnn": (cnn, (torch.zeros(3, 3, 16, 16),), {}),
}


def refused() -> nn.Module:
    raise AssertionError("the pass without numbers should do")


def seen_by_plain_hooks(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """The slow, plain way: a torch hook on each module, a real pass, the first tensor of each output."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
            tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]
            shapes.setdefault(name, tuple(tensors[0].shape))

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model.eval()(*args, **kwargs)
    return shapes


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_without_numbers_are_those_of_a_real_pass(kind: str, device: str) -> None:
    make, args, kwargs = CALLS[kind]
    with torch.device(device):
        model = make().eval()
    before, weights = handles(model), list(model.parameters())
    shapes = output_shapes(model, lambda it: [Call(it, args, kwargs)], on_cpu=lambda: make().eval())
    # Some models of transformers 4 look into masks.
    assert shapes.found_by == "fake" or (transformers.__version__ < "5" and kind in ("bert", "gpt2"))
    assert shapes.by_layer == seen_by_plain_hooks(make(), *args, **kwargs)
    assert shapes.inputs == {name: tuple(value.shape) for name, value in kwargs.items()} or {"input": args[0].shape}
    assert_same_handles(before, model)
    assert all(now is then for now, then in zip(model.parameters(), weights, strict=True))


def test_a_pass_that_needs_numbers_runs_on_the_cpu() -> None:
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0].reshape(-1)

    model = nn.Sequential(nn.Linear(2, 4), Chooses())
    shapes = output_shapes(model, lambda it: [Call(it, (torch.ones(3, 2),))], on_cpu=lambda: model)
    assert shapes.found_by == "cpu" and shapes.by_layer["0"] == (3, 4)
    assert shapes.by_layer == seen_by_plain_hooks(model, torch.ones(3, 2))


def test_a_pass_that_fails_both_ways_says_why() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(3, 4))
    before = handles(model)
    shapes = output_shapes(model, lambda it: [Call(it, (torch.ones(3, 2),))], on_cpu=lambda: model)
    assert shapes.by_layer == {} and shapes.found_by is None
    without, on_cpu = shapes.why_not.split("; on the CPU: ")
    assert without.startswith("without numbers: RuntimeError: ") and "mat1 and mat2" in on_cpu
    assert_same_handles(before, model)


def test_layers_that_do_not_run_or_return_no_tensor_have_no_shape() -> None:
    class Cache(nn.Module):
        def forward(self, x: Any) -> dict[str, int]:
            return {"length": 3}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.cache = nn.Linear(2, 4), nn.Linear(2, 4), Cache()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cache(x)
            self.used(x[:1])
            result: torch.Tensor = self.used(x)
            return result

    model = Model()
    shapes = output_shapes(model, lambda it: [Call(it, (torch.ones(3, 2),))], on_cpu=refused)
    assert shapes.by_layer == {"used": (1, 4)}


def test_what_cannot_be_called_has_no_shapes() -> None:
    def calls(model: nn.Module) -> list[Call]:
        raise ValueError("nothing tells")

    assert output_shapes(mlp(), calls, on_cpu=refused).why_not == "nothing tells"


def test_a_large_model_costs_nothing() -> None:
    sizes = dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    with torch.device("meta"):
        model = llama(**sizes, num_key_value_heads=8)
    assert sum(parameter.numel() for parameter in model.parameters()) > 6e10
    shapes = output_shapes(model, lambda it: [Call(it, (), TOKENS)], on_cpu=refused)
    assert {shapes.by_layer[f"model.layers.{i}"] for i in range(80)} == {(2, 7, 8192)}


def test_the_tiny_models_are_what_the_names_say() -> None:
    shapes = output_shapes(llama(), lambda it: [Call(it, (), TOKENS)], on_cpu=refused).by_layer
    assert [shapes[f"model.layers.{i}"] for i in range(BLOCKS)] == [(2, 7, WIDTH)] * BLOCKS
