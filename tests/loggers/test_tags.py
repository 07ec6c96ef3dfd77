"""Tags: where a reading ends up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mi_crow_lightning.loggers as loggers
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import tag
from mi_crow_lightning.loggers.tags import STAGES
from mi_crow_lightning.metrics.histogram import Histogram

SCALAR = Reading("transformer.h.0", "mean", 1.0)
HISTOGRAM = Reading("transformer.h.0", "histogram", Histogram((0.0, 1.0), (2.0,), 0.0, 1.0, 2.0, 1.0, 1.0), "histogram")


@pytest.mark.parametrize(
    ("stage", "scalar", "histogram"),
    [
        ("train", "activations_mean/transformer.h.0", "activations/transformer.h.0"),
        ("validate", "activations_mean/val/transformer.h.0", "activations/val/transformer.h.0"),
        ("test", "activations_mean/test/transformer.h.0", "activations/test/transformer.h.0"),
        ("predict", "activations_mean/predict/transformer.h.0", "activations/predict/transformer.h.0"),
    ],
)
def test_each_stage_has_its_own_tags(stage: str, scalar: str, histogram: str) -> None:
    assert tag(SCALAR, stage) == scalar
    assert tag(HISTOGRAM, stage) == histogram


def test_the_prefix_replaces_activations() -> None:
    assert tag(SCALAR, "train", "attention") == "attention_mean/transformer.h.0"
    assert tag(HISTOGRAM, "test", prefix="attention") == "attention/test/transformer.h.0"


def test_a_histogram_without_its_kind_gets_a_histograms_tag() -> None:
    assert tag(HISTOGRAM._replace(kind="scalar"), "train") == "activations/transformer.h.0"


@pytest.mark.parametrize("stage", ["val", "sanity_check", "TRAIN", ""])
def test_an_unknown_stage_is_refused_with_the_allowed_ones(stage: str) -> None:
    with pytest.raises(ValueError) as caught:
        tag(SCALAR, stage)
    assert all(repr(name) in str(caught.value) for name in (stage, *STAGES))


LAYERS = st.text("abc.012", min_size=1)


@given(st.lists(st.tuples(LAYERS, st.sampled_from(["mean", "std"]), st.sampled_from(STAGES)), unique=True))
def test_distinct_readings_get_distinct_tags(keys: list[tuple[str, str, str]]) -> None:
    tags = [tag(Reading(layer, name, 0.0), stage) for layer, name, stage in keys]
    assert len(set(tags)) == len(keys)


def test_every_public_name_resolves_and_no_other() -> None:
    assert all(callable(getattr(loggers, name)) for name in loggers.__all__)
    assert set(loggers.__all__) <= set(dir(loggers))
    with pytest.raises(AttributeError, match="no_such_name"):
        loggers.no_such_name  # noqa: B018


def test_importing_every_module_loads_neither_torch_nor_lightning_nor_tensorboard() -> None:
    code = (
        "import sys, mi_crow_lightning.loggers as l; [getattr(l, n) for n in l.__all__]; "
        "print([m for m in ('torch', 'lightning', 'tensorboard', 'tensorboardX') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_histogram_of_a_layer_has_its_name_in_the_tag() -> None:
    histogram = Histogram((0.0, 1.0), (1.0,), 0.5, 0.5, 1.0, 0.5, 0.25)
    reading = Reading("h.0", "channel_rms", histogram, "histogram")
    assert tag(reading, "validate", prefix="mlp") == "mlp_channel_rms/val/h.0"
