"""A store in a local folder."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import torch

from mi_crow_lightning.errors import StoreKeyError
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.layout import Layout, batches_in, keys_in, layers_in
from mi_crow_lightning.store.local_detectors import LocalDetectorStore
from mi_crow_lightning.store.missing import missing
from mi_crow_lightning.store.store import Store
from mi_crow_lightning.store.tensors import Batch, read_batch, read_tensor, to_bytes, write_batch

__all__ = ["LocalStore"]


class LocalStore(LocalDetectorStore, Store):
    """Keeps tensors as safetensors files in a folder, as ``runs/<run>/batch_<i>/<layer>/<key>.safetensors``.

    Each file is written to a temporary file next to it, synced and then moved into place: a reader sees
    the earlier content or the new one, whatever happens to the writer. Names that would leave the folder,
    also by way of a symbolic link, are refused. The folder is made by the first write.

    Args:
        base_path: the folder; a relative one is taken from where the process is now.
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
        super().__init__(Path(base_path).absolute(), runs_prefix)
        if self.base_path.exists() and not self.base_path.is_dir():
            raise NotADirectoryError(f"base_path {str(base_path)!r} is a file; a store needs a folder")
        self._layout = Layout(self.base_path, runs_prefix)

    def put_tensor(self, key: str, tensor: torch.Tensor) -> Path:
        """Keep a tensor that belongs to no run; see `put_tensor`.

        Examples:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = LocalStore(folder).put_tensor("vectors/joy", torch.zeros(2))
            ...     LocalStore(folder).get_tensor("vectors/joy")
            tensor([0., 0.])
        """
        path = self._layout.free(key)
        if self._layout.is_runs(key):
            raise StoreKeyError(f"key {key!r} lies among the runs. Allowed: another folder; for a run use put().")
        write_atomically(path, to_bytes(tensor))
        return path

    def get_tensor(self, key: str) -> torch.Tensor:
        """Read the tensor at a path relative to the store; see `get_tensor`."""
        path = self._layout.free(key)
        if path.is_file():
            return read_tensor(path)
        names = sorted(p.name for p in path.parent.glob("[!.]*") if p.is_file())
        raise missing("tensor", path.name, names, path.parent)

    def put(self, run_id: str, batch_index: int, layer: str, key: str, tensor: torch.Tensor) -> Path:
        """Keep one tensor; see `put`."""
        path = self._layout.tensor(run_id, batch_index, layer, key)
        write_atomically(path, to_bytes(tensor))
        return path

    def get(self, run_id: str, batch_index: int, layer: str, key: str) -> torch.Tensor:
        """Read one tensor; see `get`."""
        path = self._layout.tensor(run_id, batch_index, layer, key)
        if path.is_file():
            return read_tensor(path)
        folder = self._layout.existing_layer(run_id, batch_index, layer)
        raise missing("key", key, keys_in(folder), folder)

    def list_runs(self) -> list[str]:
        """Names of the runs, sorted; none before the first write."""
        return self._layout.runs()

    def list_run_batches(self, run_id: str) -> list[int]:
        """Indices of a run's batches, in numeric order; see `list_run_batches`."""
        return batches_in(self._layout.existing_run(run_id))

    def list_layers(self, run_id: str, batch_index: int) -> list[str]:
        """Names of the layers of a batch, sorted; see `list_layers`."""
        return layers_in(self._layout.existing_batch(run_id, batch_index))

    def list_keys(self, run_id: str, batch_index: int, layer: str) -> list[str]:
        """Keys of a layer's tensors, sorted; see `list_keys`."""
        return keys_in(self._layout.existing_layer(run_id, batch_index, layer))

    def put_run_batch(self, run_id: str, batch_index: int, tensors: Batch) -> str:
        """Keep a list or a dict of tensors as one file; see `put_run_batch`.

        Examples:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     LocalStore(folder).put_run_batch("run", 0, [torch.zeros(2), torch.ones(1)])
            ...     LocalStore(folder).get_run_batch("run", 0)
            'runs/run/batch_000000.safetensors'
            [tensor([0., 0.]), tensor([1.])]
        """
        path = self._layout.batch_file(run_id, batch_index)
        write_batch(path, tensors)
        return self._relative(path)

    def get_run_batch(self, run_id: str, batch_index: int) -> Batch:
        """Read a batch, whichever way it was put; see `get_run_batch`.

        Of a batch put both ways, the whole one is read.
        """
        path = self._layout.batch_file(run_id, batch_index)
        if path.is_file():
            return read_batch(path)
        layers = self.list_layers(run_id, batch_index)
        found = [(layer, key) for layer in layers for key in self.list_keys(run_id, batch_index, layer)]
        names = [key if len(layers) == 1 else f"{key}_{layer}" for layer, key in found]
        if len(set(names)) < len(names):
            raise ValueError(f"batch {batch_index} of run {run_id!r} has two tensors of one name: {names}")
        return {name: self.get(run_id, batch_index, *one) for name, one in zip(names, found, strict=True)}

    def delete_run(self, run_id: str) -> None:
        """Remove a run and all it holds; see `delete_run`."""
        path = self._layout.run(run_id)
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            # Out of sight in one step: a process killed in the middle leaves no run with half its tensors.
            hidden = path.with_name(f".deleted-{secrets.token_hex(8)}")
            path.rename(hidden)
            shutil.rmtree(hidden)
