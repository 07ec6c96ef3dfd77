"""LayerActivationDetector: copies that are nobody's alias, in the forms its docstring names, within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import CaptureBudgetExceeded, HookError
from mi_crow_lightning.hooks import FunctionController, LayerActivationDetector, Layers
from tests.models import llama

IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


class Overwrites(nn.Module):
    """Writes to its input, as an in-place ReLU does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.zero_()


def watched(model: nn.Module, signature: Any = "0", **options: Any) -> LayerActivationDetector:
    detector = LayerActivationDetector(**options)
    Layers(model).register_hook(signature, detector)
    return detector


def test_it_holds_a_copy() -> None:
    for options in ({}, {"device": None}, {"target_dtype": torch.float32}, {"keep": "all"}):
        model = nn.Sequential(nn.Identity(), Overwrites())
        detector = watched(model, **options)
        assert not model(torch.ones(2, 3)).any()
        held = detector.get_captured()
        assert torch.equal(held[0] if isinstance(held, list) else held, torch.ones(2, 3))


def test_what_was_captured_in_inference_mode_enters_autograd() -> None:
    model = llama().eval()
    detector = watched(model, "block:1")
    with torch.inference_mode():
        model(IDS)
    held = detector.get_captured()
    assert not held.is_inference() and not held.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (held * weight).sum().backward()
    assert torch.allclose(weight.grad, held.sum((0, 1)))
    model(IDS)  # with a graph: the capture must not hold it
    assert detector.get_captured().grad_fn is None


def test_several_layers_are_a_dict_and_one_is_a_tensor() -> None:
    model = llama().eval()
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    many, one = watched(model, "block:*"), watched(model, "block:1")
    assert many.get_captured() is None and one.get_captured() is None and many.readings() == []
    model(IDS)
    assert list(many.get_captured()) == [f"model.layers.{i}" for i in range(4)]
    for i in range(3):  # the last state is normalised
        assert torch.equal(many.tensor_metadata["activations"][f"model.layers.{i}"], states[i + 1])
    assert torch.equal(one.tensor_metadata["activations"], states[2])
    assert one.metadata["activations_shape"] == (2, 3, 32)
    assert many.metadata["activations_shape"]["model.layers.3"] == (2, 3, 32)
    many.clear_captured()
    assert many.get_captured() is None and many.metadata == {} and many.readings() == []


def test_the_last_call_or_all_of_them() -> None:
    model = nn.Sequential(nn.Identity())
    last, every = watched(model), watched(model, keep="all")
    calls = [torch.full((n, 2), float(n)) for n in (1, 2, 3)]
    for x in calls:
        model(x)
    assert torch.equal(last.get_captured(), calls[-1])
    assert all(torch.equal(a, b) for a, b in zip(every.get_captured(), calls, strict=True))
    assert every.metadata["activations_shape"] == [(1, 2), (2, 2), (3, 2)]
    every.clear_captured()
    model(calls[0])
    assert len(every.get_captured()) == 1


def test_on_other_layers_it_starts_anew() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    layers, detector = Layers(model), LayerActivationDetector()
    for signature, form in (("0", Tensor), ("block:*", dict), ("1", Tensor)):
        layers.register_hook(signature, detector)
        model(torch.ones(1, 2))
        assert isinstance(detector.get_captured(), form)
        layers.unregister_hook(detector)
        assert isinstance(detector.get_captured(), form)  # what was captured stays after the hook is gone


def test_the_budget_refuses_and_loses_nothing() -> None:
    model = nn.Sequential(nn.Identity())
    detector = watched(model, keep="all", max_bytes=100)
    for n in (1, 2):
        model(torch.full((2, 5), float(n)))
    message = (
        r"keeping the activation of '0' would take 120 bytes, more than max_bytes=100 \(80 bytes are held, and stay\). "
        r"Call clear_captured\(\)"
    )
    with pytest.raises(HookError, match=message) as caught:
        model(torch.ones(2, 5))
    assert isinstance(caught.value.original_error, CaptureBudgetExceeded)
    assert [held[0, 0].item() for held in detector.get_captured()] == [1, 2]
    model(torch.ones(1, 5))  # the last 20 bytes
    assert len(detector.get_captured()) == 3


def test_the_budget_counts_what_is_held_not_what_is_replaced() -> None:
    model = nn.Sequential(nn.Identity())
    detector = watched(model, max_bytes=40)
    for n in (1, 2, 3):
        model(torch.full((2, 5), float(n)))
    with pytest.raises(HookError, match="would take 44 bytes"):
        model(torch.ones(1, 11))
    assert torch.equal(detector.get_captured(), torch.full((2, 5), 3.0))
    half = watched(nn.Sequential(nn.Identity()), max_bytes=40, target_dtype=torch.float16)
    half.context.model(torch.ones(1, 20))  # type: ignore[union-attr]
    assert half.get_captured().dtype is torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "first"}, "keep='first' is not known: choose one of 'last', 'all'"),
        ({"max_bytes": 0}, "max_bytes=0 must be a whole number of bytes, 1 or more"),
        ({"max_bytes": 1e9}, "max_bytes=1000000000.0 must be"),
        ({"max_bytes": True}, "max_bytes=True must be"),
        ({"name": "a/b"}, "name='a/b' must be a non-empty string without '/'"),
        ({"on_error": "ignore"}, "on_error='ignore' is not known: choose one of 'raise', 'disable', 'warn'"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerActivationDetector("0", **options)


def test_a_schedule_must_be_one() -> None:
    with pytest.raises(TypeError, match="schedule='train' must be a Schedule, or schedules combined"):
        LayerActivationDetector("0", schedule="train")


def test_readings_cover_all_that_is_held() -> None:
    model = nn.Sequential(nn.Identity())
    detector = watched(model, keep="all")
    calls = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    for x in calls:
        model(x)
    everything = torch.cat([x.flatten() for x in calls]).double()
    norms = torch.cat([x.double().norm(dim=-1).flatten() for x in calls])
    values = {reading.name: reading.value for reading in detector.readings()}
    assert tuple(sorted(values)) == tuple(sorted(detector.reading_names()))
    assert values["mean"] == pytest.approx(everything.mean().item())
    assert values["std"] == pytest.approx(everything.std(correction=0).item())
    assert values["token_norm"] == pytest.approx(norms.mean().item())
    assert values["histogram"].total == 44 and values["histogram"].maximum == everything.max().item()


def test_token_ids_are_kept_without_readings() -> None:
    model = nn.Sequential(nn.Identity())
    detector = watched(model)
    model(IDS)
    assert torch.equal(detector.get_captured(), IDS) and detector.readings() == []


def test_before_and_after_edits() -> None:
    model = nn.Sequential(nn.Identity())
    layers = Layers(model, allow_stacking=True)
    produced, passed_on = LayerActivationDetector(before_edits=True), LayerActivationDetector()
    for hook in (passed_on, FunctionController(None, lambda x: x * 2), produced):
        layers.register_hook("0", hook)
    model(torch.ones(1, 2))
    assert produced.get_captured().tolist() == [[1, 1]] and passed_on.get_captured().tolist() == [[2, 2]]
