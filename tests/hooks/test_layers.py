"""The registry: registration on all layers or none, the conflict rule, queries and switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookConflict, HookError, LayerNotFound, RegistrationError
from mi_crow_lightning.hooks import (
    Controller,
    Detector,
    FunctionController,
    Hook,
    HookType,
    LayerActivationDetector,
    Layers,
    Schedule,
)
from tests.models import assert_same_handles, handles, llama, mlp

X = torch.ones(2, 8)


class Count(Detector):
    """Counts its calls by layer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[str] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen.append(ctx.layer)


def double(signature: Any = 0, **options: Any) -> FunctionController:
    return FunctionController(signature, lambda x: x * 2, **options)


def test_register_query_and_unregister() -> None:
    model = mlp()
    layers = Layers(model)
    detector, controller = Count(hook_id="count"), double(hook_id="double")
    assert layers.register_hook("0", detector) == "count"
    assert layers.register_hook(0, controller, "pre_forward") == "double"
    assert detector.layer_signature == "0" and controller.hook_type is HookType.PRE_FORWARD
    assert layers.get_hooks() == [detector, controller]
    assert layers.get_hooks(0) == layers.get_hooks("block:*") == [detector, controller]
    assert layers.get_hooks("3") == []
    assert layers.get_hooks(hook_type="forward") == [detector]
    assert layers.get_hooks("0", HookType.PRE_FORWARD) == [controller]
    assert layers.get_detectors() == [detector] and layers.get_controllers() == [controller]
    assert detector.registered and layers.is_attached(detector)
    assert layers.hooked_modules() == [model[0], model[0]]
    assert layers.unregister_hook(detector) is True and layers.unregister_hook(detector) is False
    assert layers.unregister_hook("double") is True and layers.unregister_hook("double") is False
    assert layers.unregister_hook("nobody") is False
    assert not detector.registered and detector.context is None
    assert layers.get_hooks() == [] and handles(model) == {}


def test_the_signature_at_registration_wins_over_the_hooks_own() -> None:
    model, detector = mlp(), Count(layer_signature="0")
    layers = Layers(model)
    layers.register_hook("3", detector)
    model(X)
    assert detector.seen == ["3"] and detector.layer_signature == "3"
    layers.unregister_hook(detector)
    layers.register_hook(None, detector)
    model(X)
    assert detector.seen == ["3", "3"]


def test_a_hook_without_a_layer_is_refused() -> None:
    with pytest.raises(RegistrationError, match="names no layer: give layer_signature="):
        Layers(mlp()).register_hook(None, Count())


def test_one_hook_on_many_layers_is_one_object_with_many_sites() -> None:
    model, detector = mlp(), Count()
    layers = Layers(model)
    layers.register_hook("block:*", detector)
    model(X)
    assert detector.seen == [str(i) for i in range(6)]
    assert [site.match.name for site in layers.sites(detector)] == detector.seen
    layers.unregister_all_hooks()
    assert handles(model) == {}


def test_a_second_of_a_kind_on_one_layer_and_hook_type_conflicts() -> None:
    model = mlp()
    layers = Layers(model)
    layers.register_hook("block:*", Count(hook_id="first"))
    layers.register_hook(3, double(hook_id="edit"))
    before = handles(model)
    message = (
        r"layer '3' already has a controller \(forward\): FunctionController\(layer_signature=3, id='edit', .*\). "
        "One controller per layer and hook type is allowed here: unregister that one, or set allow_stacking=True"
    )
    with pytest.raises(HookConflict, match=message):
        layers.register_hook(3, double())
    with pytest.raises(HookConflict, match=r"layer '0' already has a detector \(forward\): Count"):
        layers.register_hook("block:0-1", LayerActivationDetector())
    assert_same_handles(before, model)
    layers.register_hook(3, double(), "pre_forward")  # another hook type
    layers.register_hook(0, double())  # another layer
    assert len(layers.get_hooks()) == 4


def test_a_hook_that_is_both_counts_as_a_controller() -> None:
    class Both(Detector, Controller):
        def observe(self, x: Tensor, ctx: Any) -> None: ...

        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            return x

    layers = Layers(mlp())
    layers.register_hook(0, Count())
    layers.register_hook(0, Both())
    with pytest.raises(HookConflict, match="already has a controller"):
        layers.register_hook(0, double())
    assert layers.get_detectors() == layers.get_hooks() and len(layers.get_controllers()) == 1


def test_stacking_may_be_allowed() -> None:
    model = mlp()
    layers = Layers(model, allow_stacking=True)
    bare = model[0](X)
    for _ in range(3):
        layers.register_hook(0, double())
    assert torch.equal(model[0](X), bare * 8)


