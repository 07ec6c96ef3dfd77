"""Schemas and numbers of compact tensors, as an event file of anybody's holds them: looked at before they are used."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mi_crow_lightning._foreign_files import LONGEST_NAME, Damaged, from_json
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.loggers.compact_tensors import VERSION
from mi_crow_lightning.loggers.run_events import COLUMNS, EventRow
from mi_crow_lightning.loggers.tags import STAGES

__all__ = ["Schema", "events_of", "numbers_of", "read_schema"]


class Schema(NamedTuple):
    """The meaning of a compact tensor's positions.

    Attributes:
        kind: ``"statistic"``, ``"histogram"``, ``"texts"`` or ``"event"``.
        stage: the stage of the readings, texts or events.
        prefix: the detector's name; empty for texts and events, as are name, layers and edges.
        name: the name of the readings.
        layers: one for each position; of a histogram its layer.
        edges: the edges of a histogram's bins, one more than there are positions; empty for a statistic.
        dataloader_idx: the dataloader, where each has its own readings.
        blocks: the block of each of ``layers``; all ``None`` in files of releases that did not write them.
    """

    kind: str
    stage: str
    prefix: str
    name: str
    layers: tuple[str, ...]
    edges: tuple[float, ...]
    dataloader_idx: int | None
    blocks: tuple[int | None, ...]

    @property
    def positions(self) -> int:
        """The length of a tensor of numbers."""
        return len(self.layers) if self.kind == "statistic" else len(self.edges) - 1


def read_schema(content: bytes) -> Schema:
    """Read the schema that is written beside a tensor's first values.

    Raises:
        Damaged: it is not such a schema, or one of another version.
    """
    read = from_json(content, "has a schema that")
    version = read.get("version") if isinstance(read, dict) else None
    if version != VERSION:
        raise Damaged(
            f"cannot be read: its compact tensors have version {shortened(repr(version))}, but this release reads "
            f"version {VERSION}: use the release that wrote them"
        )
    kind, loader = _one_of(read, "kind", ("statistic", "histogram", "texts", "event")), _index("dataloader_idx", read)
    if kind in ("texts", "event"):
        return Schema(kind, _one_of(read, "stage", STAGES), "", "", (), (), loader, ())
    layers = tuple(map(_name, _list(read, "layers") if kind == "statistic" else [read.get("layer")]))
    return Schema(
        kind=kind,
        stage=_one_of(read, "stage", STAGES),
        prefix=_name(read.get("prefix")),
        name=_name(read.get("name")),
        layers=layers,
        edges=_edges(read) if kind == "histogram" else (),
        dataloader_idx=loader,
        blocks=_blocks(read, len(layers)) if kind == "statistic" else (_index("block", read),),
    )


def _one_of(schema: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    if (value := schema.get(key)) in known:
        return str(value)
    raise Damaged(f"has a schema with the {key} {shortened(repr(value))}: one of {', '.join(known)} is needed")


def _list(schema: dict[str, Any], key: str) -> list[Any]:
    if isinstance(value := schema.get(key), list):
        return value
    raise Damaged(f"has a schema with the {key} {shortened(repr(value))}: a list is needed")


def _name(value: object) -> str:
    if isinstance(value, str) and len(value) <= LONGEST_NAME:  # it may be empty: the model itself is such a layer
        return value
    raise Damaged(f"has a schema with the name {shortened(repr(value))}: at most {LONGEST_NAME} letters are read")


def _edges(schema: dict[str, Any]) -> tuple[float, ...]:
    given = _list(schema, "edges")
    numbers = all(isinstance(edge, (int, float)) and not isinstance(edge, bool) for edge in given)
    if not numbers or len(given) < 2 or not all(low < high for low, high in pairwise(given)):
        raise Damaged(
            f"has a schema with the edges {shortened(repr(given))}: two or more numbers that ascend are needed"
        )
    return tuple(map(float, given))


def _index(key: str, schema: dict[str, Any]) -> int | None:
    return _checked_index(key, schema.get(key))


def _checked_index(key: str, value: object) -> int | None:
    if value is None or (type(value) is int and 0 <= value < 2**63):
        return value
    raise Damaged(f"has a schema with the {key} {shortened(repr(value))}: a whole number is needed")


def _blocks(schema: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    if "blocks" not in schema:
        return (None,) * layers
    blocks = tuple(_checked_index("block", block) for block in _list(schema, "blocks"))
    if len(blocks) != layers:
        raise Damaged(f"has a schema with {len(blocks)} blocks for {layers} layers: one for each is needed")
    return blocks


def numbers_of(value: Any, schema: Schema) -> list[float]:
    """Return the numbers of a tensor: one for each position, as many as the file holds.

    TensorBoard repeats a single number as often as the shape says, which a few bytes can say to be 10**12 times.

    Raises:
        Damaged: there are more, or fewer, or they are of a type that is never written.
    """
    from tensorboard.compat.proto import types_pb2

    tensor, positions = value.tensor, schema.positions
    forms = {
        types_pb2.DT_FLOAT: ("<f4", tensor.float_val),
        types_pb2.DT_DOUBLE: ("<f8", tensor.double_val),
        types_pb2.DT_INT64: ("<i8", tensor.int64_val),
    }
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype not in forms or shape != [positions]:
        raise Damaged(
            f"has a tensor {shortened(repr(value.tag))} of shape {shortened(str(shape))} and type {tensor.dtype}: "
            f"{positions} numbers are needed"
        )
    form, listed = forms[tensor.dtype]
    if len(tensor.tensor_content) == positions * np.dtype(form).itemsize:
        numbers: list[float] = np.frombuffer(tensor.tensor_content, form).tolist()
        return numbers
    if len(listed) == positions and not tensor.tensor_content:
        return list(listed)
    raise Damaged(
        f"has a tensor {shortened(repr(value.tag))} with {len(listed)} numbers and {len(tensor.tensor_content)} bytes: "
        f"{positions} numbers are needed"
    )


def events_of(value: Any, schema: Schema) -> list[EventRow]:
    """Return the events of a tensor of texts, without their step.

    Raises:
        Damaged: it is not such a tensor, or a text of it is too long.
    """
    from tensorboard.compat.proto import types_pb2

    tensor, width = value.tensor, len(COLUMNS)
    shape, texts = [dim.size for dim in tensor.tensor_shape.dim], tensor.string_val
    if tensor.dtype != types_pb2.DT_STRING or shape != [len(texts) // width, width] or len(texts) % width:
        raise Damaged(
            f"has events {shortened(repr(value.tag))} of shape {shortened(str(shape))}, type {tensor.dtype} and "
            f"{len(texts)} texts: {width} texts for each event are needed"
        )
    if any(len(text) > LONGEST_NAME for text in texts):
        raise Damaged(f"has an event with a text of more than {LONGEST_NAME} bytes: no more are read")
    whole = [text.decode() for text in texts]
    return [EventRow(schema.stage, 0, *whole[at : at + width]) for at in range(0, len(whole), width)]
