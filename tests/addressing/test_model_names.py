"""A vector from another model is warned of, once for each hook; a vector that may be from this model is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mi_crow_lightning import (
    AblationController,
    ClampController,
    Hook,
    HookCallback,
    PatchController,
    ProjectionDetector,
    SteeringController,
    SteeringVector,
)
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import data_of, module_of, run, told
from tests.models import BLOCKS, WIDTH, gpt2, llama, trainer

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


def vector(model: str) -> SteeringVector:
    return SteeringVector({f"block:{i}": torch.ones(WIDTH) for i in range(BLOCKS)}, model=model).fitted_to(
        llama(), any_model=True
    )


def named(name: str) -> nn.Module:
    model = llama()
    model.config.name_or_path = name
    return model


HOOKS: dict[str, Callable[[SteeringVector], Hook]] = {
    "steering": lambda given: SteeringController("block:*", given),
    "ablation": lambda given: AblationController("block:*", given),
    "clamp": lambda given: ClampController("block:*", given, 1.0),
    "patch": lambda given: PatchController("block:*", given),
    "projection": lambda given: ProjectionDetector("block:*", given),
    "projections": lambda given: ProjectionDetector("block:*", vectors={"one": torch.ones(WIDTH), "other": given}),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_each_hook_that_takes_a_vector_tells_of_another_model_once(kind: str) -> None:
    hook, model = HOOKS[kind](vector("org/tiny-1b")), named("/models/tiny-3b")
    with told(
        r"made from model 'org/tiny-1b', and this one is '/models/tiny-3b'\. Was .* as by fine-tuning\?"
    ) as texts:
        Layers(model).register_hook(None, hook)
    assert texts[0].startswith(repr(hook)) and "dict(vector)" in texts[0]


@pytest.mark.parametrize("escape", ["dict", "fitted", "one layer"])
def test_what_the_message_advises_is_not_asked_again(escape: str) -> None:
    given, model = vector("org/tiny-1b"), named("tiny-3b")
    given = {
        "dict": dict(given),
        "fitted": dict(given.fitted_to(model, any_model=True)),
        "one layer": given[given.layers[0]],
    }[escape]
    Layers(model).register_hook(None, SteeringController("block:*", given))


@pytest.mark.parametrize(
    ("made_from", "here"),
    [
        ("org/tiny", "org/tiny"),
        ("org/Tiny", "/models/tiny"),  # a local copy
        ("tiny", "./downloads/org/tiny/"),
        ("", "tiny"),
        ("org/tiny", ""),
        ("LlamaForCausalLM", "tiny"),  # its model had no name then: any Llama
        (REVISION, "org/tiny"),  # a folder of transformers' cache
        ("org/tiny", f"/cache/models--org--tiny/snapshots/{REVISION}"),
    ],
)
def test_nothing_is_told_where_it_may_be_the_same_model(made_from: str, here: str) -> None:
    Layers(named(here)).register_hook(None, SteeringController("block:*", vector(made_from)))


def test_one_model_of_several_is_enough() -> None:
    both = nn.ModuleDict({"student": gpt2(), "teacher": named("org/teacher")})
    both["student"].config.name_or_path = "org/student"
    steer = SteeringController("teacher.model.layers.1", vector("org/teacher"))
    Layers(both).register_hook(None, steer)
    with told(re.escape("this one is 'org/student' and 'org/teacher'.")):
        Layers(both).register_hook(None, SteeringController("teacher.model.layers.1", vector("org/third")))


def test_in_a_trainer_with_a_vector_from_a_file(tmp_path: Path) -> None:
    vector("org/tiny-1b").save(tmp_path / "joy.safetensors")
    module = module_of("llama")
    module.model.config.name_or_path = "org/tiny-3b"
    steer = SteeringController("block:1", tmp_path / "joy.safetensors", hook_id="joy")
    with told(r"id='joy', .*\): its vector was made from model 'org/tiny-1b', and this one is 'org/tiny-3b'"):
        run("predict", trainer(HookCallback(controllers=steer)), module, data_of("llama")[:4])
