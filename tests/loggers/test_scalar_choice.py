"""Which numbers of a step become scalars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, shown
from mi_crow_lightning.loggers.scalar_choice import AUTO_LIMIT, resolve_scalars
from mi_crow_lightning.metrics.histogram import Histogram

HISTOGRAM = Histogram((0.0, 1.0), (2.0,), 0.0, 1.0, 2.0, 1.0, 1.0)


def step_of(*values: float, stage: str = "train", layers: int | None = None, signature: str = "h.*") -> LoggedStep:
    names = tuple(f"h.{i}" for i in range(layers or len(values)))
    readings = [Reading(name, "rms", value) for name, value in zip(names, values, strict=False)]
    readings.append(Reading("h.0", "histogram", HISTOGRAM, "histogram"))
    return LoggedStep(stage, 3, [DetectorReadings(readings, names, signature)])


def numbers(step: LoggedStep, scalars: str) -> dict[str, float]:
    return {tag: reading.value for tag, reading in shown(step, scalars)}  # type: ignore[misc]


@given(st.lists(st.floats(), min_size=4, max_size=12))
def test_a_summary_is_min_median_and_max_without_nan(values: list[float]) -> None:
    found = numbers(step_of(*values), "summary")
    present = [value for value in values if not math.isnan(value)] or [math.nan]
    with np.errstate(all="ignore"):
        expected = {"min": np.min(present), "median": np.median(present), "max": np.max(present)}
    assert list(found) == [f"activations_rms/h.*/{word}" for word in expected]
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize(("stage", "segment"), [("train", ""), ("validate", "val/"), ("predict", "predict/")])
def test_the_tags_of_a_summary(stage: str, segment: str) -> None:
    found = numbers(step_of(1.0, 2.0, 3.0, 4.0, stage=stage, signature="block:*"), "summary")
    assert found == {
        f"activations_rms/{segment}block:*/min": 1.0,
        f"activations_rms/{segment}block:*/median": 2.5,
        f"activations_rms/{segment}block:*/max": 4.0,
    }


def test_two_detectors_of_one_prefix_have_summaries_of_their_own() -> None:
    attention, mlp = (step_of(0.0, 1.0, 2.0, value, signature=s) for s, value in (("*.attn", 3.0), ("*.mlp", 4.0)))
    both = LoggedStep("train", 3, [*attention.detectors, *mlp.detectors])
    assert numbers(both, "summary") == {**numbers(attention, "summary"), **numbers(mlp, "summary")}
    assert len(numbers(both, "summary")) == 6


def test_three_layers_are_shown_themselves_and_four_are_not_though_fewer_were_seen() -> None:
    assert numbers(step_of(1.0, 2.0, 3.0), "summary") == {f"activations_rms/h.{i}": i + 1.0 for i in range(3)}
    assert set(numbers(step_of(1.0, 2.0, layers=4), "summary").values()) == {1.0, 1.5, 2.0}


def test_all_and_none() -> None:
    step = step_of(1.0, 2.0, 3.0, 4.0)
    assert shown(step, "all") == step.tagged and len(step.tagged) == 5
    assert shown(step, "none") == []


def test_auto_changes_above_its_limit_and_the_others_never() -> None:
    assert [resolve_scalars("auto", AUTO_LIMIT + i).form for i in (0, 1)] == ["layers", "summary"]
    assert {resolve_scalars(scalars, 10**6).form for scalars in ("all", ["rms"])} == {"layers"}
    assert resolve_scalars("none", 10**6).form == "none"


def chosen_of(layers: int) -> LoggedStep:
    """A step of a detector that has a default, and of one that has none."""
    names = tuple(f"h.{i}" for i in range(layers))
    readings = [Reading(layer, name, 1.0) for layer in names for name in ("rms", "kurtosis", "min")]
    readings += [Reading(layer, "histogram", HISTOGRAM, "histogram") for layer in names]
    own = [Reading(layer, "share", 2.0) for layer in names]
    statistics = DetectorReadings(readings, names, "h.*", by_default=("rms", "histogram"))
    return LoggedStep("train", 3, [statistics, DetectorReadings(own, names, "h.*", "own")])


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize(
    ("scalars", "sections"),
    [
        ("auto", {"activations_rms", "activations"}),
        ("all", {"activations_rms", "activations_kurtosis", "activations_min", "activations"}),
        (["kurtosis", "min"], {"activations_kurtosis", "activations_min"}),
        (["histogram"], {"activations"}),
    ],
)
def test_names_choose_among_the_readings_of_each_layer(layers: int, scalars: Any, sections: set[str]) -> None:
    step = chosen_of(layers)
    found = [tag for tag, _ in shown(step, scalars)]
    assert set(found) == {f"{section}/h.{i}" for section in {*sections, "own_share"} for i in range(layers)}
    assert found == [tag for tag, _ in step.tagged if tag in found]  # in the order of all
    assert dict(shown(step, scalars)) == {tag: reading for tag, reading in step.tagged if tag in found}


def test_the_summary_of_many_tags_is_over_what_is_shown_by_default() -> None:
    words = ("min", "median", "max")
    few, every = (
        {tag for tag, _ in shown(chosen_of(5), choice)} for choice in (resolve_scalars("auto", 10**6), "summary")
    )
    assert few == {f"{section}/h.*/{word}" for section in ("activations_rms", "own_share") for word in words}
    assert every == few | {f"activations_{name}/h.*/{word}" for name in ("kurtosis", "min") for word in words}
