"""What TensorBoard says of each chart: once in a file, and what the documentation says too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    ScaleController,
    Schedule,
)
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep
from mi_crow_lightning.metrics import STATISTICS, Description, Statistic, register
from mi_crow_lightning.metrics.descriptions import EFFECTS, PROJECTIONS, SEPARABILITIES, STATISTICS_DESCRIBED
from tests.callback.runs import data_of, fit, module_of

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

ROOT = Path(__file__).parents[2]


def rows_of(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the first table under a heading, without links."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    table = re.search(r"\n\n(\|.*?)\n\n", text, re.DOTALL)
    assert table is not None
    for line in table[1].splitlines()[2:]:
        yield [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("heading", "described"), [("## What is measured", STATISTICS_DESCRIBED), ("## Projections", PROJECTIONS)]
)
def test_the_page_and_the_charts_say_the_same(heading: str, described: dict[str, Description]) -> None:
    found = {name.strip("` "): Description(*rest) for name, *rest in rows_of("reference/statistics.md", heading)}
    assert found == described


def test_whatever_is_measured_is_described() -> None:
    assert tuple(STATISTICS_DESCRIBED) == STATISTICS
    detectors = (
        ActivationStatistics("0", per_channel=True),
        LayerActivationDetector("0"),
        ProjectionDetector("0", torch.ones(2)),
        ProjectionDetector("0", vectors={"a_b": torch.ones(2)}),
        ContrastDetector("0"),
    )
    for detector in detectors:
        for name in detector.reading_names():
            assert detector._described(name), name
    assert "`a_b`" in detectors[3]._described("a_b_cosine")
    assert set(SEPARABILITIES) == {*detectors[4].reading_names()}


def descriptions(folder: Path) -> dict[str, list[str]]:
    """The description beside each value of a tag, as it is in the file."""
    found: dict[str, list[str]] = {}
    (file,) = folder.glob("events*")
    for record in RawEventFileLoader(str(file)).Load():
        for value in Event.FromString(record).summary.value:
            if "#" not in value.tag and value.tag.startswith(("activations", "own", "steering")):
                found.setdefault(value.tag, []).append(value.metadata.summary_description)
    return found


@pytest.mark.parametrize("scalars", ["all", "summary"])
def test_the_first_value_of_a_tag_brings_its_description(tmp_path: Path, scalars: str) -> None:
    logger = TensorBoardLogger(tmp_path)
    detectors = [ActivationStatistics("model.*"), ActivationStatistics("model.0", name="own", statistics=["rms"])]
    twice = ScaleController("model.0", 2, schedule=Schedule())
    fit(module_of(), data_of(), HookCallback(detectors, twice, scalars=scalars), logger=logger)  # type: ignore[arg-type]
    found = descriptions(Path(logger.log_dir))
    assert {len(texts) for texts in found.values()} == {5}
    for tag, (first, *later) in found.items():
        assert first and not any(later), tag
    rms = found["own_rms/model.0"][0]
    assert "`sqrt(sum(x**2) / n)`" in rms and "Unit: activations." in rms and "finite elements" in rms
    assert found["steering_tokens/ScaleController/model.0"][0] == EFFECTS["tokens"]
    if scalars == "summary":
        largest = found["activations_kurtosis/model.*/max"][0]
        assert largest.startswith("The largest over the layers `model.*`. **kurtosis**: `n * sum(")
    else:
        assert found["activations_kurtosis/model.1"][0].startswith("**kurtosis**")
        assert found["activations/model.1"][0].startswith("The elements of the layer, in bins")


def test_a_statistic_of_a_users_brings_its_own() -> None:
    described = Description("`M2 / n`", "activations squared", "the power")
    register(Statistic("described_here", lambda s: s["m2"] / s["count"], description=described))
    detector = ActivationStatistics("0", statistics=["described_here"])
    assert detector._described("described_here").startswith("**described_here**: `M2 / n`. Unit: activations squared.")
    register(Statistic("not_described", lambda s: s["m2"] / s["count"]))
    assert ActivationStatistics("0", statistics=["not_described"])._described("not_described") == ""
    with pytest.raises(TypeError, match=r"description='power' must be a Description\(formula, unit, shows\)"):
        Statistic("wrong", lambda s: s["mean"], description="power")  # type: ignore[arg-type]


@pytest.mark.parametrize("signature", ["`" * 3 + "<script>alert(1)</script>", "x" * 10_000])
def test_names_cannot_break_out_of_a_description(signature: str) -> None:
    readings: Any = [Reading(f"h.{i}", "rms", 1.0) for i in range(4)]
    of_one = DetectorReadings(readings, tuple("0123"), signature, described=lambda name: "text")
    step = LoggedStep("train", 0, [of_one])
    text = step.described(f"activations_rms/{signature}/max", Reading(f"{signature}/max", "rms", 1.0))
    assert text.startswith("The largest over the layers `") and text.endswith("`. text") and text.count("`") == 2
    assert len(text) < 300
