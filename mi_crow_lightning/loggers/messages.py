"""The protobuf messages of an event file: scalars, histograms and tensors.

This module imports tensorboard, so it is only imported when the first event is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

from mi_crow_lightning.loggers.compact_tensors import PLUGIN, CompactTensor
from mi_crow_lightning.loggers.drawing import drawn_bins
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["add_tensor", "layout_message", "shown_values"]

_TYPES = {"float32": types_pb2.DT_FLOAT, "float64": types_pb2.DT_DOUBLE, "int64": types_pb2.DT_INT64}


def shown_values(readings: TaggedReadings, texts: Mapping[str, str]) -> Iterable[Any]:
    """Make a scalar of each number, and a picture of each histogram that is not empty.

    Args:
        readings: ``(tag, reading)`` pairs.
        texts: descriptions by tag, for the tags that get one.
    """
    for tag, reading in readings:
        if not isinstance(reading.value, Histogram):
            kind = summary_pb2.DATA_CLASS_SCALAR
            value = summary_pb2.Summary.Value(tag=tag, simple_value=float(reading.value))
        elif (picture := _picture(tag, reading.value)) is not None:
            kind = summary_pb2.DATA_CLASS_TENSOR
            value = summary_pb2.Summary.Value(tag=tag, histo=picture)
        else:
            continue
        if text := texts.get(tag):
            value.metadata.CopyFrom(_about(text, kind))
        yield value


def _about(text: str, kind: int) -> Any:
    """Make the metadata with a description; TensorBoard's fast loader reads it only where it is complete."""
    name = "scalars" if kind == summary_pb2.DATA_CLASS_SCALAR else "histograms"
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=name)
    return summary_pb2.SummaryMetadata(plugin_data=plugin, summary_description=text, data_class=kind)


def _picture(tag: str, histogram: Histogram) -> Any | None:
    drawn = drawn_bins(histogram, tag)
    if drawn is None:
        return None
    edges, counts = drawn
    return summary_pb2.HistogramProto(  # TensorBoard draws the first bin from `min`, the last one to `max`
        min=edges[0],
        max=edges[-1],
        num=histogram.total,
        sum=histogram.sum,
        sum_squares=histogram.sum_squares,
        bucket_limit=edges[1:],
        bucket=counts,
    )


def add_tensor(summary: Any, tensor: CompactTensor, with_schema: bool) -> None:
    """Add a tensor of this package's plugin to a summary.

    Args:
        summary: where to add it.
        tensor: the tensor to write.
        with_schema: whether to write the schema beside it; TensorBoard keeps the first schema of each tag.
    """
    value = summary.value.add(tag=tensor.tag)  # filled in its place: a message that is put into another is copied
    _fill(value.tensor, tensor.values)
    if with_schema:
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN, content=tensor.schema.encode())
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
        value.metadata.CopyFrom(metadata)


def layout_message(layout: Any) -> Any:
    """Make the summary from which TensorBoard's page of Custom Scalars takes its layout."""
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="custom_scalars")
    )
    content = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        string_val=[layout.SerializeToString()],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(),
    )
    value = summary_pb2.Summary.Value(tag="custom_scalars__config__", tensor=content, metadata=metadata)
    return summary_pb2.Summary(value=[value])


def _fill(tensor: Any, values: NDArray[Any]) -> None:
    for size in values.shape:
        tensor.tensor_shape.dim.add(size=size)
    if values.dtype == object:
        tensor.dtype = types_pb2.DT_STRING
        tensor.string_val.extend(text.encode() for text in values.ravel())
        return
    tensor.dtype = _TYPES[values.dtype.name]
    if values.dtype == np.int64:  # a list, in which a small number takes one byte
        tensor.int64_val.extend(values.tolist())
    else:
        tensor.tensor_content = values.tobytes()
