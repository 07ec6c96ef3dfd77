"""Generated texts as data, for the tab in TensorBoard: one row a text, with its tokens and the ones that were changed.

In an event file they are one tensor of texts a stage and dataloader, each element a row as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mi_crow_lightning._foreign_files import Damaged, from_json
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.loggers.compact_reader import event_files, tensors_of
from mi_crow_lightning.loggers.compact_schema import Schema
from mi_crow_lightning.loggers.compact_tensors import VERSION, CompactTensor
from mi_crow_lightning.loggers.tags import stage_segment
from mi_crow_lightning.loggers.tensorboard import summary_writer, write_event

__all__ = ["MOST_AFTER", "MOST_BEFORE", "TextRow", "read_texts", "write_texts"]

MOST_BEFORE, MOST_AFTER = 500, 1000
"""The most tokens of a prompt, its last ones, and of a continuation, its first ones."""

LONGEST = 20_000
"""The most characters of a text."""

_LARGEST = 4_000_000  # bytes of a row
_MARKS = {"1": True, "0": False, "-": None}


class TextRow(NamedTuple):
    """One continuation of one prompt, with its tokens.

    Attributes:
        stage: ``"predict"``.
        step: the position on the x axis: the steps of the training before.
        dataloader_idx: the dataloader, if there were several; ``None`` for the only one.
        row: which prompt of the dataloader, counted from 0.
        prompt: the prompt's text; ``None`` without a tokenizer.
        strength: the strength that it was steered with; ``None`` if there was none.
        sequence: which of the prompt's ``num_return_sequences``.
        text: the continuation alone; ``None`` without a tokenizer.
        tokens: the text of each token, of prompt and continuation.
        prompt_tokens: how many of them are the prompt's.
        special: places of tokens that the texts leave out, such as the one that ends a text.
        joined: whether the other tokens one after the other are ``prompt + text``; else they are pieces by themselves.
        touched: for each controller and each token, whether the controller changed its activation at any layer;
            ``None`` for a token that the model never read, which is the last one of the longest text.
        unmarked: why it is not known which tokens a controller changed.
        left_out: tokens left out because the text is very long: at the beginning of the prompt, at the end.
    """

    stage: str
    step: int
    dataloader_idx: int | None
    row: int
    prompt: str | None
    strength: float | None
    sequence: int
    text: str | None
    tokens: tuple[str, ...] = ()
    prompt_tokens: int = 0
    special: tuple[int, ...] = ()
    joined: bool = True
    touched: Mapping[str, tuple[bool | None, ...]] = {}
    unmarked: Mapping[str, str] = {}
    left_out: tuple[int, int] = (0, 0)


def write_texts(loggers: Iterable[object], rows: Sequence[TextRow]) -> None:
    """Write texts to the loggers of TensorBoard, as data.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``; others than TensorBoard's are passed over.
        rows: the texts, of one stage, step and dataloader.
    """
    if rows:
        for writer in map(summary_writer, loggers):
            if writer is not None:
                write_event(writer, [], rows[0].step, [_tensor(rows)])


def read_texts(log_dir: str | os.PathLike[str]) -> Iterator[TextRow]:
    """Read the texts that ``CausalLMModule(log_text=...)`` wrote to a run's event files.

    Args:
        log_dir: the folder with the event files, a TensorBoardLogger's ``log_dir``.

    Returns:
        An iterator over the texts: by prompt, then by strength, then by returned sequence.

    Raises:
        FileNotFoundError: the folder holds no event file.
        ValueError: a file is damaged, or was written by a release with another version of the tensors. The rows before
            the damage are there when it is raised; a file that ends in the middle of an event is read up to there.
        OSError: a file cannot be read.

    Examples:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> fell = TextRow("predict", 0, None, 0, "Rain", 2.0, 0, " fell", ("Rain", " fell"), 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SummaryWriter(folder) as writer:
        ...         logger = SimpleNamespace(experiment=writer)
        ...         write_texts([logger], [fell._replace(touched={"steer": (True, None)})])
        ...     [row] = read_texts(folder)
        >>> row.tokens, row.touched
        (('Rain', ' fell'), {'steer': (True, None)})
    """
    return _rows(event_files(log_dir))


def _rows(files: Any) -> Iterator[TextRow]:
    for schema, _, step, rows in tensors_of(files, "texts", _rows_of):
        yield from (row._replace(step=step, stage=schema.stage, dataloader_idx=schema.dataloader_idx) for row in rows)


def _tensor(rows: Sequence[TextRow]) -> CompactTensor:
    stage, dataloader_idx = rows[0].stage, rows[0].dataloader_idx
    of_loader = {} if dataloader_idx is None else {"dataloader_idx": dataloader_idx}
    schema = json.dumps({"version": VERSION, "kind": "texts", "stage": stage, **of_loader}, separators=(",", ":"))
    digest = hashlib.sha256(schema.encode()).hexdigest()[:8]
    values = np.array([json.dumps(_fields(row), separators=(",", ":")) for row in rows], dtype=object)
    return CompactTensor(f"texts/{stage_segment(stage)}#{digest}", values, schema)


def _fields(row: TextRow) -> dict[str, Any]:
    marks = {None: "-", False: "0", True: "1"}
    fields = row._asdict()
    for place in ("stage", "step", "dataloader_idx"):
        del fields[place]
    fields["touched"] = {hook: "".join(marks[mark] for mark in of_hook) for hook, of_hook in row.touched.items()}
    return fields


def _rows_of(value: Any, schema: Schema) -> list[TextRow]:
    """Return the rows of a tensor.

    Raises:
        Damaged: it is not a tensor of such rows.
    """
    from tensorboard.compat.proto import types_pb2

    tensor = value.tensor
    shape, texts = [dim.size for dim in tensor.tensor_shape.dim], tensor.string_val
    if tensor.dtype != types_pb2.DT_STRING or shape != [len(texts)]:
        raise Damaged(
            f"has texts {shortened(repr(value.tag))} of shape {shortened(str(shape))} and type {tensor.dtype}, and "
            f"{len(texts)} of them: one row for each is needed"
        )
    return [_row(text) for text in texts]


def _row(content: bytes) -> TextRow:
    if len(content) > _LARGEST:
        raise Damaged(f"has a text of {len(content)} bytes: at most {_LARGEST} are read")
    read = from_json(content, "has a text that")
    tokens = _value(read, "tokens", list)
    if not all(isinstance(token, str) for token in tokens):
        raise Damaged("has a text whose 'tokens' are not texts")
    touched = _value(read, "touched", dict)
    if not all(
        isinstance(marks, str) and len(marks) == len(tokens) and set(marks) <= set("01-") for marks in touched.values()
    ):
        raise Damaged("has a text whose 'touched' is not one mark for each token")
    unmarked = _value(read, "unmarked", dict)
    if not all(isinstance(reason, str) for reason in unmarked.values()):
        raise Damaged("has a text whose 'unmarked' are not texts")
    left_out = _counts(read, "left_out", 2**31)
    if len(left_out) != 2:
        raise Damaged(f"has a text whose 'left_out' is {shortened(repr(left_out))}: two numbers are needed")
    return TextRow(
        stage="",
        step=0,
        dataloader_idx=None,
        row=_count(read, "row"),
        prompt=_value(read, "prompt", str, type(None)),
        strength=_strength(read),
        sequence=_count(read, "sequence"),
        text=_value(read, "text", str, type(None)),
        tokens=tuple(tokens),
        prompt_tokens=min(_count(read, "prompt_tokens"), len(tokens)),
        special=_counts(read, "special", len(tokens)),
        joined=_value(read, "joined", bool),
        touched={hook: tuple(_MARKS[mark] for mark in marks) for hook, marks in touched.items()},
        unmarked=unmarked,
        left_out=(left_out[0], left_out[1]),
    )


def _value(read: Any, key: str, *types: type) -> Any:
    value = read.get(key) if isinstance(read, dict) else None
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Damaged(f"has a text whose {key!r} is {shortened(repr(value))}")
    return value


def _strength(read: Any) -> float | None:
    value = _value(read, "strength", float, int, type(None))
    if value is not None and not math.isfinite(value):
        raise Damaged(f"has a text whose 'strength' is {shortened(repr(value))}: a finite number is needed")
    return None if value is None else float(value)


def _count(read: Any, key: str) -> int:
    value: int = _value(read, key, int)
    if not 0 <= value < 2**31:
        raise Damaged(f"has a text whose {key!r} is {shortened(repr(value))}: a whole number is needed")
    return value


def _counts(read: Any, key: str, below: int) -> tuple[int, ...]:
    values = _value(read, key, list)
    if not all(type(value) is int and 0 <= value < below for value in values):
        raise Damaged(f"has a text whose {key!r} is {shortened(repr(values))}: whole numbers below {below} are needed")
    return tuple(values)
