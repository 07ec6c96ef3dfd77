"""Hooks in graphs of an old torch are refused by name; the list of what it cannot do names tests that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from mi_crow_lightning import ActivationStatistics, HookCallback, RegistrationError
from mi_crow_lightning.hooks.compiled import rules
from mi_crow_lightning.hooks.compiled.torch_version import why_torch_is_too_old
from tests import claims, old_torch
from tests.models import Module, loader, mlp, trainer, vector_data

ROOT = Path(__file__).parents[1]


def test_an_old_torch_is_refused_by_name_for_hooks_in_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "why_torch_is_too_old", lambda: why_torch_is_too_old("2.8.0"))
    module, watch = Module(mlp()), HookCallback(ActivationStatistics("model.0"))
    module.model.compile(backend="eager")
    with pytest.raises(RegistrationError) as caught:
        trainer(watch).validate(module, loader(vector_data(8)), verbose=False)
    assert str(caught.value).startswith(
        "hooks inside graphs of torch.compile need torch 2.13 or newer, and this is torch 2.8.0."
    )
    feature = watch.report().feature("torch.compile")
    assert feature.support.value == "refused"


def test_an_old_torch_takes_hooks_on_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "why_torch_is_too_old", lambda: why_torch_is_too_old("2.8.0"))
    module, watch = Module(mlp()), HookCallback(ActivationStatistics("model.0"))
    module.model[0].compile(backend="eager")
    trainer(watch).validate(module, loader(vector_data(8)), verbose=False)
    assert {row.layer for row in watch.history()} == {"model.0"}


@pytest.mark.parametrize(
    ("version", "is_too_old"),
    [
        ("2.8.0+cu128", True),
        ("2.12.1", True),
        ("2.13.0+cpu", False),
        ("2.13.0a0+git1", False),
        ("2.14", False),
        ("3.0.0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, is_too_old: bool) -> None:
    assert (why_torch_is_too_old(version) is not None) == is_too_old


@pytest.mark.parametrize("file", sorted(old_torch.CANNOT))
def test_what_is_listed_is_there(file: str) -> None:
    tests = {test.name for test in claims.tests_of(file, claims.parsed_tests()[file])}
    assert {name.partition("[")[0] for name in old_torch.CANNOT[file]} <= tests
