"""The types of arguments say what a program checks while it runs: the same names, the same options, the same types."""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import Any, get_args

import pytest

import mi_crow_lightning as ours
from mi_crow_lightning import choices
from mi_crow_lightning._unknown_options import _options_of
from mi_crow_lightning.alarms.alarm import ACTIONS
from mi_crow_lightning.hooks import Hook, HookType, Stage, options
from mi_crow_lightning.hooks.statistics_detector import StatisticsDetector
from mi_crow_lightning.hooks.vector_controller import VectorController
from mi_crow_lightning.loggers.tags import STAGES
from mi_crow_lightning.metrics import known_statistics
from mi_crow_lightning.metrics.class_moments import GROUPS
from mi_crow_lightning.metrics.running_sums import MERGES
from mi_crow_lightning.vectors.extraction.layer_moments import METHODS

HOOKS = [cls for name in ours.__all__ if inspect.isclass(cls := getattr(ours, name)) and issubclass(cls, Hook)]
HANDING_ON = [
    cls
    for cls in [*HOOKS, StatisticsDetector, VectorController]
    if "__init__" in vars(cls) and "options" in inspect.signature(vars(cls)["__init__"]).parameters
]


def options_type(cls: type) -> Any:
    """The TypedDict of what a class hands on."""
    text = str(inspect.signature(vars(cls)["__init__"]).parameters["options"].annotation)
    found = re.fullmatch(r"Unpack\[(\w+)\]", text)
    assert found, f"{cls.__name__} takes **options: {text}"
    return getattr(options, found[1])


def annotation_in_bases(cls: type, name: str) -> str:
    for base in cls.__mro__[1:]:
        if "__init__" in vars(base) and name in (parameters := inspect.signature(vars(base)["__init__"]).parameters):
            return str(parameters[name].annotation)
    raise AssertionError(f"no base of {cls.__name__} takes {name}")


@pytest.mark.parametrize("cls", HANDING_ON, ids=lambda cls: cls.__name__)
def test_the_options_of_a_hook_have_the_types_that_its_bases_take(cls: type) -> None:
    named = inspect.signature(vars(cls)["__init__"]).parameters.keys()
    below = next(base for base in cls.__mro__[1:] if "__init__" in vars(base))
    handed_on = {*_options_of(below)} - named - {"layer_signature", "vector"} - getattr(cls, "_refused_options", set())
    typed = {name: one.__forward_arg__ for name, one in options_type(cls).__annotations__.items()}
    assert typed == {name: annotation_in_bases(cls, name) for name in handed_on}


WHOLE = {
    ours.Detector: options.DetectorOptions,
    ours.SummingDetector: options.SummingOptions,
    ours.ActivationStatistics: options.StatisticsOptions,
    ours.Controller: options.ControllerOptions,
    ours.TokenController: options.TokenOptions,
}


@pytest.mark.parametrize("cls", WHOLE, ids=lambda cls: cls.__name__)
def test_options_for_a_users_own_class_are_all_that_its_base_takes(cls: type) -> None:
    assert WHOLE[cls].__annotations__.keys() == {*_options_of(cls)} - {"layer_signature"}  # type: ignore[attr-defined]


def test_every_dict_of_options_is_of_a_hook_or_a_part_of_one() -> None:
    used = {*map(options_type, HANDING_ON), *WHOLE.values()}
    parts = {options.ScheduleOptions, options.PlaceOptions, options.EditOptions}
    assert {getattr(options, name) for name in options.__all__ if name.endswith("Options")} == used | parts


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        (choices.HookTypeName, HookType),
        (choices.StageName, Stage),
        (choices.StageName, STAGES),
        (choices.StatisticName, [one.name for one in known_statistics._BUILT_IN]),
        (choices.MethodName, METHODS),
        (choices.GroupName, GROUPS),
        (choices.MergeName, MERGES),
        (choices.ActionName, ACTIONS),
    ],
)
def test_names_are_those_that_are_checked(kind: Any, allowed: Any) -> None:
    assert get_args(kind) == tuple(one.value if isinstance(one, Enum) else one for one in allowed)


def test_right_uses_run() -> None:
    from tests.typing import uses

    assert len(uses.DETECTORS) > 10 and len(uses.CONTROLLERS) > 5
    used = {type(hook) for hook in (*uses.DETECTORS, *uses.CONTROLLERS)}
    bases = {ours.Hook, ours.Detector, ours.SummingDetector, ours.Controller, ours.TokenController}
    assert set(HOOKS) - used == bases, "each hook has a right use"


def test_a_configuration_file_reads_the_options_of_a_users_typed_hook() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--hook", type=Hook)
    given = {"layer_signature": "block:1", "most": 4, "name": "typed", "on_error": "warn"}
    read = parser.parse_object({"hook": {"class_path": "tests.typing.uses.Typed", "init_args": given}})
    made = parser.instantiate(read).hook
    assert (made.most, made.name, made.on_error) == (4, "typed", "warn")
    with pytest.raises(jsonargparse.ArgumentError, match=r"Literal\['raise', 'disable', 'warn'\]"):
        parser.parse_object({"hook": {"class_path": "tests.typing.uses.Typed", "init_args": {"on_error": "cry"}}})


def test_a_configuration_file_has_the_defaults_of_a_hook_with_our_unpack() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    from tests.typing.uses import Doubled

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Doubled, "hook")
    defaults = parser.get_defaults().hook
    assert (defaults.strength, defaults.tokens, defaults.may_skip, defaults.on_error) == (1.0, "all", False, None)
    assert "the positions to edit" in parser.format_help()
