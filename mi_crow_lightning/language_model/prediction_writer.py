"""Predictions as JSON lines on disk, written batch by batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning._arguments import one_of, place
from mi_crow_lightning.choices import WriteMode
from mi_crow_lightning.language_model.generated import GeneratedText
from mi_crow_lightning.language_model.line_file import LineFile, holds_lines

__all__ = ["PredictionWriter"]

_MODES: tuple[WriteMode, ...] = get_args(WriteMode)
_PLACE = ("index", "dataloader_idx", "batch_idx")  # names that the writer's own fields have


class PredictionWriter(BasePredictionWriter):
    """A callback that writes what ``predict_step`` of any module returns, as JSON lines, one line per record.

    A record is a mapping, a named tuple, a dataclass or a string (written as ``text``). ``predict_step`` returns one
    record or a list of them; `CausalLMModule` returns `GeneratedText`. Tensors in a record become lists. Each line
    also holds ``dataloader_idx``, ``batch_idx`` and ``index``, the place of its sample in the dataset. ``index`` is
    known for `GeneratedText`, and when there is one record per sample. A record's field of one of these names is
    written as ``record_index`` and the like.

    When a batch ends, the operating system has all of its lines, so a run that is killed keeps what it wrote. If that
    happens within a write, the file may end in half a batch: a file beside it, ``texts.jsonl.unfinished``, holds the
    number of bytes up to which batches are whole, and ``mode="a"`` cuts off the rest. The file is UTF-8; NaN and
    infinity are written as Python's ``json`` writes them, and line separators inside text are escaped.

    Args:
        path: the file. With several processes each writes one: with ``texts.jsonl``, rank 1 writes
            ``texts.rank1.jsonl``.
        mode: ``"x"`` refuses a file that exists, ``"w"`` overwrites it, ``"a"`` continues it if it holds JSON lines.

    Attributes:
        file: the file that this rank writes; ``None`` before predict starts.

    Raises:
        ValueError: ``mode`` is not one of these.

    Examples:
        >>> PredictionWriter("texts.jsonl", mode="r")
        Traceback (most recent call last):
        ...
        ValueError: mode='r' is not known: choose one of 'x', 'w', 'a'
    """

    def __init__(self, path: str | Path, mode: WriteMode = "x") -> None:
        super().__init__(write_interval="batch")
        self.mode = one_of("mode", mode, _MODES)
        self.path = place("path", path).expanduser()
        self.file: Path | None = None
        self._lines: LineFile | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the file before anything is predicted.

        Raises:
            FileExistsError: the file of some rank exists, and the mode is ``"x"``.
            ValueError: the file of some rank does not hold JSON lines, and the mode is ``"a"``. It is left as it is.
        """
        self._close()
        self.file = file = self._file_of(trainer)
        usable = self.mode == "w" or not file.exists() or (self.mode == "a" and holds_lines(file))
        # On all ranks or on none: a rank that went on alone would wait for the others.
        if not trainer.strategy.reduce_boolean_decision(usable, all=True):
            raise self._refusal(file if not usable else None)
        self._lines = LineFile(file, self.mode)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the records of one batch.

        Raises:
            TypeError: ``predict_step`` returned something other than records, or JSON cannot hold a value in one.
        """
        assert self._lines is not None, "predict has started"
        records = list(_records(prediction))
        # Not `batch_indices`: it holds those of an earlier dataloader where Lightning has none for the running one.
        samples = facts.samples_of_batch(trainer, batch_idx, dataloader_idx)
        lines = []
        for i, record in enumerate(records):
            row = record.row if isinstance(record, GeneratedText) else i if _one_each(records, samples) else None
            index = samples[row] if samples is not None and row is not None else None
            place = dict(zip(_PLACE, (index, dataloader_idx, batch_idx), strict=True))
            lines.append(_line({**place, **_apart(_fields(record))}))
        self._lines.append(lines)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _refusal(self, file: Path | None) -> Exception:
        """Build the error for a file that is not written; ``None`` where it is another rank's."""
        found = f"another rank's file beside {str(self.file)!r}" if file is None else repr(str(file))
        if self.mode == "x":
            already = "exists" if file is None else "exists already"
            return FileExistsError(
                f"{found} {already}: PredictionWriter(..., mode='w') overwrites it, mode='a' continues it"
            )
        return ValueError(
            f"{found} does not begin with a line of JSON, so it is not continued and left as it is: choose another "
            "path, or mode='w' to overwrite it"
        )

    def _file_of(self, trainer: pl.Trainer) -> Path:
        if trainer.world_size == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}.rank{trainer.global_rank}{self.path.suffix}")

    def _close(self) -> None:
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file out of a copied or pickled writer."""
        return {**self.__dict__, "_lines": None}


def _one_each(records: list[Any], samples: list[int] | None) -> bool:
    return samples is not None and len(records) == len(samples)


def _records(prediction: Any) -> Iterator[Any]:
    """Yield the records of one batch: the prediction itself, or the items of its list."""
    several = isinstance(prediction, (list, tuple)) and not hasattr(prediction, "_fields")
    for record in prediction if several else [prediction]:
        if not isinstance(record, (str, Mapping)) and not _is_named(record):
            raise TypeError(
                f"PredictionWriter writes records: a mapping, a named tuple, a dataclass or a string, or a list of "
                f"them. predict_step returned {f'a list with a {_kind(record)}' if several else f'a {_kind(record)}'}"
            )
        yield record


def _is_named(record: Any) -> bool:
    named_tuple = isinstance(record, tuple) and hasattr(record, "_fields")
    return named_tuple or (dataclasses.is_dataclass(record) and not isinstance(record, type))


def _kind(record: Any) -> str:
    return f"Tensor of shape {tuple(record.shape)}" if isinstance(record, Tensor) else type(record).__name__


def _fields(record: Any) -> dict[str, Any]:
    if isinstance(record, str):
        return {"text": record}
    if isinstance(record, Mapping):
        return dict(record)
    if isinstance(record, tuple):
        return dict(record._asdict())  # type: ignore[attr-defined]
    return dataclasses.asdict(record)


def _apart(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record with other names for those that the writer uses itself."""
    apart: dict[str, Any] = {}
    for name, value in fields.items():
        free = name
        while free in _PLACE or (free != name and free in fields):
            free = f"record_{free}"
        apart[free] = value
    return apart


def _line(fields: dict[str, Any]) -> str:
    try:
        return json.dumps(fields, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise TypeError(f"PredictionWriter cannot write a record with the fields {list(fields)}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not text, a number, a list or a mapping")
