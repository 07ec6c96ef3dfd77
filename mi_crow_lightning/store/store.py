"""The interface of every store."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mi_crow_lightning._moved import answers_for_old_names
from mi_crow_lightning.store.missing import missing
from mi_crow_lightning.store.tensors import Batch

__all__ = ["Store", "TensorMetadata"]

TensorMetadata = dict[str, dict[str, torch.Tensor]]
"""What detectors gathered: by layer, then by key, a tensor of any shape."""


@answers_for_old_names
class Store(abc.ABC):
    """A place for tensors by run, batch, layer and key, and for metadata of runs and of what detectors gathered.

    Names (runs, layers, keys) are kept as they are given. Every method refuses a name that cannot be a file name, and
    a ``batch_index`` that is not an int from 0 on, with a ``StoreKeyError``. Every method that reads raises
    ``FileNotFoundError`` for what is not there, and says what is, and ``StoreFileError``, which is an ``OSError`` and a
    ``ValueError``, for a file that is damaged or another's.

    Args:
        base_path: where the store is.
        runs_prefix: folder for the runs, below ``base_path``.

    Examples:
        >>> import tempfile
        >>> from mi_crow_lightning.store import LocalStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LocalStore(folder)
        ...     for batch in (10, 9):
        ...         path = store.put("run", batch, "h.0", "mean", torch.full((2,), float(batch)))
        ...     store.list_runs(), store.list_run_batches("run")
        ...     list(store.iterate("run", key="mean"))
        (['run'], [9, 10])
        [(9, 'h.0', 'mean', tensor([9., 9.])), (10, 'h.0', 'mean', tensor([10., 10.]))]
    """

    def __init__(self, base_path: Path | str = "", runs_prefix: str = "runs") -> None:
        self.base_path = Path(base_path)
        self.runs_prefix = runs_prefix

    @abc.abstractmethod
    def put_tensor(self, key: str, tensor: torch.Tensor) -> Path:
        """Keep a tensor of any shape that belongs to no run, under a path such as ``"vectors/joy"``.

        Raises:
            StoreKeyError: the path would leave the store, or lies among the runs.
            TypeError, ValueError: not a tensor, or not one that can be stored.
            OSError: it could not be written; the earlier tensor is kept.
        """

    @abc.abstractmethod
    def get_tensor(self, key: str) -> torch.Tensor:
        """Read the tensor at a path relative to the store, in its own shape and dtype, on the CPU.

        Raises:
            StoreKeyError: the path would leave the store.
            FileNotFoundError: there is no such tensor.
            StoreFileError: the file is damaged.
        """

    @abc.abstractmethod
    def put(self, run_id: str, batch_index: int, layer: str, key: str, tensor: torch.Tensor) -> Path:
        """Keep one tensor of any shape, in place of what was there.

        Raises:
            StoreKeyError: a name or the index is refused.
            TypeError, ValueError: not a tensor, or not one that can be stored.
            OSError: it could not be written; the earlier tensor is kept.
        """

    @abc.abstractmethod
    def get(self, run_id: str, batch_index: int, layer: str, key: str) -> torch.Tensor:
        """Read one tensor, in its own shape and dtype, on the CPU.

        Raises:
            StoreKeyError: a name or the index is refused.
            FileNotFoundError: there is no such run, batch, layer or key.
            StoreFileError: the file is damaged.
        """

    @abc.abstractmethod
    def list_runs(self) -> list[str]:
        """List the names of the runs, sorted; there are none before the first write."""

    @abc.abstractmethod
    def list_run_batches(self, run_id: str) -> list[int]:
        """List the indices of a run's batches, in numeric order.

        Raises:
            FileNotFoundError: there is no such run.
        """

    @abc.abstractmethod
    def list_layers(self, run_id: str, batch_index: int) -> list[str]:
        """List the names of a batch's layers, sorted.

        Raises:
            FileNotFoundError: there is no such run or batch.
        """

    @abc.abstractmethod
    def list_keys(self, run_id: str, batch_index: int, layer: str) -> list[str]:
        """List the keys of a layer's tensors, sorted.

        Raises:
            FileNotFoundError: there is no such run, batch or layer.
        """

    @abc.abstractmethod
    def put_run_batch(self, run_id: str, batch_index: int, tensors: Batch) -> str:
        """Keep a list or a dict of tensors of any shapes as one file.

        Returns:
            Where it is, relative to the store.

        Raises:
            StoreKeyError: a name or the index is refused.
            TypeError, ValueError: not a list or dict of tensors, or not ones that can be stored.
            OSError: it could not be written; the earlier batch is kept.

        Examples:
            >>> import tempfile
            >>> from mi_crow_lightning.store import LocalStore
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     LocalStore(folder).put_run_batch("run", 0, [torch.zeros(2), torch.ones(1)])
            ...     LocalStore(folder).get_run_batch("run", 0)
            'runs/run/batch_000000.safetensors'
            [tensor([0., 0.]), tensor([1.])]
        """

    @abc.abstractmethod
    def get_run_batch(self, run_id: str, batch_index: int) -> Batch:
        """Read a batch.

        One put as a whole comes back as it was given. One put tensor by tensor comes back as ``{key: tensor}`` when it
        has a single layer, else as ``{"<key>_<layer>": tensor}``. Of one put both ways, the whole comes back.

        Raises:
            FileNotFoundError: there is no such run or batch.
            ValueError: two tensors would get the same name; read them with `get`.
            StoreFileError: a file is damaged.
        """

    @abc.abstractmethod
    def delete_run(self, run_id: str) -> None:
        """Remove a run and all that it holds; do nothing if there is no such run."""

    @abc.abstractmethod
    def put_run_metadata(self, run_id: str, meta: dict[str, Any]) -> str:
        """Keep JSON metadata of a run, in place of what was kept before.

        Returns:
            Where it is, relative to the store: ``"runs/<run_id>/meta.json"``.

        Raises:
            StoreKeyError: ``run_id`` is refused.
            TypeError: ``meta`` is not a dict.
            ValueError: something in ``meta`` cannot be JSON, or is nested deeper than 100 levels; the message names it.
            OSError: it could not be written; the earlier metadata is kept.
        """

    @abc.abstractmethod
    def get_run_metadata(self, run_id: str) -> dict[str, Any]:
        """Read the metadata of a run; ``{}`` for a run that has none.

        Raises:
            StoreKeyError: ``run_id`` is refused.
            FileNotFoundError: there is no such run.
            StoreFileError: the file does not hold a JSON object.
        """

    @abc.abstractmethod
    def put_detector_metadata(
        self, run_id: str, batch_index: int, metadata: dict[str, Any], tensor_metadata: TensorMetadata
    ) -> str:
        """Keep what detectors gathered in one batch.

        Everything is checked before anything is written, and the metadata is written last.

        Returns:
            Where it is, relative to the store: ``"runs/<run_id>/batch_<batch_index>"``.

        Raises:
            StoreKeyError: a name or the index is refused.
            TypeError: ``metadata`` is not a dict, or a value of ``tensor_metadata`` is not a tensor.
            ValueError: a value cannot be JSON, or a tensor cannot be stored.
            OSError: a file could not be written.

        Examples:
            >>> import tempfile
            >>> from mi_crow_lightning.store import LocalStore
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = LocalStore(folder)
            ...     store.put_detector_metadata("run", 0, {"tokens": 4}, {"h.0": {"mean": torch.zeros(2)}})
            ...     store.get_detector_metadata("run", 0)
            'runs/run/batch_0'
            ({'tokens': 4}, {'h.0': {'mean': tensor([0., 0.])}})
        """

    @abc.abstractmethod
    def get_detector_metadata(self, run_id: str, batch_index: int) -> tuple[dict[str, Any], TensorMetadata]:
        """Read back what `put_detector_metadata` kept; ``({}, {})`` for a batch that has none.

        Raises:
            StoreKeyError: the run or the index is refused.
            FileNotFoundError: there is no such run or batch, or one of its tensors is gone.
            StoreFileError: a file is damaged, or was not written by a store.
        """

    @abc.abstractmethod
    def put_run_detector_metadata(self, run_id: str, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> str:
        """Append what detectors gathered to what the run has already; one writer per run at a time.

        Returns:
            Where it is, relative to the store: ``"runs/<run_id>/detectors"``.

        Raises:
            StoreKeyError, TypeError, ValueError, OSError: as for `put_detector_metadata`.
        """

    @abc.abstractmethod
    def get_run_detector_metadata(self, run_id: str) -> list[tuple[dict[str, Any], TensorMetadata]]:
        """Read back everything that `put_run_detector_metadata` appended, in that order.

        Raises:
            StoreKeyError, FileNotFoundError, StoreFileError: as for `get_detector_metadata`.
        """

    def get_detector_metadata_by_layer_by_key(
        self, run_id: str, batch_index: int, layer: str, key: str
    ) -> torch.Tensor:
        """Read one tensor that `put_detector_metadata` kept; the same as `get`."""
        return self.get(run_id, batch_index, layer, key)

    def iter_run_batches(self, run_id: str) -> Iterator[Batch]:
        """Go through `get_run_batch` of every batch, in numeric order.

        Raises:
            FileNotFoundError: there is no such run; raised by the call itself.
        """
        return self.iter_run_batch_range(run_id)

    def iter_run_batch_range(
        self, run_id: str, *, start: int = 0, stop: int | None = None, step: int = 1
    ) -> Iterator[Batch]:
        """Go through those batches whose index is in ``range(start, stop, step)``; gaps are passed over.

        Raises:
            ValueError: ``start`` is below 0 or ``step`` below 1.
            FileNotFoundError: there is no such run. Both are raised by the call itself.
        """
        if start < 0:
            raise ValueError(f"start must be >= 0, got {start}")
        if step < 1:
            raise ValueError(f"step must be >= 1, got {step}")
        indices = self.list_run_batches(run_id)
        wanted = range(start, indices[-1] + 1 if stop is None and indices else stop or 0, step)
        return (self.get_run_batch(run_id, index) for index in indices if index in wanted)

    def iterate(
        self, run_id: str, layer: str | None = None, key: str | None = None
    ) -> Iterator[tuple[int, str, str, torch.Tensor]]:
        """Go through ``(batch_index, layer, key, tensor)`` of all that `put` kept, in order.

        What there is, is listed by the call; each tensor is read when its turn comes.

        Args:
            run_id: the run.
            layer: only this layer; batches without it are passed over.
            key: only this key; layers without it are passed over.

        Raises:
            FileNotFoundError: there is no such run, or no batch has that layer or key.
        """
        found = self._addresses(run_id)
        for what, name, position in (("layer", layer, 1), ("key", key, 2)):
            if name is None:
                continue
            kept = [address for address in found if address[position] == name]
            if not kept:
                names = sorted({str(address[position]) for address in found})
                raise missing(what, name, names, self.base_path / self.runs_prefix / run_id)
            found = kept
        return ((*address, self.get(run_id, *address)) for address in found)

    def _addresses(self, run_id: str) -> list[tuple[int, str, str]]:
        return [
            (batch, layer, key)
            for batch in self.list_run_batches(run_id)
            for layer in self.list_layers(run_id, batch)
            for key in self.list_keys(run_id, batch, layer)
        ]
