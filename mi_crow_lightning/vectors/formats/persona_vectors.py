"""Files of persona_vectors: a tensor ``(L + 1, D)``, written by ``torch.save``, such as ``evil_response_avg_diff.pt``.

Row ``l`` is a difference of means of ``hidden_states[l]`` of transformers: row 0 is of the embedding, row ``l`` of the
output of block ``l - 1``. The last row has the model's final norm in it, as the last of the ``hidden_states`` has in
most models (read in ``generate_vec.py`` of a copy of the repository to arXiv 2507.21509).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from mi_crow_lightning._foreign_files import MOST_TENSORS, Damaged, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors.formats.blocks import address_of
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["read_persona_vector"]

_MOST_BYTES = 2**30  # a hundred rows of width 16,384 take 7 MB
_MOST_PARTS = 64  # of the archive, which has about six
_LONGEST_PICKLE = 2**16  # bytes: what says that there is one tensor takes 200


def read_persona_vector(path: str | PathLike[str], *, embedding: str | None = None) -> SteeringVector:
    """Read a vector of persona_vectors.

    The file is opened by ``torch.load(weights_only=True)``, which runs nothing that is in it, after its size and its
    parts were checked.

    Args:
        path: the file.
        embedding: name of the layer that row 0 belongs to, such as ``"model.embed_tokens"``; that row is left out by
            default, because it does not belong to a block.

    Returns:
        A direction for each block; the layers are named ``"block:N"``, see `SteeringVector.fitted_to`.

    Raises:
        FileNotFoundError: there is no such file.
        VectorFileError: it holds something else, or is damaged.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.ones(4, 2), f"{folder}/evil_response_avg_diff.pt")
        ...     read_persona_vector(f"{folder}/evil_response_avg_diff.pt")
        SteeringVector(persona_vectors, 3 layers 'block:0' to 'block:2', width 2, norm 1.414)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no persona vector at {named(path)}: there is no such file")
    with one_error(path, VectorFileError):
        _check_archive(path)
        rows = _rows(path)
        directions = {address_of(number): row for number, row in enumerate(rows[1:])}
        first = {} if embedding is None else {embedding: rows[0]}
        return SteeringVector(first | directions, method="persona_vectors")


def _check_archive(path: Path) -> None:
    """Refuse what is not a small archive whose parts are as they are: none is to be unpacked."""
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise Damaged(f"has {size} bytes, and of a vector at most {_MOST_BYTES} are read")
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
    except (BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise Damaged("is not a file that torch.save wrote, which is a zip archive") from error
    if len(parts) > _MOST_PARTS:
        raise Damaged(f"is an archive of {len(parts)} files, and one of a tensor has at most {_MOST_PARTS}")
    for part in parts:
        if part.compress_type != ZIP_STORED or part.file_size > size:
            raise Damaged(f"holds {shortened(repr(part.filename))} packed: torch.save packs nothing")
        if part.filename.endswith("data.pkl") and part.file_size > _LONGEST_PICKLE:
            raise Damaged(f"describes its tensor in {part.file_size} bytes, and at most {_LONGEST_PICKLE} are read")


def _rows(path: Path) -> Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise Damaged(f"cannot be read: torch does not take it for a tensor ({type(error).__name__})") from error
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise Damaged(f"holds a {type(value).__name__}, and a tensor (L + 1, D) is needed")
    if value.dim() != 2 or not value.is_floating_point() or len(value) < 2 or not value.shape[1]:
        raise Damaged(
            f"holds {value.dtype} of shape {shortened(str(tuple(value.shape)))}, and floats (L + 1, D) are needed"
        )
    if value.numel() * value.element_size() > path.stat().st_size or len(value) > MOST_TENSORS:
        raise Damaged(f"claims the shape {tuple(value.shape)}, and has fewer numbers")
    return value
