"""Logs for the tab: what the package writes, and what it would never write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tensorboard.compat.proto import summary_pb2, tensor_pb2
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, EventRow, LoggedStep, TextRow, compact, shown, write_event
from mi_crow_lightning.loggers.text_rows import write_texts
from mi_crow_lightning.metrics.histogram import Histogram

BLOCKS = tuple(f"model.layers.{i}" for i in range(6))
EDGES = (-4.0, -1.0, -0.25, 0.0, 0.25, 1.0, 4.0)
Value = Callable[[str, int, int], float]


def wave(name: str, layer: int, step: int) -> float:
    """A number that differs for each statistic, layer and step."""
    turn = math.sin(0.7 * layer + 0.11 * step)
    return {"mean": 2.0 * turn, "rms": layer + 1 + 0.1 * turn}.get(name, 10.0 * layer + turn)


def readings(layers: Sequence[str], names: Iterable[str], step: int, value: Value = wave) -> list[Reading]:
    return [Reading(layer, name, value(name, at, step)) for at, layer in enumerate(layers) for name in names]


def histograms(layers: Sequence[str], step: int) -> list[Reading]:
    def counted(at: int) -> Histogram:
        counts = tuple(float((at + 1) * (bin + 1) + step % 5) for bin in range(len(EDGES) - 1))
        return Histogram(EDGES, counts, -3.0, 3.5, sum(counts), 0.0, 1.0)

    return [Reading(layer, "histogram", counted(at), "histogram") for at, layer in enumerate(layers)]


def write_run(
    folder: Path,
    steps: Iterable[int],
    layers: Sequence[str] = BLOCKS,
    names: Sequence[str] = ("mean", "rms", "abs_max"),
    value: Value = wave,
    stages: Sequence[str] = ("train",),
    scalars: str = "none",
    prefix: str = "activations",
) -> None:
    """Write a run as the callback does: compact tensors, and the scalars that were chosen."""
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            for stage in stages:
                found = readings(layers, names, step, value) + histograms(layers, step)
                logged = LoggedStep(stage, step, [DetectorReadings(found, tuple(layers), "block:*", prefix)])
                write_event(writer, shown(logged, scalars), step, compact(logged))


def write_plain(folder: Path, steps: Iterable[int], layers: Sequence[str] = BLOCKS) -> None:
    """Write a run that has scalars and TensorBoard's histograms alone, ours and others."""
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            found = readings(layers, ("mean", "rms"), step) + histograms(layers, step)
            logged = LoggedStep("train", step, [DetectorReadings(found, tuple(layers), "block:*")])
            write_event(writer, shown(logged, "all"), step)
            writer.add_scalar("train_loss", 1.0 / (step + 1), step)


def write_events(folder: Path, *rows: EventRow, noted_by: str = "one") -> None:
    """Write events as the callback does: those of a stage and a step together, in the order in which they come."""
    with SummaryWriter(str(folder)) as writer:
        for (stage, step), of_step in groupby(rows, key=lambda row: row[:2]):
            logged = LoggedStep(stage, step, [], events=list(of_step), noted_by=noted_by)
            write_event(writer, [], step, compact(logged))


def texts(rows: Sequence[Sequence[str]], columns: int = 4) -> Any:
    """A tensor of texts, however many columns it claims to have."""
    made = tensor_pb2.TensorProto(dtype=7, string_val=[cell.encode() for row in rows for cell in row])
    for side in (len(rows), columns):
        made.tensor_shape.dim.add(size=side)
    return made


def write_tensor(folder: Path, tag: str, content: bytes, tensor: Any, step: int = 0) -> None:
    """Write one tensor of the plugin, whatever its schema and its value are."""
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="mi_crow_lightning", content=content)
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    with SummaryWriter(str(folder)) as writer:
        writer._get_file_writer().add_summary(summary_pb2.Summary(value=[value]), step)


def schema(**changes: Any) -> bytes:
    """The schema of a statistic of two layers, with some of it replaced."""
    series = {"prefix": "activations", "name": "rms", "stage": "train"}
    return json.dumps({"version": 1, "kind": "statistic", **series, "layers": ["h.0", "h.1"], **changes}).encode()


def tensor(values: Any, content: bytes | None = None) -> Any:
    """A float32 tensor; `content` replaces its bytes, so that they need not fill its shape."""
    array = np.asarray(values, dtype=np.float32)
    made = tensor_pb2.TensorProto(dtype=1, tensor_content=array.tobytes() if content is None else content)
    for side in array.shape:
        made.tensor_shape.dim.add(size=side)
    return made


def write_shown(folder: Path, rows: Sequence[TextRow]) -> None:
    """Write texts of one step and dataloader as a predict run does."""
    with SummaryWriter(str(folder)) as writer:
        write_texts([SimpleNamespace(experiment=writer)], rows)


def text_schema(**changes: Any) -> bytes:
    """The schema of texts, with some of it replaced."""
    return json.dumps({"version": 1, "kind": "texts", "stage": "predict", **changes}).encode()


def text_tensor(*rows: bytes) -> Any:
    """A tensor of texts, whatever they are."""
    made = tensor_pb2.TensorProto(dtype=7, string_val=rows)
    made.tensor_shape.dim.add(size=len(rows))
    return made
