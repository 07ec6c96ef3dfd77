"""Wrong arguments are told at construction, wrong layers and clashes when the run starts, each with a way out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    LayerNotFound,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import HookConflict, TagConflict
from tests.callback.runs import STAGES, Seen, data_of, fit, module_of, run
from tests.models import trainer


def edit(signature: Any = "model.0", **options: Any) -> FunctionController:
    return FunctionController(signature, lambda x: x, **options)


TWICE = Seen()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"detectors": ["block:0"]}, TypeError, "detectors holds 'block:0', which is a str, not a hook"),
        ({"detectors": "block:0"}, TypeError, "detectors='block:0' is a string, not a hook: give"),
        ({"controllers": [nn.Linear(2, 2)]}, TypeError, "controllers holds Linear.*which is a Linear, not a hook"),
        ({"detectors": [Seen]}, TypeError, "detectors holds <class .*, which is a type, not a hook"),
        ({"detectors": 3}, TypeError, "detectors=3 must be a hook or a list of hooks"),
        ({"detectors": edit()}, TypeError, r"detectors holds Function.*put it into controllers=\[...\]"),
        ({"controllers": Seen()}, TypeError, r"controllers holds Seen.*put it into detectors=\[...\]"),
        ({"detectors": ActivationStatistics()}, ValueError, "names no layer: give layer_signature=, e.g. 'block:"),
        ({"detectors": [Seen(hook_id="a"), Seen(hook_id="a")]}, ValueError, "two hooks have the ID 'a'"),
        ({"detectors": Seen(hook_id="a"), "controllers": edit(hook_id="a")}, ValueError, "two hooks have the ID 'a'"),
        (
            {"detectors": [TWICE, copy.copy(TWICE)]},
            ValueError,
            r"^Seen\(.*.0'\) is given twice, or",
        ),
        ({"detectors": Seen(), "log_every_n_steps": 0}, ValueError, "log_every_n_steps=0 must be a whole number"),
        ({"detectors": Seen(), "log_every_n_steps": True}, ValueError, "log_every_n_steps=True must be a whole"),
        ({"detectors": Seen(), "log_every_n_steps": 2.0}, ValueError, "log_every_n_steps=2.0 must be a whole number"),
        (
            {"detectors": Seen(), "scalars": "few"},
            ValueError,
            "scalars='few' is not known: choose one of 'auto', 'all'",
        ),
        ({"detectors": Seen(), "scalars": None}, ValueError, "scalars=None is not known: choose one of 'auto', 'all',"),
        ({"detectors": Seen(), "scalars": "rms"}, ValueError, r"give a list of their names, scalars=\['rms'\]"),
        (
            {"detectors": ActivationStatistics("model.0", statistics=["mean"]), "scalars": ["rms"]},
            ValueError,
            "scalars='rms' is not known: choose one of 'mean', 'histogram'",
        ),
        (
            {"detectors": ActivationStatistics("model.0"), "scalars": ["kurtosys"]},
            ValueError,
            "scalars='kurtosys' is not known: choose one of 'mean'.*Did you mean 'kurtosis'",
        ),
        ({"detectors": Seen(), "scalars": ["rms"]}, ValueError, "no detector of this callback is an ActivationStat"),
        ({"detectors": ActivationStatistics("model.0"), "scalars": []}, ValueError, "names no statistic"),
        ({"detectors": ActivationStatistics("model.0"), "scalars": ["rms", "rms"]}, ValueError, "has a name twice"),
        ({"detectors": Seen(), "monitor": "activations_rms/*"}, TypeError, "must be a list of tags.*not one string"),
        ({"detectors": Seen(), "monitor": ["a", 3]}, ValueError, "must hold tags, or patterns of tags"),
        ({"detectors": Seen(), "monitor": None}, TypeError, "monitor=None must be a list of tags"),
        ({"detectors": Seen(), "token_mask": torch.ones(2)}, TypeError, "must be a function from a batch to a mask"),
        (
            {"detectors": Seen(), "root": nn.Linear(2, 2)},
            TypeError,
            "root must be the name of a submodule, e.g. 'model', not a Linear",
        ),
        ({"detectors": Seen(), "name": 3}, ValueError, "name=3 must be a non-empty string"),
    ],
)
def test_arguments_of_the_callback(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        HookCallback(**arguments)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Seen(schedule="train"), TypeError, "schedule='train' must be a Schedule, or schedules combined with"),
        (lambda: Seen(schedule=Schedule), TypeError, "schedule=<class .* must be a Schedule"),
        (lambda: Schedule(stages="training"), ValueError, "'training' is not known: choose one of 'train', 'validate'"),
        (lambda: Schedule(every_n_steps=0), ValueError, "every_n_steps=0 must be 1 or more"),
        (lambda: Schedule(start_step=3, stop_step=3), ValueError, "leave no step: stop_step must be larger"),
        (lambda: Seen(on_error="ignore"), ValueError, "on_error='ignore' is not known: choose one of 'raise', "),
        (lambda: Seen(hook_type="after"), ValueError, "after"),
        (lambda: Seen(name="a/b"), ValueError, "name='a/b' must be a non-empty string without '/'"),
        (lambda: Seen(layer_signature=1.5), TypeError, "layer_signature=1.5 must be a name such as 'block:"),
        (lambda: ActivationStatistics("0", tokens="first"), ValueError, "tokens='first' is not known: choose one of"),
        (lambda: ActivationStatistics("0", tokens=3), TypeError, "tokens=3 must be a name such as 'generated'"),
        (
            lambda: ActivationStatistics("0", statistics=["median"]),
            ValueError,
            "'median' is not known: choose one of 'mean', 'std'",
        ),
        (lambda: SteeringController("0", torch.ones(2), tokens="end"), ValueError, "tokens='end' is not known"),
        (lambda: SteeringController("0", torch.ones(2), float("nan")), ValueError, "strength=nan must be a finite"),
        (lambda: FunctionController("0", 3), TypeError, "function=3 must be callable"),
        (lambda: LayerActivationDetector("0", keep="first"), ValueError, "keep='first' is not known"),
    ],
)
def test_arguments_of_hooks(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_layers_and_roots_are_told_before_the_first_batch(stage: str) -> None:
    ran: list[int] = []
    module = module_of("llama")
    module.model.register_forward_pre_hook(lambda *call: ran.append(1))
    for watch, words in [
        (HookCallback(Seen("model.h.0")), r"no layer 'model.h.0'; closest: "),
        (HookCallback(Seen("mlp")), r"layer 'mlp' is ambiguous: 4 names end like this: .*'\*.mlp' for all of them"),
        (HookCallback(Seen(4)), "layer 4: the model has 4 blocks, 0 to 3"),
        (HookCallback(Seen("block:0"), root="teacher"), "root='teacher' is not a module of Module; .* are: model"),
    ]:
        with pytest.raises(LayerNotFound, match=words):
            run(stage, trainer(watch), module, data_of("llama"))
    assert not ran


def test_two_detectors_of_one_callback_with_one_tag() -> None:
    pair = [ActivationStatistics("model.*", statistics=["mean"]), LayerActivationDetector("model.3")]
    words = (
        r"ActivationStatistics\(.* and LayerActivationDetector\(.* would both write the histogram of 'model.3' under "
        r"'activations': give one of them name=..., which becomes its tags' first part"
    )
    with pytest.raises(TagConflict, match=words):
        fit(module_of(), data_of(), HookCallback(pair))
    pair[1] = LayerActivationDetector("model.3", name="held")
    watch = HookCallback(pair)
    fit(module_of(), data_of(), watch)
    tags = {row.tag for row in watch.history()}
    assert {"activations_mean/model.3", "held_mean/model.3", "held_token_norm/model.3"} <= tags


def test_two_callbacks_with_one_tag() -> None:
    def pair(**named: Any) -> list[HookCallback]:
        return [HookCallback(ActivationStatistics("model.0")), HookCallback(ActivationStatistics("model.*", **named))]

    with pytest.raises(TagConflict, match=r"would both write the mean of 'model.0' under 'activations'"):
        fit(module_of(), data_of(), *pair())
    fit(module_of(), data_of(), *pair(name="all"))


def test_one_hook_in_two_callbacks_of_a_run() -> None:
    seen = Seen()
    with pytest.raises(
        HookConflict,
        match="is already registered, with a LanguageModel, Layers or another HookCallback",
    ):
        fit(module_of(), data_of(), HookCallback(seen), HookCallback(seen))
    assert not seen.registered


def test_a_layer_outside_of_what_is_compiled_may_be_watched() -> None:
    module, seen = module_of(), [Seen(layer, schedule=Schedule()) for layer in ("model.0", "model.5")]
    module.model[5] = torch.compile(module.model[5], backend="eager")
    run("predict", trainer(HookCallback(seen)), module, data_of())
    assert [len(hook.calls) for hook in seen] == [5, 5]
