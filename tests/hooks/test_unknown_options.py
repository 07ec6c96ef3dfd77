"""An option that a hook does not take is refused in the hook's own name, with the options that it takes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import mi_crow_lightning as ours
from mi_crow_lightning import Controller, Detector, Hook, SteeringController, WeightStatistics
from tests.constructors import CONSTRUCTORS

HOOKS = {
    name: (CONSTRUCTORS[name].make, CONSTRUCTORS[name].right)
    for name in ours.__all__
    if inspect.isclass(cls := getattr(ours, name)) and issubclass(cls, Hook) and name in CONSTRUCTORS
}


class Along(Detector):
    def __init__(self, layer_signature: str | None = None, *, most: float = 1.0, **options: Any) -> None:
        super().__init__(layer_signature, **options)


class Popping(Controller):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.most = options.pop("most", 1.0)
        super().__init__(*args, **options)


class Closed(Along):
    def __init__(self, layer_signature: str | None = None) -> None:
        super().__init__(layer_signature)


class Below(Closed):
    pass


def refused(make: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(TypeError) as caught:
        make(*args, **options)
    return str(caught.value)


def test_a_misspelt_option_is_named_with_the_nearest_first() -> None:
    message = refused(SteeringController, "block:0", torch.ones(3), strenght=2)
    start = "SteeringController takes no option strenght=2. Did you mean 'strength'? It takes strength, "
    assert message.startswith(start)
    listed = message.removeprefix(start).split(", ")
    everything = {"layer_signature", "vector", "tokens", "when", "preserve_norm", "hook_type", "hook_id", "may_skip"}
    everything |= {"vectors", "layers", "schedule", "on_error", "channels"}
    assert set(listed) == everything and len(listed) == len(set(listed))


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_lists_what_it_takes_and_takes_what_it_lists(name: str) -> None:
    cls, right = HOOKS[name]
    listed = refused(cls, **right, zzz=1).removeprefix(f"{name} takes no option zzz=1. It takes ").split(", ")
    assert {"layer_signature", "hook_id", "schedule", "on_error", *right} <= set(listed)
    for option in set(listed) - right.keys():
        failure = ""
        try:
            cls(**right, **{option: None})
        except (TypeError, ValueError) as error:  # the value, never the option
            failure = f"{option}: {error}"
        assert "takes no" not in failure and "unexpected" not in failure


def test_users_own_hooks_too() -> None:
    assert "Along takes no option mots=2.0. Did you mean 'most'? It takes most, " in refused(Along, "0", mots=2.0)
    assert "Popping takes no option on_eror='warn'. Did you mean 'on_error'?" in refused(Popping, "0", on_eror="warn")
    assert Popping("0", most=2.0).most == 2.0
    assert "Below" not in refused(Below, "0", most=1)  # Python names the class whose signature is closed
    assert "positional" in refused(type("Mine", (Hook,), {}), 1, 2, 3, 4)


def test_a_class_does_not_list_what_it_refuses_of_its_bases() -> None:
    message = refused(WeightStatistics, "0", statistic=["norm"])
    assert "Did you mean 'statistics'?" in message
    listed = message.split("It takes ")[1].split(", ")
    assert not {"tokens", "before_edits", "hook_type", "channels", "store"} & set(listed)
    assert "reads weights and no activation" in refused(WeightStatistics, "0", tokens="all")


def test_the_message_is_short_and_the_signature_as_written() -> None:
    assert len(refused(Hook, **{"x" * 10_000: "y" * 10_000})) < 1000
    parameters = inspect.signature(Hook).parameters
    assert list(parameters) == ["layer_signature", "hook_type", "hook_id", "schedule", "on_error", "channels"]
    assert all(one.kind is one.KEYWORD_ONLY for one in list(parameters.values())[3:])
