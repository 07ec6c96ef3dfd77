"""Somebody else takes our handles off in the middle of a run: that is reported, whichever handle it was."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, HookCallback, HookError, ScaleController, Schedule, attached
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.language_model import LanguageModel
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run, told
from tests.hooks.test_threads import Tokenizer
from tests.models import Module, handles, loader, trainer

pytestmark = pytest.mark.faults

EVERY = Schedule()
LAYER = "model.model.layers.1"


def clear(modules: Any, *names: str) -> None:
    for module in modules:
        for name in names:
            getattr(module, name).clear()


def everywhere(model: nn.Module) -> None:
    clear(model.modules(), "_forward_hooks")


def before_layers(model: nn.Module) -> None:
    """Take off those that mark where a pass begins."""
    clear(model.modules(), "_forward_pre_hooks")


def of_the_layer(model: nn.Module) -> None:
    clear([model.get_submodule("model.layers.1")], "_forward_hooks")


def of_an_ancestor(model: nn.Module) -> None:
    clear([model.get_submodule("model")], "_forward_hooks")


def of_the_outermost(model: nn.Module) -> None:
    clear([model], "_forward_pre_hooks")


def replaced(model: nn.Module) -> None:
    """Replace the dict, and keep the old one alive."""
    layer = model.get_submodule("model.layers.1")
    model.kept = layer._forward_hooks  # type: ignore[assignment]
    layer._forward_hooks = OrderedDict()


def one_of_several(model: nn.Module) -> None:
    layer = model.get_submodule("model.layers.1")
    layer.register_forward_hook(lambda *call: None)
    del layer._forward_hooks[next(iter(layer._forward_hooks))]


def without_keywords(model: nn.Module) -> None:
    """Have torch pass no keywords to the handle that reads the attention mask."""
    clear([model.get_submodule("model")], "_forward_pre_hooks_with_kwargs")


def without_errors(model: nn.Module) -> None:
    """Have torch report no end of a call that raises."""
    clear([model], "_forward_hooks_always_called")


WAYS = (
    everywhere,
    before_layers,
    of_the_layer,
    of_an_ancestor,
    of_the_outermost,
    replaced,
    one_of_several,
    without_keywords,
    without_errors,
)


class Clearing(Module):
    """Calls a function of its model in the middle of a batch: before its pass, or between forward and backward."""

    def __init__(self, way: Callable[[nn.Module], None], at: int = 1, after: bool = False) -> None:
        model = module_of("llama").model
        super().__init__(model)
        self.way, self.at, self.after = way, at, after

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == self.at and not self.after:
            self.way(self.model)
        loss = self.loss(batch)
        if batch_idx == self.at and self.after:
            self.way(self.model)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == self.at:
            self.way(self.model)
        return self.model(**batch).logits


class Steps(pl.Callback):
    """Keeps the weights before each batch."""

    def __init__(self) -> None:
        self.weights: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(fingerprint(pl_module)["weights"])


@pytest.mark.documents("reliability/the-handles-of-a-controller-are-cleared-or-replaced-in-a-batch")
@pytest.mark.parametrize("way", WAYS)
def test_a_controller_in_training_raises_before_the_optimizer_steps(way: Callable[[nn.Module], None]) -> None:
    steps, module = Steps(), Clearing(way)
    watch = HookCallback(controllers=ScaleController(LAYER, 1.5, schedule=EVERY))
    with pytest.raises(HookError, match=r"stage train, batch 1: RegistrationError: handles .* taken off") as raised:
        fit(module, data_of("llama"), steps, watch)
    assert "layers.1" in str(raised.value) or "model" in str(raised.value)
    assert len(steps.weights) == 2
    assert_bit_equal(fingerprint(module)["weights"], steps.weights[1])
    assert not watch.controllers[0].registered and ours(module) == []


def ours(module: nn.Module) -> list[str]:
    """The handles of this package that are on a module."""
    return [name for (name, *_), hook in handles(module).items() if "mi_crow" in type(hook).__module__]


@pytest.mark.documents("reliability/the-handles-of-a-controller-are-cleared-between-forward-and-backward")
@pytest.mark.parametrize("when", ["after the forward", "after the backward"])
def test_a_recompute_without_the_edit_is_not_stepped_on(when: str) -> None:
    def way(model: nn.Module) -> None:
        clear([model.get_submodule("model.layers.1.mlp")], "_forward_hooks")

    class Clears(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if len(steps.weights) == 2:
                way(pl_module.model)

    steps, module = Steps(), Clearing(way, at=1 if when == "after the forward" else -1, after=True)
    checkpointed(module)
    callbacks = [Clears()] if when == "after the backward" else []
    watch = HookCallback(controllers=ScaleController(LAYER + ".mlp", 1.5, schedule=EVERY))
    with pytest.raises(HookError, match=r"batch 1: RegistrationError: handles .* at 'model.model.layers.1.mlp'"):
        fit(module, data_of("llama"), steps, watch, *callbacks)
    assert_bit_equal(fingerprint(module)["weights"], steps.weights[1])


@pytest.mark.documents("reliability/the-handles-of-a-controller-are-cleared-or-replaced-in-a-batch")
@pytest.mark.parametrize("way", WAYS)
def test_a_controller_in_predict_ends_the_run_at_that_batch(way: Callable[[nn.Module], None]) -> None:
    module, batches = Clearing(way), []

    class After(pl.Callback):
        def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch_idx)

    watch = HookCallback(controllers=ScaleController(LAYER, 1.5, schedule=EVERY))
    with pytest.raises(HookError, match=r"stage predict, batch 1: RegistrationError: handles .* taken off"):
        run("predict", trainer(watch, After()), module, data_of("llama"))
    assert batches == [0] and ours(module) == []


@pytest.mark.documents("reliability/the-handles-of-a-detector-are-cleared-or-replaced-in-a-batch")
@pytest.mark.parametrize("way", WAYS)
def test_a_detector_is_switched_off_by_name(way: Callable[[nn.Module], None]) -> None:
    watch = HookCallback(ActivationStatistics(LAYER, statistics=["mean"], histogram=False, schedule=EVERY))
    module, bare = Clearing(way), Clearing(lambda model: None)
    with told(
        r"ActivationStatistics .*batch 1: RegistrationError: handles .* taken off[\s\S]*disabled", RuntimeWarning
    ):
        pl.seed_everything(1, verbose=False)
        fit(module, data_of("llama"), watch)
    pl.seed_everything(1, verbose=False)
    fit(bare, data_of("llama"))
    assert_bit_equal(fingerprint(module)["weights"], fingerprint(bare)["weights"])
    assert [row.step for row in watch.history()] == [0] and ours(module) == []


@pytest.mark.documents("reliability/the-handles-of-a-detector-are-cleared-or-replaced-in-a-batch")
def test_a_detector_that_only_warns_is_on_again_in_the_next_batch() -> None:
    detector = ActivationStatistics(LAYER, statistics=["mean"], histogram=False, schedule=EVERY, on_error="warn")
    watch = HookCallback(detector)
    with told(r"handles .* taken off", RuntimeWarning):
        fit(Clearing(of_the_layer), data_of("llama"), watch)
    assert [row.step for row in watch.history()] == [0, 2, 3, 4]


@pytest.mark.documents("reliability/the-handles-of-a-detector-are-cleared-or-replaced-in-a-batch")
def test_a_copied_dict_with_our_handles_is_fine_and_is_left_without_them() -> None:
    """Torch's own handle would take itself off the dict that the module had before."""

    def copied(model: nn.Module) -> None:
        for module in model.modules():
            module._forward_hooks = OrderedDict(module._forward_hooks)
            module._forward_pre_hooks = OrderedDict(module._forward_pre_hooks)

    watch = HookCallback(ActivationStatistics(LAYER, statistics=["mean"], histogram=False, schedule=EVERY))
    module = Clearing(copied)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(module, data_of("llama"), watch)
    assert [row.step for row in watch.history()] == [0, 1, 2, 3, 4] and ours(module) == []


