"""The value: a mapping that does not change, its arithmetic, its control."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorMismatch

FACTS: dict[str, Any] = dict(
    method="mean_difference",
    model="tiny",
    tokens="all",
    samples={"joy": 3, "sorrow": 4},
    metadata={"note": "x", "n": 2},
)


def vector(seed: int = 0, widths: tuple[int, ...] = (4, 4, 6), **facts: Any) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    directions = {f"h.{i}": torch.randn(width, generator=generator) for i, width in enumerate(widths)}
    return SteeringVector(directions, **{**FACTS, **facts})


def test_it_is_a_mapping_of_float32_on_the_cpu() -> None:
    given = {"h.0": torch.randn(3, dtype=torch.float64, requires_grad=True), "h.2": torch.ones(2, dtype=torch.bfloat16)}
    made = SteeringVector(given, **FACTS)
    assert isinstance(made, Mapping) and list(made) == list(made.layers) == ["h.0", "h.2"] and len(made) == 2
    assert torch.equal(made["h.0"], given["h.0"].detach().float()) and not made["h.0"].requires_grad
    assert all(value.dtype == torch.float32 for value in made.values())
    assert {name: getattr(made, name) for name in FACTS} == FACTS
    with pytest.raises(KeyError):
        made["h.1"]


def test_nothing_of_it_changes() -> None:
    given, samples = torch.ones(2), {"joy": 3}
    made = SteeringVector({"h.0": given}, samples=samples)
    given.zero_(), samples.clear()
    made["h.0"].zero_()
    made.origin.samples.clear()  # type: ignore[attr-defined]
    assert made["h.0"].tolist() == [1.0, 1.0] and dict(made.samples) == {"joy": 3}
    with pytest.raises(TypeError):
        made.samples["joy"] = 4  # type: ignore[index]
    with pytest.raises(TypeError):
        made["h.0"] = given  # type: ignore[index]
    with pytest.raises(AttributeError):
        made.method = "other"  # type: ignore[misc]


def test_inference_mode_leaves_no_inference_tensors() -> None:
    with torch.inference_mode():
        made = 2 * SteeringVector({"h.0": torch.ones(2)})
    weight = torch.ones(2, requires_grad=True)
    (made["h.0"] * weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [2.0, 2.0]


def test_arithmetic_is_numpys() -> None:
    a, b = vector(0), vector(1)
    expected = {
        "sum": (a + b, lambda x, y: x + y),
        "difference": (a - b, lambda x, y: x - y),
        "times": (2.5 * a, lambda x, y: 2.5 * x),
        "times on the right": (a * np.float32(2.5), lambda x, y: 2.5 * x),
        "times on the left": (np.float32(2.5) * a, lambda x, y: 2.5 * x),
        "over": (a / 4, lambda x, y: x / 4),
        "negative": (-a, lambda x, y: -x),
        "unit": (a.normalise(), lambda x, y: x / np.linalg.norm(x)),
    }
    for name, (found, function) in expected.items():
        assert list(found) == list(a), name
        for layer in a:
            wanted = function(a[layer].double().numpy(), b[layer].double().numpy())
            np.testing.assert_allclose(found[layer].numpy(), wanted, rtol=1e-6, err_msg=name)
    assert (a + b - b).layers == a.layers
    assert a.norms() == {layer: pytest.approx(np.linalg.norm(a[layer].double().numpy()), rel=1e-12) for layer in a}


def test_an_origin_stays_with_one_vector_and_joins_of_two() -> None:
    a = vector()
    assert all(other.origin == a.origin for other in (2 * a, -a, a.normalise(), a.only("h.1"), a + a))
    b = vector(method="pca", model="", samples={"joy": 1}, metadata={"note": "x", "n": 3})
    both = a - b
    assert (both.method, both.model, both.tokens) == ("mean_difference - pca", "tiny", "all")
    assert (dict(both.samples), dict(both.metadata)) == ({}, {"note": "x"})


def test_vectors_that_do_not_belong_together_are_refused() -> None:
    a = vector()
    with pytest.raises(VectorMismatch, match=r"'h.2': 6\} and \{'h.0': 4, 'h.1': 4\}: choose .* only"):
        a + vector(widths=(4, 4))
    with pytest.raises(VectorMismatch, match=r"\{'h.0': 4, 'h.1': 4, 'h.2': 5\}"):
        a - vector(widths=(4, 4, 5))
    with pytest.raises(VectorMismatch, match=r"model 'tiny' and one of 'other'"):
        a + vector(model="other")
    for wrong in (True, "2", a, torch.ones(1), None):
        with pytest.raises(TypeError):
            a * wrong
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]
    with pytest.raises(ValueError, match="scaled by nan"):
        a * float("nan")
    with pytest.raises(ZeroDivisionError):
        a / 0


def test_cosines() -> None:
    a, b = vector(0, (4, 4)), vector(1, (4, 4))

    def cosine(x: Tensor, y: Tensor) -> float:
        return float(x.double() @ y.double() / x.double().norm() / y.double().norm())

    assert a.cosines(b) == {layer: pytest.approx(cosine(a[layer], b[layer]), rel=1e-12) for layer in a}
    table = a.layer_cosines()
    assert table.shape == (2, 2) and table[0, 1].item() == pytest.approx(cosine(a["h.0"], a["h.1"]), rel=1e-12)
    with pytest.raises(VectorMismatch, match="differ in width"):
        vector().layer_cosines()


def test_the_random_control_has_the_norms_and_nothing_else() -> None:
    a, before = vector(widths=(64, 64, 32)), torch.get_rng_state()
    control = a.random_like(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert control.norms() == pytest.approx(a.norms(), rel=1e-6)
    assert all(abs(cosine) < 0.5 for cosine in a.cosines(control).values())
    assert control == a.random_like(seed=1) and control != a.random_like(seed=2)
    assert torch.equal(a.only("h.2").random_like(1)["h.2"], control["h.2"])
    assert (control.method, control.model, dict(control.metadata)) == (
        *("random", "tiny"),
        {"seed": 1, "norms_of": "mean_difference"},
    )
    with pytest.raises(TypeError, match="seed='a' must be a whole number"):
        a.random_like("a")  # type: ignore[arg-type]


def test_random_controls_are_alike_in_length_alone() -> None:
    a = vector()
    controls = a.random_controls()
    assert len(controls) == 8 and controls == a.random_controls(8, seed=0) == [a.random_like(i) for i in range(8)]
    assert all(control.is_random and control.layers == a.layers for control in controls) and not a.is_random
    for control in controls:
        assert control.norms() == pytest.approx(a.norms(), rel=1e-6)
        assert control.metadata["norms_of"] == a.method
    others = a.random_controls(3, seed=1)
    assert not any(control == other for control in controls for other in others)
    with pytest.raises(ValueError, match="n=0 must be"):
        a.random_controls(0)


def test_some_layers() -> None:
    a = vector()
    assert a.only("h.2", "h.0").layers == ("h.2", "h.0")
    with pytest.raises(KeyError, match=r"no direction for \['h.9'\]; this vector has \['h.0', 'h.1', 'h.2'\]"):
        a.only("h.0", "h.9")
    for layer in ("h.9", 1):
        with pytest.raises(KeyError, match=rf"no direction for {layer!r}; this vector has \['h.0', 'h.1', 'h.2'\]"):
            a[layer]  # type: ignore[index]
    assert "h.9" not in a and a.get("h.9") is None


def test_equal_means_directions_and_origin() -> None:
    a = vector()
    assert a == vector() and a != vector(1) and a != vector(method="other") and a != a.only("h.0")
    assert a != dict(a)
    with pytest.raises(TypeError):
        hash(a)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal(again: Any) -> None:
    assert again(vector()) == vector()


def test_what_it_looks_like() -> None:
    a = SteeringVector({f"h.{i}": torch.full((4,), i + 1.0) for i in range(3)}, **FACTS)
    assert repr(a) == (
        "SteeringVector(mean_difference of 'tiny', 3 layers 'h.0' to 'h.2', width 4, norm 2 to 6, tokens all, "
        "samples joy 3 sorrow 4)"
    )
    assert repr(SteeringVector({"h.0": torch.ones(4)})) == "SteeringVector(layer 'h.0', width 4, norm 2)"


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "must map at least one layer's name"),
        ([torch.ones(2)], "must map at least one layer's name"),
        ({0: torch.ones(2)}, "name must be a non-empty string, not 0"),
        ({"": torch.ones(2)}, "name must be a non-empty string, not ''"),
        ({"__metadata__": torch.ones(2)}, "not '__metadata__'"),
        ({"h.0": [1.0]}, "'h.0' must be a tensor .* not a list"),
        ({"h.0": torch.ones(1, 2)}, r"'h.0' must be a float tensor \(D,\), not torch.float32 of shape \(1, 2\)"),
        ({"h.0": torch.ones(2, dtype=torch.long)}, "not torch.int64"),
        ({"h.0": torch.ones(0)}, r"of shape \(0,\)"),
        ({"h.0": torch.tensor([1.0, float("nan")])}, "'h.0' holds 1 non-finite"),
    ],
)
def test_wrong_directions_are_refused(directions: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SteeringVector(directions)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"method": 3}, "method=3 must be a string"),
        ({"samples": {"joy": 1.5}}, r"samples\['joy'\]=1.5: .* one of int"),
        ({"samples": {"joy": True}}, r"samples\['joy'\]=True"),
        ({"metadata": {"a": [1]}}, r"metadata\['a'\]=\[1\]: .* one of str, int, float, bool"),
        ({"metadata": {1: "a"}}, r"metadata\[1\]='a': keys must be strings"),
    ],
)
def test_wrong_facts_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SteeringVector({"h.0": torch.ones(2)}, **facts)


def test_a_zero_direction_has_no_unit() -> None:
    with pytest.raises(ValueError, match=r"direction of 'h\.0' is zero"):
        SteeringVector({"h.0": torch.zeros(2)}).normalise()
