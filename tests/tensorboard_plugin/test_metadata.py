"""The schemas and tags that the tab reads: what is written is understood, and whatever else stands there is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, EventRow, LoggedStep, compact
from mi_crow_lightning.loggers.tags import STAGES
from mi_crow_lightning.metrics.histogram import Histogram
from mi_crow_lightning.tensorboard_plugin.metadata import Schema, SchemaError, Series, parse_schema
from mi_crow_lightning.tensorboard_plugin.plain_tags import STATISTICS, of_histogram, of_scalar

_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ("version", "kind", "prefix", "name", "stage", "layers", "layer", "edges", "dataloader_idx")
_WHOLE: dict[str, Any] = {
    "version": 1,
    "kind": "histogram",
    "prefix": "a",
    "name": "histogram",
    "stage": "train",
    "layer": "h.0",
    "layers": ["h.0"],
    "edges": [0, 1],
}


@pytest.mark.fuzz
@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(_KEYS), _JSON | st.sampled_from(["event", "statistic"]), max_size=3),
    st.integers(0, 400),
)
def test_a_damaged_schema_is_read_or_refused(changes: dict[str, Any], length: int) -> None:
    for content in (json.dumps({**_WHOLE, **changes}).encode(), json.dumps(_WHOLE).encode()[:length]):
        try:
            schema = parse_schema(content)
        except SchemaError as error:
            message = str(error)
        else:
            assert isinstance(schema, Schema) and bool(schema.layers) is (schema.kind not in ("texts", "event"))
            continue
        assert "damaged" in message or "update" in message


@pytest.mark.parametrize("loader", [None, 0, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_what_the_package_writes_is_understood(stage: str, loader: int | None) -> None:
    counted = Histogram((0.0, 1.0, 2.0), (1.0, 2.0), 0.0, 2.0, 3.0, 4.0, 5.0)
    readings = [Reading("h.0", "rms", 1.0), Reading("val/h.1", "rms", 2.0), Reading("h.0", "histogram", counted)]
    happened = [EventRow(stage, 3, "switch", "on")]
    step = LoggedStep(stage, 3, [DetectorReadings(readings, ("h.0", "val/h.1"), "h.*", "mine")], loader, happened)
    histogram, numbers, events = (parse_schema(tensor.schema.encode()) for tensor in compact(step))
    assert numbers == Schema("statistic", Series("mine", "rms", stage, loader), ("h.0", "val/h.1"))
    assert histogram == Schema("histogram", Series("mine", "histogram", stage, loader), ("h.0",), (0.0, 1.0, 2.0))
    assert events == Schema("event", Series("", "", stage), ())


@pytest.mark.parametrize("loader", [None, 0, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_the_tag_of_a_scalar_is_understood(stage: str, loader: int | None) -> None:
    readings = [Reading("h.0.attn", name, 1.0) for name in STATISTICS]
    step = LoggedStep(stage, 3, [DetectorReadings(readings, ("h.0.attn",), "h.*", "my_own")], loader)
    for tag, reading in step.tagged:
        assert of_scalar(tag) == (Series("my_own", reading.name, stage, loader), "h.0.attn")


OTHERS = (
    "train_loss",
    "loss/rms",
    "epoch",
    "rms/h.0",
    "_rms/h.0",
    "contrast_auroc/by_block",
    "contrast_auroc/by_block/val",
)


@pytest.mark.parametrize(
    "tag", [*OTHERS, "activations_rms", "activations_rms/", "hp/metric", "", "/", "activations_/x"]
)
def test_other_scalars_are_left_alone(tag: str) -> None:
    assert of_scalar(tag) is None


def test_a_statistic_of_ones_own_is_known_by_the_default_prefix() -> None:
    assert of_scalar("activations_my_share/h.0") == (Series("activations", "my_share", "train"), "h.0")
    assert of_scalar("other_my_share/h.0") is None


@pytest.mark.parametrize(("tag", "stage"), [("activations/h.0", "train"), ("activations/val/h.0", "validate")])
def test_the_tag_of_a_histogram_is_understood(tag: str, stage: str) -> None:
    assert of_histogram(tag) == (Series("activations", "histogram", stage), "h.0")
    assert of_histogram(f"weights/{tag}") is None
