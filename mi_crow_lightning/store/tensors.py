"""Tensors as safetensors bytes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from mi_crow_lightning._foreign_files import Damaged, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import StoreFileError, StoreKeyError
from mi_crow_lightning.store.safetensors_file import Header, check_names, opened, read_header

__all__ = ["Batch", "batch_to_bytes", "read_batch", "read_tensor", "to_bytes"]

Batch = list[torch.Tensor] | dict[str, torch.Tensor]

_ONLY = "tensor"
_CONTAINER = "container"


def to_bytes(tensor: object) -> bytes:
    """Encode one tensor of any shape; the tensor itself is left alone.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it is sparse, quantized, on the meta device, or of a dtype that safetensors lacks.
    """
    return _encode({_ONLY: tensor}, "tensor")


def batch_to_bytes(tensors: object) -> bytes:
    """Encode a list, or a dict, of tensors of any shapes.

    Raises:
        TypeError: neither a list nor a dict, a dict key is not a string, or a value is not a tensor.
        StoreKeyError: a dict key is ``"__metadata__"``, which safetensors keeps for itself.
        ValueError: see `to_bytes`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a").write_bytes(batch_to_bytes([torch.zeros(2), torch.ones(3)]))
        ...     read_batch(Path(folder, "a"))
        [tensor([0., 0.]), tensor([1., 1., 1.])]
    """
    if isinstance(tensors, list):
        return _encode({f"item_{i}": one for i, one in enumerate(tensors)}, "list")
    if not isinstance(tensors, dict):
        raise TypeError(f"tensors must be a list or a dict of tensors, got {type(tensors).__name__}")
    for key in tensors:
        if not isinstance(key, str):
            raise TypeError(f"keys of a batch must be str, got {key!r}")
        if key == "__metadata__":
            raise StoreKeyError(f"key {key!r} is kept by safetensors for itself. Allowed: any other str.")
    return _encode(tensors, "dict")


def _encode(tensors: Mapping[str, object], container: str) -> bytes:
    try:
        check_names(tensors)
    except Damaged as error:
        raise ValueError(f"a batch that {error}, cannot be stored") from None
    copies = {name: _portable(name, tensor) for name, tensor in tensors.items()}
    try:
        data: bytes = save(copies, metadata={_CONTAINER: container})
    except (KeyError, SafetensorError) as error:
        dtypes = ", ".join(f"{name!r}: {copy.dtype}" for name, copy in copies.items())
        raise ValueError(f"safetensors cannot hold these tensors ({dtypes}): {error}") from error
    return data


def _portable(name: str, tensor: object) -> torch.Tensor:
    # Always a copy: safetensors refuses two tensors of one storage. It also settles lazy conj and neg bits.
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name!r} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"{name!r} cannot be stored: layout {tensor.layout}, dtype {tensor.dtype}, "
            f"device {tensor.device}. Allowed: dense tensors that hold data."
        )
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_tensor(path: Path) -> torch.Tensor:
    """Read back a tensor that `to_bytes` encoded.

    Raises:
        FileNotFoundError: there is no such file.
        StoreFileError: it is damaged, or does not hold a single tensor.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a").write_bytes(to_bytes(torch.arange(3)))
        ...     read_tensor(Path(folder, "a"))
        tensor([0, 1, 2])
    """
    with one_error(path, StoreFileError):
        header = read_header(path)
        if _ONLY not in header.shapes:
            names = shortened(str(sorted(header.shapes)))
            raise Damaged(f"holds {names}, not a single tensor named {_ONLY!r}")
        with opened(path) as file:
            return cast(torch.Tensor, file.get_tensor(_ONLY))


def read_batch(path: Path) -> Batch:
    """Read back what `batch_to_bytes` encoded: a list as a list, a dict as a dict.

    Raises:
        FileNotFoundError: there is no such file.
        StoreFileError: it is damaged, or does not hold a batch.
    """
    with one_error(path, StoreFileError):
        header = read_header(path)
        names = _names(header)
        with opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in header.shapes}
        return tensors if names is None else [tensors[name] for name in names]


def _names(header: Header) -> list[str] | None:
    """Return the names of the tensors of a list, in its order; ``None`` for those of a dict."""
    container, found = header.metadata.get(_CONTAINER), set(header.shapes)
    names = [f"item_{i}" for i in range(len(found))]
    if container == "dict":
        return None
    if container is None:  # a file of mi-crow's does not say what it holds: these names stand for a list
        return [] if found == {"_empty_list"} else names if found and found == set(names) else None
    if container == "list" and found == set(names):
        return names
    raise Damaged(
        f"is {shortened(repr(container))} of {shortened(str(sorted(found)))}, not a list or a dict of tensors"
    )
