"""Tensors as safetensors bytes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mi_crow_lightning.errors import StoreKeyError

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
        OSError: there is no such file, it is damaged, or it does not hold a single tensor.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a").write_bytes(to_bytes(torch.arange(3)))
        ...     read_tensor(Path(folder, "a"))
        tensor([0, 1, 2])
    """
    tensors, _ = _load(path)
    if _ONLY in tensors:
        return tensors[_ONLY]
    raise OSError(f"{str(path)!r} holds {sorted(tensors)}, not a single tensor named {_ONLY!r}")


def read_batch(path: Path) -> Batch:
    """Read back what `batch_to_bytes` encoded: a list as a list, a dict as a dict.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    tensors, container = _load(path)
    if container == "dict":
        return tensors
    names = [f"item_{i}" for i in range(len(tensors))]
    if container is None:  # a file of mi-crow's does not say what it holds: these names stand for a list
        if set(tensors) == {"_empty_list"}:
            return []
        if not tensors or set(tensors) != set(names):
            return tensors
    return [tensors[name] for name in names]


def _load(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata.get(_CONTAINER)
    except SafetensorError as error:
        raise OSError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
