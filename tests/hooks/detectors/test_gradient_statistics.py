"""GradientStatistics: autograd by hand and numpy over exactly the tokens that count, each counted once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import GradientStatistics, Layers
from tests.callback.runs import told
from tests.hooks.detectors.gradients import all_of, assert_equal_to, batch_of, by_hand, loss_of, steady

NAMES = [f"model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp", ".self_attn.o_proj")]


def expected_of(*batches: dict[str, Tensor], names: list[str] = NAMES) -> dict[str, np.ndarray]:
    """The gradients at the real tokens, from a model that nothing watches and that runs nothing twice."""
    model = steady()
    each = [
        by_hand(model, names, lambda batch=batch: loss_of(model, batch), batch["attention_mask"]) for batch in batches
    ]
    return {name: np.concatenate([of_batch[name] for of_batch in each]) for name in names}


def checkpoint_blocks(model: Any, reentrant: bool) -> None:
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})


def watched(model: nn.Module, detector: GradientStatistics) -> Layers:
    layers = Layers(model)
    layers.register_hook(None, detector)
    return layers


def test_numpy_over_the_real_tokens_of_two_batches() -> None:
    model, detector, batches = steady(), all_of(NAMES), (batch_of(), batch_of(4))
    watched(model, detector)
    for batch in batches:
        loss_of(model, batch).backward()
    assert_equal_to(expected_of(*batches), detector.readings())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_reading(reentrant: bool) -> None:
    model, detector, batches = steady(), all_of(NAMES), (batch_of(), batch_of(4))
    checkpoint_blocks(model, reentrant)
    watched(model, detector)
    for batch in batches:
        loss_of(model, batch).backward()
    assert_equal_to(expected_of(*batches), detector.readings())


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_passes_before_one_backward(reentrant: bool) -> None:
    model, detector, batches = steady(), all_of(NAMES), (batch_of(), batch_of(4))
    checkpoint_blocks(model, reentrant)
    watched(model, detector)
    sum(loss_of(model, batch) for batch in batches).backward()  # the masks differ
    assert_equal_to(expected_of(*batches), detector.readings())


class Checkpointed(nn.Module):
    """A module whose parts run inside checkpoints, one in the other, each in its way."""

    def __init__(self, outer: bool | None, inner: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.same, self.second = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 6)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.outer, self._outer, self.first(x))

    def _outer(self, x: Tensor) -> Tensor:
        return _run(self.inner, lambda y: self.second(self.same(y)).tanh(), self.same(x).relu())


def _run(reentrant: bool | None, function: Any, x: Tensor) -> Any:
    return function(x) if reentrant is None else checkpoint(function, x, use_reentrant=reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # of a checkpoint in another
@pytest.mark.parametrize("outer", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_checkpoints_in_checkpoints(outer: bool | None, inner: bool | None) -> None:
    x = torch.randn(3, 5, 6, requires_grad=True)  # else a reentrant checkpoint warns
    names = ["first", "second", "same"]
    plain = Checkpointed(None, None)
    expected = by_hand(plain, names, lambda: (plain(x) ** 2).sum(), None)
    model, detector = Checkpointed(outer, inner), all_of(names)
    watched(model, detector)
    (model(x) ** 2).sum().backward()
    assert_equal_to(expected, detector.readings())


def test_gradients_of_inputs_before_the_layer() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(5, 6)
    inputs, outputs = GradientStatistics("2", hook_type="pre_forward"), GradientStatistics("1", name="outputs")
    layers = Layers(model)
    layers.register_hooks([inputs, outputs])
    model(x).square().sum().backward()
    assert [r.value for r in inputs.readings()[:8]] == [r.value for r in outputs.readings()[:8]]


def test_a_layer_whose_output_is_changed_in_place() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), torch.randn(5, 6)
    detector, plain = all_of("0"), copy.deepcopy(model)
    plain[1].inplace = False
    watched(model, detector)
    model(x).square().sum().backward()
    assert_equal_to(by_hand(plain, ["0"], lambda: plain(x).square().sum(), None), detector.readings())


def test_the_run_is_the_same_bit_for_bit() -> None:
    def run(watch: bool) -> list[Tensor]:
        model = steady()
        if watch:
            watched(model, all_of(NAMES))
        loss_of(model, batch_of()).backward()
        return [torch.get_rng_state(), *(parameter.grad for parameter in model.parameters())]

    torch.manual_seed(0)
    bare = run(False)
    torch.manual_seed(0)
    assert all(map(torch.equal, bare, run(True)))


def test_no_backward_pass_leaves_nothing_and_says_so() -> None:
    model, detector = steady(), all_of(NAMES)
    watched(model, detector)
    loss_of(model, batch_of())
    with told("saw no gradient at 12 of its 12 layers: model.layers.0"):
        assert detector.readings() == []


def test_a_backward_pass_after_the_hook_is_off_is_not_counted() -> None:
    model, detector = steady(), all_of(NAMES)
    layers = watched(model, detector)
    loss = loss_of(model, batch_of())
    layers.unregister_hook(detector)
    watched(model, detector)
    loss.backward()
    with told("", times=0):
        assert detector.readings() == []


def test_a_disabled_detector_counts_nothing() -> None:
    model, detector = steady(), all_of(NAMES)
    watched(model, detector)
    loss = loss_of(model, batch_of())
    detector.disable()
    loss.backward()
    detector.enable()
    with told("saw no gradient"):
        assert detector.readings() == []


def test_a_leaf_that_comes_again_is_counted_once_a_backward_pass() -> None:
    model, detector, x = (
        nn.Sequential(nn.Identity(), nn.Linear(3, 1)),
        all_of("0"),
        torch.ones(2, 3, requires_grad=True),
    )
    layers = watched(model, detector)
    for _ in range(3):
        detector.reset()
        model(x).sum().backward()
    (counted,) = (r.value for r in detector.readings() if r.name == "histogram")
    assert counted.total == x.numel()
    layers.unregister_hook(detector)
    assert not x._backward_hooks


def test_frozen_layers_have_no_reading_and_are_named_once() -> None:
    model, detector = steady(), all_of("block:*")
    watched(model, detector)
    for module in (model.model.embed_tokens, *model.model.layers[:2]):
        module.requires_grad_(False)
    for times in (1, 0):
        loss_of(model, batch_of()).backward()
        with told("saw no gradient at 2 of its 4 layers: model.layers.0, model.layers.1", times=times):
            assert {reading.layer for reading in detector.readings()} == {"model.layers.2", "model.layers.3"}
        detector.reset()


def test_a_failure_in_the_backward_pass_follows_the_policy() -> None:
    class Fails(GradientStatistics):
        def _add(self, *args: Any) -> None:
            raise ArithmeticError("no")

    model = steady()
    watched(model, Fails("block:0", on_error="raise"))
    with pytest.raises(HookError, match="no"):
        loss_of(model, batch_of()).backward()
    model = steady()
    watched(model, fails := Fails("block:0", on_error="disable"))
    with told("The hook is disabled", RuntimeWarning):
        loss_of(model, batch_of()).backward()
    assert not fails.enabled and all(parameter.grad is not None for parameter in model.parameters())


def test_copies_wait_for_nothing() -> None:
    model, detector = steady(), all_of("block:*")
    watched(model, detector)
    loss = loss_of(model, batch_of())
    copies = [copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))]
    loss.backward()
    assert detector.readings() and not any(one.registered for one in copies)
