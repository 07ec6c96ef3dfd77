"""``attached`` around training, in Fabric and in a loop without it: bit-identical, and with the model's own names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    LayerActivationDetector,
    ScaleController,
    attached,
)
from mi_crow_lightning.addressing.module_tree import ModuleTree
from tests.callback.runs import assert_bit_equal
from tests.hooks.attachable import X, double, mean_of
from tests.hooks.by_hand import endless
from tests.models import BLOCKS, KINDS, WIDTH, Module, assert_same_handles, handles, llama, loader, mlp

DETECTORS = {
    "llama": lambda: [ActivationStatistics("block:*"), LayerActivationDetector("block:*", name="held")],
    "cnn": lambda: [ActivationStatistics("*"), LayerActivationDetector("*", name="held")],
}


EDITED = {"llama": "block:2", "cnn": "3"}


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, dict):
        loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
        return loss
    return cross_entropy(model(batch[0]), batch[1])


def trained(kind: str, watch: Any = nullcontext, fabric: Fabric | None = None) -> dict[str, Any]:
    """What is left of five steps, in Fabric or in a loop without it, with hooks that ``watch`` puts on the model."""
    torch.manual_seed(7)
    model = KINDS[kind][0]().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    called, stepped = fabric.setup(model, optimizer) if fabric is not None else (model, optimizer)
    before, losses = handles(called), []
    with watch(called):
        for batch in loader(KINDS[kind][1]()):
            loss = loss_of(called, batch)
            fabric.backward(loss) if fabric is not None else loss.backward()
            stepped.step()
            stepped.zero_grad()
            losses.append(loss.detach().clone())
    assert_same_handles(before, called)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"weights": weights, "losses": losses, "state": torch.get_rng_state(), "optimizer": optimizer.state_dict()}


@contextmanager
def watched(detectors: list[Any], model: nn.Module) -> Iterator[None]:
    with attached(model, detectors) as layers:
        yield
        readings = layers.take_readings()
        assert len({reading.layer for reading in readings}) >= BLOCKS
        assert not any("_module" in reading.layer for reading in readings)


@pytest.mark.documents(
    "compatibility/attached-in-a-bare-loop/detectors",
    "compatibility/attached-in-fabric-one-process/detectors",
    "compatibility/attached-in-fabric-one-process/logging",
)
@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("precision", [None, "32-true", "bf16-mixed", "bf16-true"])
def test_training_is_bit_identical_with_and_without_detectors(kind: str, precision: Any) -> None:
    def fabric() -> Fabric | None:
        return Fabric(accelerator="cpu", devices=1, precision=precision) if precision else None

    bare = trained(kind, fabric=fabric())
    seen = trained(kind, lambda model: watched(DETECTORS[kind](), model), fabric())
    assert_bit_equal(bare, seen)
    edited = trained(kind, lambda model: attached(model, ScaleController(EDITED[kind], 1.01)), fabric())
    assert any(not torch.equal(one, other) for one, other in zip(bare["losses"], edited["losses"], strict=True))


def test_a_fabric_module_has_the_names_of_the_model_in_it() -> None:
    bare = llama()
    names = ModuleTree(bare).names
    fabric = Fabric(accelerator="cpu", devices=1)
    assert ModuleTree(fabric.setup(bare)).names == names
    assert ModuleTree(fabric.setup(nn.ModuleDict({"net": bare}), move_to_device=False)).names[0] == "net"
    parallel = _FabricModule(nn.DataParallel(bare), fabric.strategy, original_module=bare)  # as for DDP
    assert ModuleTree(parallel).names == names


def test_steps_of_a_lightning_module_in_fabric_are_watched_and_steered() -> None:
    module = Module(mlp()).eval()
    module.log = lambda *call: None  # type: ignore[assignment,method-assign]
    batch = next(iter(loader(KINDS["mlp"][1]())))
    wrapped, bare = Fabric(accelerator="cpu", devices=1).setup(module), cross_entropy(module.model(batch[0]), batch[1])
    with attached(wrapped, [mean_of("model.0"), double("model.5")]) as layers:
        loss = wrapped.training_step(batch, 0)
        assert {reading.layer for reading in layers.take_readings()} == {"model.0"}
    assert not torch.equal(loss, bare) and torch.equal(wrapped.training_step(batch, 0), bare)


@pytest.mark.documents("compatibility/attached-in-fabric-one-process/controllers")
def test_a_hook_on_the_inner_model_sees_the_passes_of_fabrics_wrapper() -> None:
    model = mlp().eval()
    bare = model(X)
    wrapped = Fabric(accelerator="cpu", devices=1).setup(model)
    with attached(model, double("5")):
        assert torch.equal(wrapped(X), 2 * bare)
    with attached(wrapped, FunctionController("5", torch.neg)):
        assert torch.equal(wrapped(X), -bare)


def test_generate_of_a_fabric_module_is_followed() -> None:
    model = endless(llama().eval())
    wrapped = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed").setup(model)
    detector = ActivationStatistics("block:1", tokens="generated")
    with attached(wrapped, detector):
        wrapped.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert next(r.value.total for r in detector.readings() if r.name == "histogram") == 3 * WIDTH
