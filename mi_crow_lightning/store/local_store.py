"""A store in a local folder."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from mi_crow_lightning._arguments import place
from mi_crow_lightning._foreign_files import Damaged, one_error
from mi_crow_lightning._shown import shortened, shown
from mi_crow_lightning.errors import StoreFileError, StoreKeyError
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.folders import Folders, batches_in, keys_in, layers_in
from mi_crow_lightning.store.keys import SUFFIX
from mi_crow_lightning.store.leftovers import remove_leftovers
from mi_crow_lightning.store.metadata import from_json_file, to_json
from mi_crow_lightning.store.missing import missing
from mi_crow_lightning.store.store import Store, TensorMetadata
from mi_crow_lightning.store.tensors import Batch, batch_to_bytes, read_batch, read_tensor, to_bytes

__all__ = ["LocalStore"]

# mi-crow's name for the list of tensors that belong to a metadata file.
_NAMES = "_tensor_metadata_names"


class LocalStore(Store):
    """A store of safetensors files in a folder, as ``runs/<run>/batch_<i>/<layer>/<key>.safetensors``.

    Its methods are those of `Store`. Each file is written to a temporary file in the folder's ``.tmp``, synced and then
    moved into place: a reader sees the earlier content or the new one, whatever happens to the writer. Temporary files
    that killed processes left are removed when a store is opened, and those of running writers are not. Names that
    would leave the folder, also through a symbolic link, are refused. The first write makes the folder.

    Args:
        base_path: the folder; a relative one starts where the process is now.
        runs_prefix: folder for the runs, below ``base_path``.

    Raises:
        NotADirectoryError: ``base_path`` is a file.
        StoreKeyError: ``runs_prefix`` would leave the folder.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LocalStore(folder)
        ...     path = store.put("run", 0, "transformer.h.0", "activations", torch.ones(2, 3))
        ...     print(path.relative_to(store.base_path).as_posix())
        ...     store.get("run", 0, "transformer.h.0", "activations").shape
        runs/run/batch_0/transformer.h.0/activations.safetensors
        torch.Size([2, 3])
    """

    def __init__(self, base_path: Path | str = "", runs_prefix: str = "runs") -> None:
        super().__init__(place("base_path", base_path).absolute(), runs_prefix)
        try:
            is_file = self.base_path.exists() and not self.base_path.is_dir()
        except OSError as error:  # no folder can have that name
            raise ValueError(f"base_path={shown(str(base_path))} cannot be a folder: {error.strerror}") from None
        if is_file:
            raise NotADirectoryError(f"base_path {shown(str(base_path))} is a file; a store needs a folder")
        try:
            self._folders = Folders(self.base_path, runs_prefix)
        except StoreKeyError as error:
            raise StoreKeyError(f"runs_prefix: {error}") from error
        self._scratch = self.base_path / ".tmp"
        remove_leftovers(self._scratch)

    # --- single tensors ---

    def put_tensor(self, key: str, tensor: torch.Tensor) -> Path:
        path = self._folders.free(key)
        if self._folders.is_runs(key):
            raise StoreKeyError(f"key {key!r} lies among the runs. Allowed: another folder; for a run use put().")
        self._put(path, to_bytes(tensor))
        return path

    def get_tensor(self, key: str) -> torch.Tensor:
        path = self._folders.free(key)
        if path.is_file():
            return read_tensor(path)
        names = sorted(p.name for p in path.parent.glob("[!.]*") if p.is_file())
        raise missing("tensor", path.name, names, path.parent)

    def put(self, run_id: str, batch_index: int, layer: str, key: str, tensor: torch.Tensor) -> Path:
        path = self._folders.tensor(self._folders.batch(run_id, batch_index), layer, key)
        self._put(path, to_bytes(tensor))
        return path

    def get(self, run_id: str, batch_index: int, layer: str, key: str) -> torch.Tensor:
        path = self._folders.tensor(self._folders.batch(run_id, batch_index), layer, key)
        if path.is_file():
            return read_tensor(path)
        folder = self._folders.existing_layer(run_id, batch_index, layer)
        raise missing("key", key, keys_in(folder), folder)

    # --- what is there ---

    def list_runs(self) -> list[str]:
        return self._folders.runs()

    def list_run_batches(self, run_id: str) -> list[int]:
        return batches_in(self._folders.existing_run(run_id))

    def list_layers(self, run_id: str, batch_index: int) -> list[str]:
        return layers_in(self._folders.existing_batch(run_id, batch_index))

    def list_keys(self, run_id: str, batch_index: int, layer: str) -> list[str]:
        return keys_in(self._folders.existing_layer(run_id, batch_index, layer))

    def delete_run(self, run_id: str) -> None:
        path = self._folders.run(run_id)
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            # Out of sight in one step: a process killed in the middle leaves no run with half its tensors.
            hidden = path.with_name(f".deleted-{secrets.token_hex(8)}")
            path.rename(hidden)
            shutil.rmtree(hidden)

    # --- whole batches ---

    def put_run_batch(self, run_id: str, batch_index: int, tensors: Batch) -> str:
        path = self._folders.batch_file(run_id, batch_index)
        self._put(path, batch_to_bytes(tensors))
        return self._relative(path)

    def get_run_batch(self, run_id: str, batch_index: int) -> Batch:
        path = self._folders.batch_file(run_id, batch_index)
        if path.is_file():
            return read_batch(path)
        layers = self.list_layers(run_id, batch_index)
        found = [(layer, key) for layer in layers for key in self.list_keys(run_id, batch_index, layer)]
        names = [key if len(layers) == 1 else f"{key}_{layer}" for layer, key in found]
        if len(set(names)) < len(names):
            raise ValueError(f"batch {batch_index} of run {run_id!r} has two tensors of one name: {names}")
        return {name: self.get(run_id, batch_index, *one) for name, one in zip(names, found, strict=True)}

    # --- metadata ---

    def put_run_metadata(self, run_id: str, meta: dict[str, Any]) -> str:
        path = self._folders.run(run_id, "meta.json")
        self._put(path, to_json(meta))
        return self._relative(path)

    def get_run_metadata(self, run_id: str) -> dict[str, Any]:
        self._folders.existing_run(run_id)
        path = self._folders.run(run_id, "meta.json")
        return from_json_file(path) if path.is_file() else {}

    def put_detector_metadata(
        self, run_id: str, batch_index: int, metadata: dict[str, Any], tensor_metadata: TensorMetadata
    ) -> str:
        folder = self._folders.batch(run_id, batch_index)
        self._write(folder, metadata, tensor_metadata)
        return self._relative(folder)

    def get_detector_metadata(self, run_id: str, batch_index: int) -> tuple[dict[str, Any], TensorMetadata]:
        return self._read(self._folders.existing_batch(run_id, batch_index))

    def put_run_detector_metadata(self, run_id: str, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> str:
        parts = self._parts(run_id)
        folder = self._folders.part(run_id, parts[-1] + 1 if parts else 0)
        self._write(folder, metadata, tensor_metadata)
        return self._relative(folder.parent)

    def get_run_detector_metadata(self, run_id: str) -> list[tuple[dict[str, Any], TensorMetadata]]:
        self._folders.existing_run(run_id)
        return [self._read(self._folders.part(run_id, n)) for n in self._parts(run_id)]

    def _parts(self, run_id: str) -> list[int]:
        # A part without its metadata is one that a killed process did not finish: it is written over.
        there = batches_in(self._folders.part(run_id, 0).parent)
        return [n for n in there if self._folders.metadata(self._folders.part(run_id, n)).is_file()]

    def _write(self, folder: Path, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> None:
        if isinstance(metadata, dict) and _NAMES in metadata:
            raise ValueError(f"metadata[{_NAMES!r}] is kept for the store's own list of tensors")
        tensors = {
            self._folders.tensor(folder, layer, key): tensor
            for layer, by_key in tensor_metadata.items()
            for key, tensor in by_key.items()
        }
        names = {layer: list(by_key) for layer, by_key in tensor_metadata.items() if by_key}
        to_json(metadata)  # for its errors, before the store's own key joins it
        files = {path: to_bytes(tensor) for path, tensor in tensors.items()}
        # Last, so that the metadata never names a tensor that is not there.
        files[self._folders.metadata(folder)] = to_json({**metadata, _NAMES: names})
        for path, data in files.items():
            self._put(path, data)

    def _read(self, folder: Path) -> tuple[dict[str, Any], TensorMetadata]:
        path = self._folders.metadata(folder)
        if not path.is_file():
            return {}, {}
        metadata = from_json_file(path)
        with one_error(path, StoreFileError):
            names = _names(metadata.pop(_NAMES, None))
            files = {layer: {key: self._folders.tensor(folder, layer, key) for key in keys} for layer, keys in names}
        return metadata, {
            layer: {key: _read_one(path) for key, path in by_key.items()} for layer, by_key in files.items()
        }

    def _put(self, path: Path, data: bytes) -> None:
        write_atomically(path, data, None if self._scratch.is_symlink() else self._scratch)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.base_path).as_posix()


def _names(listed: Any) -> list[tuple[str, list[str]]]:
    """Return the layers and keys of the tensors that belong to metadata, as the metadata's file lists them."""
    if not isinstance(listed, dict):
        raise Damaged(f"was not written by a store: it has no {_NAMES!r}")
    for layer, keys in listed.items():
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) < len(keys):
            raise Damaged(
                f"lists {shortened(repr(keys))} of layer {shortened(repr(layer))}, and names are needed, each once"
            )
    return list(listed.items())


def _read_one(path: Path) -> torch.Tensor:
    if not path.is_file():
        raise missing("key", path.name.removesuffix(SUFFIX), keys_in(path.parent), path.parent)
    return read_tensor(path)
