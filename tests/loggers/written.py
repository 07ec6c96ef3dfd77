"""Scalars and histograms to write to TensorBoard, and what it reads and draws of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import write_event
from mi_crow_lightning.metrics.histogram import Histogram

EDGES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
# Minimum and maximum lie inside the first and the last bin that is not empty.
MIDDLE = Histogram(EDGES, (0.0, 3.0, 0.0, 0.0, 5.0, 0.0), -1.75, 1.5, 8.0, 2.0, 11.0)


def scalar(tag: str, value: float) -> tuple[str, Reading]:
    return tag, Reading("h.0", "mean", value)


def drawn(histogram: Histogram, tag: str = "activations/h.0") -> tuple[str, Reading]:
    return tag, Reading("h.0", "hist", histogram, "histogram")


def events(folder: Path) -> list[Any]:
    """Every event with values, as TensorBoard migrates it: histograms are ``[[left, right, count], ...]``."""
    loaded = [e for file in sorted(folder.glob("events*")) for e in EventFileLoader(str(file)).Load()]
    return [event for event in loaded if event.HasField("summary")]


def shown(folder: Path, tag: str = "activations/h.0") -> np.ndarray:
    """The bins that TensorBoard draws of the only histogram under a tag."""
    (value,) = [v for event in events(folder) for v in event.summary.value if v.tag == tag]
    return make_ndarray(value.tensor)


def write_one(folder: Path, histogram: Histogram) -> np.ndarray:
    with SummaryWriter(str(folder)) as writer:
        write_event(writer, [drawn(histogram)], 0)
    return shown(folder)


class Board:
    """TensorBoard's Custom Scalars page, without the server."""

    def __init__(self, logdir: Path) -> None:
        # Here rather than above, where `pytestmark` does not reach the warning that this import gives.
        from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
        from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

        runs = EventMultiplexer().AddRunsFromDirectory(str(logdir))
        runs.Reload()
        plugins: dict[str, Any] = {}
        provider = MultiplexerDataProvider(runs, str(logdir))
        context = TBContext(logdir=str(logdir), data_provider=provider, plugin_name_to_instance=plugins)
        plugins["scalars"] = ScalarsPlugin(context)
        self.plugin = CustomScalarsPlugin(context)

    def layout(self) -> dict[str, Any]:
        return json.loads(self.plugin.layout_impl(RequestContext(), ""))

    def charts(self) -> dict[str, dict[str, list[str]]]:
        """Category -> chart -> the tags whose lines it shows."""
        return {
            category["title"]: {chart["title"]: sorted(self._tags(chart)) for chart in category["chart"]}
            for category in self.layout()["category"]
        }

    def _tags(self, chart: dict[str, Any]) -> Iterator[str]:
        for regex in chart["multiline"]["tag"]:
            answer = self.plugin.scalars_impl(RequestContext(), ".", regex, "")
            assert answer["regex_valid"]
            yield from answer["tag_to_events"]
