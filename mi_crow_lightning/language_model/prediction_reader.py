"""Reading what a `PredictionWriter` wrote: whole batches, also while it writes and after it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mi_crow_lightning._arguments import place
from mi_crow_lightning._foreign_files import Damaged, from_json, named, one_error
from mi_crow_lightning._warned import warn
from mi_crow_lightning.language_model.line_file import whole_batches
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["read_predictions"]


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    r"""Return the records of a file of JSON lines, in their order.

    Of a file that a `PredictionWriter` writes right now, or was writing when its process was killed, these are the
    records of whole batches.

    Args:
        path: the file of one rank.

    Returns:
        One dict per line, with ``dataloader_idx``, ``batch_idx`` and ``index`` if a `PredictionWriter` wrote it.

    Warns:
        InexactWarning: the file ends in a part of a batch, which was left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not a JSON object.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "texts.jsonl").write_text('{"text": "joy"}\n{"text": "gloom"}\n')
        ...     [record["text"] for record in read_predictions(Path(folder, "texts.jsonl"))]
        ['joy', 'gloom']
    """
    file = place("path", path).expanduser()
    data, left_out = whole_batches(file)
    if left_out:
        warn(
            f"{named(file)} ends in {left_out} bytes of a batch that is not written to its end, or was not when its "
            "process was killed: they were left out",
            InexactWarning,
            stacklevel=2,
        )
    with one_error(file, ValueError):
        return [_record(line, number) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def _record(line: bytes, number: int) -> dict[str, Any]:
    record = from_json(line, f"has a line {number} that")
    if not isinstance(record, dict):
        raise Damaged(f"has a line {number} that is not a JSON object, but a {type(record).__name__}")
    return record