@pytest.mark.documents("reliability/handles-are-cleared-outside-a-trainer")
@pytest.mark.parametrize("way", [everywhere, before_layers, of_the_layer, replaced])
@pytest.mark.parametrize("hook", [ScaleController("block:1", 1.5), ActivationStatistics("block:1")])
def test_the_end_of_a_block_reports_it(way: Callable[[nn.Module], None], hook: Any) -> None:
    model, batch = module_of("llama").model.eval(), next(iter(loader(data_of("llama"))))

    def block() -> None:
        with attached(model, hook):
            model(**batch)
            way(model)
            model(**batch)

    with pytest.raises(HookError, match=r"handles .* taken off") as raised:
        block()
    assert isinstance(raised.value.original_error, RegistrationError)
    assert not hook.registered and ours(model) == []


@pytest.mark.documents("reliability/handles-are-cleared-outside-a-trainer")
def test_readings_and_inference_report_it() -> None:
    model = module_of("llama").model.eval()
    layers, batch = Layers(model), next(iter(loader(data_of("llama"))))
    layers.register_hook("block:1", ActivationStatistics())
    model(**batch)
    everywhere(model)
    with pytest.raises(HookError, match=r"handles .* taken off"):
        layers.take_readings()
    layers.unregister_all_hooks()
    lm = LanguageModel(model, Tokenizer())
    lm.layers.register_hook("block:1", ScaleController(None, 2.0))
    lm.inference.execute_inference(["a text"])
    everywhere(model)
    with pytest.raises(HookError, match=r"handles .* taken off"):
        lm.inference.execute_inference(["a text"])
    lm.layers.unregister_all_hooks()
    assert ours(model) == []


@pytest.mark.documents("reliability/handles-around-a-compiled-module-are-cleared")
@pytest.mark.parametrize("how", ["cleared", "compiled again"])
def test_handles_around_a_compiled_module(how: str) -> None:
    def way(model: nn.Module) -> None:
        block = model.get_submodule("model.layers.1")
        if how == "cleared":
            clear([block._compiled_call_impl], "_forward_hooks")
        else:
            block.compile(backend="eager")

    module = Clearing(way)
    for block in module.model.model.layers:
        block.compile(backend="eager")
    watch = HookCallback(controllers=ScaleController("block:1", 1.5, schedule=EVERY))
    with pytest.raises(HookError, match=r"handles .* at 'model.model.layers.1'"):
        run("predict", trainer(watch), module, data_of("llama"))
