"""The sweep's checks call a hook wrong that differs from the reference without a word."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch

from mi_crow_lightning import ActivationStatistics, SteeringController
from tests.architectures import checks
from tests.architectures.checks import Case, generated, outcome, statistics, steered, trained
from tests.architectures.layout import chosen_elements
from tests.architectures.tiny_model import Architecture


@pytest.fixture(scope="module")
def llama() -> Case:
    return Case(Architecture("llama", "causal", "LlamaForCausalLM"))


def controller(tokens: str, warning: str = "") -> Any:
    """Return what takes the place of `SteeringController`: it edits these tokens, whichever are asked for."""

    def made(layer: str, vector: Any, strength: Any, **_: Any) -> SteeringController:
        if warning:
            warnings.warn(warning, stacklevel=2)
        return SteeringController(layer, vector, strength, tokens=tokens)

    return made


def test_a_controller_that_edits_more_tokens_is_wrong(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SteeringController", controller("all"))
    found = outcome(lambda case: steered(case, "left", "last"), llama)
    assert found == "wrong: model.layers.0: other tokens than 'last' changed"


def test_a_controller_that_edits_fewer_tokens_is_wrong(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SteeringController", controller("last"))
    found = outcome(lambda case: steered(case, "left", "all"), llama)
    assert found.startswith("wrong: model.layers.0: the edit differs by")


@pytest.mark.parametrize("cached", [True, False])
def test_a_controller_that_edits_the_prompt_is_wrong_in_generate(
    llama: Case, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(checks, "SteeringController", controller("all"))
    found = outcome(lambda case: generated(case, "generated", cached), llama)
    assert found.startswith("wrong: scores differ by")


def test_a_difference_that_a_warning_names_is_a_warning(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SteeringController", controller("all", "'model.layers.0': padding counts"))
    found = outcome(lambda case: generated(case, "generated", True), llama)
    assert found == "warned: 'model.layers.0': padding counts"


def test_a_detector_that_counts_other_elements_is_wrong(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ActivationStatistics", partial(ActivationStatistics, tokens="last"))
    assert "elements are counted" in outcome(lambda case: statistics(case, "none"), llama)
    assert "elements are counted" in outcome(trained, llama)


@pytest.mark.parametrize(
    ("shape", "chosen_one"),
    [((2, 3, 5), (1, 0, 0)), ((3, 2, 5), (0, 1, 0)), ((4, 2, 3, 5), (3, 1, 0, 0)), ((6, 5), (3, 0))],
)
def test_tokens_are_found_in_every_order_of_dimensions(shape: tuple[int, ...], chosen_one: tuple[int, ...]) -> None:
    chosen = torch.tensor([[False] * 3, [True, False, False]])  # (B, T) = (2, 3)
    found = chosen_elements(torch.zeros(shape), chosen)
    assert found is not None
    assert found[chosen_one].item()
    assert int(found.sum()) == found.numel() // 6


def test_other_tokens_are_not_found() -> None:
    assert chosen_elements(torch.zeros(2, 4, 5), torch.ones(2, 3, dtype=torch.bool)) is None
