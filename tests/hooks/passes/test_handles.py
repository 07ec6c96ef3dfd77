"""The order of hooks on one layer, whatever comes and goes, and beside the hooks of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mi_crow_lightning.hooks import Controller, Detector, Hook, Layers
from tests.models import assert_same_handles, handles

ONE = torch.ones(1, 1)


class See(Detector):
    def __init__(self, log: list[Any], **options: Any) -> None:
        super().__init__(layer_signature=0, **options)
        self.log = log

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.log.append((self.id, x.item()))


class Append(Controller):
    """Appends its digit to the number that passes through."""

    def __init__(self, log: list[Any], digit: int, **options: Any) -> None:
        super().__init__(layer_signature=0, hook_id=str(digit), **options)
        self.log, self.digit = log, digit

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        self.log.append(self.id)
        return x * 10 + self.digit


def network() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Identity())


@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
def test_controllers_then_detectors_and_before_edits_first(hook_type: str) -> None:
    log: list[Any] = []
    layers = Layers(network(), allow_stacking=True)
    options = dict(hook_type=hook_type)
    for hook in (
        See(log, hook_id="after", **options),
        Append(log, 2, **options),
        See(log, hook_id="before", before_edits=True, **options),
        Append(log, 3, **options),
        See(log, hook_id="after too", **options),
    ):
        layers.register_hook(None, hook)
    assert layers.root(ONE).item() == 123
    assert log == [("before", 1), "2", "3", ("after", 123), ("after too", 123)]


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["edit", "see", "before"]), min_size=1, max_size=5),
    switches=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
    registries=st.lists(st.integers(0, 1), min_size=5, max_size=5),
)
def test_the_order_stays_whatever_is_switched(
    kinds: list[str], switches: list[tuple[int, bool]], registries: list[int]
) -> None:
    """Also over two registries on one model, which share one count of registrations."""
    log: list[Any] = []
    model = network()
    both = [Layers(model, allow_stacking=True), Layers(model, allow_stacking=True)]
    hooks: list[Hook] = []
    for i, kind in enumerate(kinds):
        hook = Append(log, i + 1) if kind == "edit" else See(log, hook_id=str(i + 1), before_edits=kind == "before")
        both[registries[i]].register_hook(None, hook)
        hooks.append(hook)
    for index, on in switches:
        if index < len(hooks):
            hooks[index].enable() if on else hooks[index].disable()
    model(ONE)
    enabled = [(kind, hook.id) for kind, hook in zip(kinds, hooks, strict=True) if hook.enabled]
    expected = [hook_id for wanted in ("before", "edit", "see") for kind, hook_id in enabled if kind == wanted]
    assert [entry if isinstance(entry, str) else entry[0] for entry in log] == expected
    for layers in both:
        layers.unregister_all_hooks()
    assert handles(model) == {}


def test_hooks_of_others_stay_and_keep_their_identity() -> None:
    model = network()
    seen: list[Any] = []

    def foreign(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output.item())

    def foreign_pre(module: nn.Module, args: Any) -> None:
        seen.append("pre")

    for module in (model, model[0]):
        module.register_forward_hook(foreign)
        module.register_forward_pre_hook(foreign_pre)
    late = model[0].register_forward_hook(foreign, prepend=True)
    before = handles(model)
    layers = Layers(model, allow_stacking=True)
    log: list[Any] = []
    hooks = [See(log), Append(log, 2), Append(log, 3, hook_type="pre_forward")]
    for hook in hooks:
        layers.register_hook(None, hook)
    after_us = model[0].register_forward_hook(foreign)
    for hook in reversed(hooks):
        hook.disable()
        hook.enable()
    assert model(ONE).item() == 132 and len(seen) == 6
    assert handles(model).items() >= before.items()
    layers.unregister_all_hooks()
    after_us.remove()
    assert_same_handles(before, model)
    late.remove()
    assert len(handles(model)) == len(before) - 1


class Switch(Hook):
    """Switches a hook while the pass runs."""

    def __init__(self, other: Hook | None, on: bool = False) -> None:
        super().__init__(layer_signature=0)
        self.other, self.on = other or self, on

    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> None:
        self.other.enable() if self.on else self.other.disable()


@pytest.mark.parametrize("signature", [0, 1])
def test_a_hook_may_switch_another_off_in_the_middle_of_a_pass(signature: int) -> None:
    log: list[Any] = []
    layers = Layers(network(), allow_stacking=True)
    victim = See(log)
    layers.register_hook(None, Switch(victim))
    layers.register_hook(signature, victim)
    layers.root(ONE)
    assert log == [] and not layers.is_attached(victim)
    layers.disable_all_hooks()
    assert handles(layers.root) == {}


def test_a_hook_may_switch_itself_off_in_the_middle_of_a_pass() -> None:
    """The pass is then no longer followed; the next one is again, and its errors are raised."""

    class Fails(Controller):
        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            raise RuntimeError("no")

    layers = Layers(network())
    once = Switch(None)
    layers.register_hook(None, once)
    layers.root(ONE)
    assert handles(layers.root) == {}
    layers.register_hook(1, Fails())
    with pytest.raises(Exception, match="RuntimeError: no"):
        layers.root(ONE)


def test_a_hook_may_switch_another_on_in_the_middle_of_a_pass() -> None:
    log: list[Any] = []
    layers = Layers(network(), allow_stacking=True)
    late = See(log)
    layers.register_hook(None, Switch(late, on=True))
    late.disable()
    layers.register_hook(1, late)
    layers.root(ONE)
    assert log == [(late.id, 1)]