def test_an_id_is_given_once() -> None:
    layers = Layers(mlp())
    layers.register_hook(0, Count(hook_id="x"))
    with pytest.raises(HookConflict, match="a hook with ID 'x' is already registered here: unregister it first"):
        layers.register_hook(3, Count(hook_id="x"))
    assert len({Count().id for _ in range(9)}) == 9


def test_a_hook_is_on_one_model() -> None:
    one, other, detector = mlp(), mlp(), Count()
    layers = Layers(one)
    layers.register_hook(0, detector)
    with pytest.raises(
        HookConflict,
        match="is already registered, with a LanguageModel, Layers or another HookCallback",
    ):
        Layers(other).register_hook(0, detector)
    assert handles(other) == {} and layers.get_hooks() == [detector]
    layers.unregister_hook(detector)
    Layers(other).register_hook(0, detector)


class Nothing(Hook):
    pass


class SeesNothing(Detector):
    pass


class EditsNothing(Controller):
    pass


class OnlyEdits(Detector, Controller):
    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        return x * 2


def test_what_would_do_nothing_is_refused() -> None:
    layers = Layers(mlp())
    for hook, names in (
        (Nothing(), "Nothing overrides none of _hook_fn"),
        (SeesNothing(), "SeesNothing overrides none of observe, process_activations, _hook_fn"),
        (EditsNothing(), "EditsNothing overrides none of edit, modify_activations"),
    ):
        with pytest.raises(RegistrationError, match=f"{names}.*, so it would do nothing"):
            layers.register_hook(0, hook)
    layers.register_hook(0, OnlyEdits())  # half of what it could do is enough
    for wrong in (Count, lambda *_: None):
        with pytest.raises(TypeError, match="is not a hook: pass an instance of Detector, Controller or Hook"):
            layers.register_hook(0, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("signature", ["nowhere", "block:99", "*.nothing", "block:*.nothing"])
def test_a_signature_that_fails_leaves_nothing(signature: str) -> None:
    model, detector = llama(), Count(layer_signature="lm_head")
    layers = Layers(model)
    with pytest.raises(LayerNotFound):
        layers.register_hook(signature, detector)
    with pytest.raises(ValueError, match="hook_type='after' is not known: choose one of 'forward', 'pre_forward'"):
        layers.register_hook("lm_head", detector, "after")
    assert handles(model) == {} and layers.get_hooks() == []
    assert not detector.registered and detector.layer_signature == "lm_head"


def test_a_hook_that_cannot_prepare_leaves_nothing() -> None:
    class Unprepared(Count):
        def prepare(self, layers: list[str], device: torch.device) -> None:
            raise MemoryError(f"{len(layers)} layers on {device}")

    model, hook = llama(), Unprepared()
    layers = Layers(model)
    with pytest.raises(MemoryError, match="4 layers on cpu"):
        layers.register_hook("block:*", hook)
    assert handles(model) == {} and layers.get_hooks() == [] and not hook.registered and hook.layer_signature is None


def test_a_layer_that_takes_no_handle_leaves_nothing() -> None:
    class Closed(nn.Identity):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("closed")

    model = nn.Sequential(nn.Identity(), Closed(), nn.Identity())
    layers, hook = Layers(model), Count()
    with pytest.raises(RuntimeError, match="closed"):
        layers.register_hook("block:*", hook)
    assert handles(model) == {} and layers.get_hooks() == [] and not hook.registered


def test_switches_take_the_handles_off() -> None:
    model = llama()
    layers = Layers(model)
    detector, controller = Count(hook_id="count"), double(hook_id="double")
    layers.register_hook("block:*", detector)
    layers.register_hook("block:0", controller)
    both = handles(model)
    detector.disable()
    assert not detector.enabled and not detector.is_enabled() and not layers.is_attached(detector)
    layers.disable_all_hooks()
    assert handles(model) == {} and layers.get_hooks() == [detector, controller]
    assert layers.enable_hook("count") and not layers.enable_hook("nobody")
    assert detector.is_enabled() and not controller.is_enabled()
    layers.enable_all_hooks()
    assert handles(model).keys() == {*handles(model)} and len(handles(model)) == len(both)
    assert layers.disable_hook("double") and not layers.disable_hook("nobody")
    assert layers.disable_hook(detector) and handles(model) == {}  # the hook itself will do for its ID


def test_a_disabled_or_undue_hook_has_no_handle() -> None:
    model, detector = llama(), Count()
    detector.disable()
    layers = Layers(model)
    layers.register_hook("block:*", detector)
    assert handles(model) == {}
    layers.set_due(detector, False)
    detector.enable()
    assert handles(model) == {}  # the switch and the schedule are two things
    layers.set_due(detector, True)
    assert handles(model) != {}
    detector.enable()  # once more changes nothing
    model(torch.ones(1, 3, dtype=torch.long))
    assert len(detector.seen) == 4


def test_the_root_must_be_a_module() -> None:
    with pytest.raises(TypeError, match="root must be a torch module, not a str"):
        Layers("gpt2")  # type: ignore[arg-type]


class Interrupted(nn.Module):
    """Ctrl-C in the middle of its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 1:
            raise KeyboardInterrupt
        out: Tensor = self.inner(x)
        return out


def test_an_interrupted_pass_does_not_silence_the_next() -> None:
    model = nn.ModuleDict({"model": Interrupted()})
    layers = Layers(model["model"])

    def fail(x: Tensor) -> Tensor:
        raise ValueError("broke")

    layers.register_hook("inner", FunctionController(None, fail))
    with pytest.raises(KeyboardInterrupt):
        model["model"](X)
    with pytest.raises(HookError, match="broke"):
        model["model"](X)


def test_a_hook_that_failed_may_be_unregistered_before_the_pass_is_over() -> None:
    model = mlp()
    layers = Layers(model)

    class Fails(Controller):
        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            raise ValueError("broke")

    class Unregisters(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            ctx.layers.unregister_hook("fails")

    layers.register_hook("0", Fails(hook_id="fails"))
    layers.register_hook("1", Unregisters())
    with pytest.raises(HookError, match="broke"):
        model(X)


def test_a_schedule_needs_a_trainer() -> None:
    layers = Layers(mlp())
    with pytest.raises(RegistrationError, match="has a schedule, which only a HookCallback follows"):
        layers.register_hook("0", Count(schedule=Schedule(stages="train")))
    assert layers.get_hooks() == []


def test_scripted_layers_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8)))
    before = handles(model)
    with pytest.raises(RegistrationError, match="layer '1' is a TorchScript module, which takes no hooks"):
        Layers(model).register_hook("*", Count())
    assert_same_handles(before, model)


@pytest.mark.documents("reliability/a-pattern-matches-containers-that-nothing-calls")
def test_containers_that_nothing_calls_are_refused_by_name() -> None:
    """Stages of blocks are often a list in a list."""
    model = nn.Module()
    model.stages = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])])
    model.by_name = nn.ModuleDict({"one": nn.Linear(8, 8)})
    layers = Layers(model)
    for name, kind in (("stages", "ModuleList"), ("stages.0", "ModuleList"), ("by_name", "ModuleDict")):
        expected = rf"layer '{name}' is a {kind}, which has no forward\(\) .* such as '{name}\.\*'"
        with pytest.raises(RegistrationError, match=expected):
            layers.register_hook(name, Count())
    model.last = nn.ModuleList()
    count = Count()
    layers.register_hook("*", count)
    assert [site.match.name for site in layers.sites(count)] == ["stages.0.0", "stages.0.1", "by_name.one"]
    by_class = Count(hook_type="pre_forward")
    layers.register_hook(["type:*", "by_name"], by_class)  # what is named itself stays
    assert [site.match.name for site in layers.sites(by_class)] == [
        "stages.0.0",
        "stages.0.1",
        "by_name",
        "by_name.one",
    ]
    with pytest.raises(RegistrationError, match=r"layer 'stages' is a ModuleList"):
        layers.register_hook("type:ModuleList", Count())


def test_a_lazy_module_beside_the_layer_is_no_matter() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    count = Count()
    Layers(model).register_hook("1", count)
    model(X)
    assert count.seen == ["1"]


def test_a_hook_without_its_base_class_is_told() -> None:
    class Forgets(Detector):
        def __init__(self) -> None:
            pass

        def observe(self, x: Tensor, ctx: Any) -> None:
            pass

    with pytest.raises(TypeError, match=r"Forgets.__init__ must call super\(\).__init__"):
        Layers(mlp()).register_hook("0", Forgets())


def test_an_error_and_a_ctrl_c_in_one_pass_do_not_reach_the_next() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Interrupted())
    layers = Layers(model)
    passes: list[int] = []

    def fail_once(x: Tensor) -> Tensor:
        passes.append(1)
        if len(passes) == 1:
            raise ValueError("broke")
        return x * 0

    layers.register_hook("0", FunctionController(None, fail_once))
    with pytest.raises(KeyboardInterrupt):
        model(X)
    assert torch.equal(model(X), model[1].inner(torch.zeros(2, 8)))
    assert len(passes) == 2
