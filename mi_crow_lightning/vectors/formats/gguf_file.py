"""GGUF files that others may have written, version 2 or 3: their header, and tensors of float32.

The magic, the version and two counts, of tensors and of fields; then the fields (name, kind, value); then the tensors
(name, shape, kind, offset); then, aligned, their data. Each count and length is compared with the bytes that the file
still has before anything of that size is read or repeated. The reader of the package gguf takes them as they are, and
a file of 200 bytes can keep it busy for ever.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mi_crow_lightning._foreign_files import LONGEST_NAME, MOST_TENSORS, Damaged
from mi_crow_lightning._shown import shortened

__all__ = ["GGUFHeader", "GGUFTensor", "read_header", "read_vectors"]

_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LEAST_FIELD, _LEAST_TENSOR = 13, 24  # the bytes that one takes in the header at least
_MOST_DIMENSIONS = 4  # as in ggml
_LONGEST_KEY, _LONGEST_TEXT = 65535, 2**24  # the first as the format has it
_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 28: "F64", 30: "BF16"}  # kinds of tensors that are likely here


class GGUFTensor(NamedTuple):
    """A tensor, as the header has it: the fastest dimension first, and ``start`` counted from the data's first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


class GGUFHeader(NamedTuple):
    """The header of a file.

    Attributes:
        fields: the value of each field; ``None`` for arrays, which are passed over.
        tensors: the tensors, each name once.
        order: ``"<"`` or ``">"``, the order of bytes.
        data: the place of the data's first byte in the file.
    """

    fields: dict[str, Any]
    tensors: list[GGUFTensor]
    order: str
    data: int


class _Cursor:
    """A place in a file that never goes beyond its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.order = file, "<"
        self.left = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        self.need(count, "its next part")
        data = self._file.read(count)
        self.left -= count
        if len(data) < count:
            raise Damaged("is not a readable GGUF file: it became shorter while it was read")
        return data

    def skip(self, count: int) -> None:
        self.need(count, "an array")
        self._file.seek(count, os.SEEK_CUR)
        self.left -= count

    def need(self, count: int, what: str) -> None:
        if count > self.left:
            raise Damaged(f"is not a readable GGUF file: {what} needs {count} bytes, and {self.left} are left")

    def number(self, code: str) -> Any:
        return struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, longest: int) -> str:
        if (length := self.number("Q")) > longest:
            self.need(length, "a text")
            raise Damaged(f"has a text of {length} bytes, where at most {longest} are read")
        return self.take(length).decode("utf-8")


def read_header(file: BinaryIO) -> GGUFHeader:
    """Read the header of an open file.

    Raises:
        Damaged, UnicodeDecodeError: it is not such a file, or claims to hold more than it has bytes for.
    """
    cursor = _Cursor(file)
    size = cursor.left
    if cursor.take(min(4, size)) != b"GGUF":
        raise Damaged("is not a readable GGUF file: it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version & 0xFFFF == 0:  # written by a machine with the other order of bytes
        cursor.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in _VERSIONS:
        raise Damaged(f"is a GGUF file of version {version}, and versions 2 and 3 are read")
    tensors, fields = cursor.number("Q"), cursor.number("Q")
    cursor.need(tensors * _LEAST_TENSOR + fields * _LEAST_FIELD, f"a header of {fields} fields and {tensors} tensors")
    if tensors > MOST_TENSORS:
        raise Damaged(f"holds {tensors} tensors, and at most {MOST_TENSORS} are read")
    values = _fields(cursor, fields)
    headers = _tensors(cursor, tensors)
    end, alignment = size - cursor.left, _alignment(values)
    return GGUFHeader(values, headers, cursor.order, end + -end % alignment)


def _fields(cursor: _Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        if (name := cursor.text(_LONGEST_KEY)) in fields:
            raise Damaged(f"has two fields named {shortened(repr(name))}")
        fields[name] = _value(cursor, cursor.number("I"))
    return fields


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _TEXT:
        return cursor.text(_LONGEST_TEXT)
    if kind == _ARRAY:
        return _pass_over(cursor, cursor.number("I"), cursor.number("Q"))
    return cursor.number(_code(kind))


def _pass_over(cursor: _Cursor, kind: int, count: int) -> None:
    """Go to the end of an array."""
    if kind == _TEXT:
        cursor.need(8 * count, f"an array of {count} texts")
        for _ in range(count):
            cursor.skip(cursor.number("Q"))
    else:
        cursor.skip(count * struct.calcsize("<" + _code(kind)))


def _code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise Damaged(f"is not a readable GGUF file: a value of the kind {kind} is not known there")
    return _NUMBERS[kind]


def _alignment(fields: dict[str, Any]) -> int:
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise Damaged(f"has the alignment {shortened(repr(alignment))}, and a power of two is needed")
    return alignment


def _tensors(cursor: _Cursor, count: int) -> list[GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for _ in range(count):
        name, dimensions = cursor.text(LONGEST_NAME), cursor.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise Damaged(f"holds {shortened(repr(name))} of {dimensions} dimensions, and at most 4 are read")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        if name in tensors:
            raise Damaged(f"holds two tensors named {shortened(repr(name))}")
        tensors[name] = GGUFTensor(name, shape, cursor.number("I"), cursor.number("Q"))
    return list(tensors.values())


def read_vectors(file: BinaryIO, header: GGUFHeader) -> dict[str, Tensor]:
    """Read all tensors of a file whose tensors are vectors of float32.

    Raises:
        Damaged: a tensor is something else, or lies beyond the file's end, or they overlap.
    """
    size = os.fstat(file.fileno()).st_size - header.data
    needed = 0
    for tensor in header.tensors:
        kind = _NAMES.get(tensor.kind, f"kind {tensor.kind}")
        if kind != "F32" or len(tensor.shape) != 1 or not tensor.shape[0]:
            raise Damaged(f"holds {shortened(repr(tensor.name))}, {kind} of shape {tensor.shape}: F32 (D,) is needed")
        needed += 4 * tensor.shape[0]
        if max(needed, tensor.start + 4 * tensor.shape[0]) > size:
            raise Damaged(f"holds {shortened(repr(tensor.name))} of shape {tensor.shape}, and ends before that")
    return {tensor.name: _vector(file, header, tensor) for tensor in header.tensors}


def _vector(file: BinaryIO, header: GGUFHeader, tensor: GGUFTensor) -> Tensor:
    file.seek(header.data + tensor.start)
    numbers = np.frombuffer(file.read(4 * tensor.shape[0]), f"{header.order}f4", tensor.shape[0])
    return torch.from_numpy(numbers.astype(np.float32))  # (D,)
