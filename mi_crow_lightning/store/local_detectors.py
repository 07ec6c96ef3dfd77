"""Metadata of runs and of detectors, in local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mi_crow_lightning.store.detector_store import DetectorStore, TensorMetadata
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.keys import batch_folder_name
from mi_crow_lightning.store.layout import METADATA, Layout, batches_in, keys_in, tensor_file
from mi_crow_lightning.store.metadata import from_json_file, to_json
from mi_crow_lightning.store.missing import missing
from mi_crow_lightning.store.tensors import read_tensor, to_bytes

__all__ = ["LocalDetectorStore"]

_RUN_METADATA = "meta.json"
_DETECTORS = "detectors"
# mi-crow's name for the list of tensors that belong to a metadata file.
_NAMES = "_tensor_metadata_names"


class LocalDetectorStore(DetectorStore):
    """The part of `LocalStore` that keeps metadata.

    Examples:
        >>> import tempfile
        >>> from mi_crow_lightning.store import LocalStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LocalStore(folder)
        ...     store.put_run_metadata("run", {"model": "gpt2"})
        ...     store.get_run_metadata("run")
        'runs/run/meta.json'
        {'model': 'gpt2'}
    """

    _layout: Layout

    def put_run_metadata(self, run_id: str, meta: dict[str, Any]) -> str:
        """Keep JSON metadata of a run; see `put_run_metadata`."""
        path = self._layout.run(run_id, _RUN_METADATA)
        write_atomically(path, to_json(meta))
        return self._relative(path)

    def get_run_metadata(self, run_id: str) -> dict[str, Any]:
        """Read the metadata of a run; see `get_run_metadata`."""
        self._layout.existing_run(run_id)
        path = self._layout.run(run_id, _RUN_METADATA)
        return from_json_file(path) if path.is_file() else {}

    def put_detector_metadata(
        self, run_id: str, batch_index: int, metadata: dict[str, Any], tensor_metadata: TensorMetadata
    ) -> str:
        """Keep what detectors gathered in a batch; see `put_detector_metadata`."""
        folder = self._layout.batch(run_id, batch_index)
        self._write(folder, metadata, tensor_metadata)
        return self._relative(folder)

    def get_detector_metadata(self, run_id: str, batch_index: int) -> tuple[dict[str, Any], TensorMetadata]:
        """Read what detectors gathered in a batch; see `get_detector_metadata`."""
        return self._read(self._layout.existing_batch(run_id, batch_index))

    def put_run_detector_metadata(self, run_id: str, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> str:
        """Append to what a run's detectors gathered; see `put_run_detector_metadata`."""
        folder = self._layout.run(run_id, _DETECTORS)
        # A part without its metadata is one that a killed process did not finish: it is written over.
        parts = self._parts(folder)
        self._write(
            self._layout.run(run_id, _DETECTORS, batch_folder_name(parts[-1] + 1 if parts else 0)),
            metadata,
            tensor_metadata,
        )
        return self._relative(folder)

    def get_run_detector_metadata(self, run_id: str) -> list[tuple[dict[str, Any], TensorMetadata]]:
        """Read all that was appended; see `get_run_detector_metadata`."""
        self._layout.existing_run(run_id)
        parts = self._parts(self._layout.run(run_id, _DETECTORS))
        return [self._read(self._layout.run(run_id, _DETECTORS, batch_folder_name(n))) for n in parts]

    def _parts(self, folder: Path) -> list[int]:
        return [n for n in batches_in(folder) if (folder / batch_folder_name(n) / METADATA).is_file()]

    def _write(self, folder: Path, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> None:
        if isinstance(metadata, dict) and _NAMES in metadata:
            raise ValueError(f"metadata[{_NAMES!r}] is kept for the store's own list of tensors")
        tensors: dict[Path, torch.Tensor] = {}
        for layer, by_key in tensor_metadata.items():
            for key, tensor in by_key.items():
                tensors[tensor_file(self._layout.base, folder, layer, key)] = tensor
        to_json(metadata)
        names = {layer: list(by_key) for layer, by_key in tensor_metadata.items() if by_key}
        encoded = {path: to_bytes(tensor) for path, tensor in tensors.items()}
        for path, data in encoded.items():
            write_atomically(path, data)
        # Last, so that the metadata never names a tensor that is not there.
        index = self._layout.inside(folder, METADATA)
        write_atomically(index, to_json({**metadata, _NAMES: names}))

    def _read(self, folder: Path) -> tuple[dict[str, Any], TensorMetadata]:
        path = self._layout.inside(folder, METADATA)
        if not path.is_file():
            return {}, {}
        metadata = from_json_file(path)
        names = metadata.pop(_NAMES, None)
        if isinstance(names, dict):
            return metadata, {
                layer: {key: self._read_one(folder, layer, key) for key in keys} for layer, keys in names.items()
            }
        raise ValueError(f"{str(path)!r} was not written by a store: it has no {_NAMES!r}")

    def _read_one(self, folder: Path, layer: str, key: str) -> torch.Tensor:
        path = tensor_file(self._layout.base, folder, layer, key)
        if not path.is_file():
            raise missing("key", key, keys_in(path.parent), path.parent)
        return read_tensor(path)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._layout.base).as_posix()
