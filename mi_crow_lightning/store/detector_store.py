"""What a store keeps about a run besides single tensors: metadata, and what detectors gathered."""

from __future__ import annotations

import abc
from typing import Any

import torch

__all__ = ["DetectorStore", "TensorMetadata"]

TensorMetadata = dict[str, dict[str, torch.Tensor]]


class DetectorStore(abc.ABC):
    """Metadata of runs and of detectors. ``tensor_metadata`` is ``{layer: {key: tensor of any shape}}``.

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
    def put_run_metadata(self, run_id: str, meta: dict[str, Any]) -> str:
        """Keep JSON metadata of a run, in place of what was kept before.

        Returns:
            Where it is, relative to the store: ``"runs/<run_id>/meta.json"``.

        Raises:
            StoreKeyError: ``run_id`` is refused.
            TypeError: ``meta`` is no dict.
            ValueError: something in ``meta`` cannot be JSON; the message names it.
            OSError: it could not be written; the earlier metadata is kept.
        """

    @abc.abstractmethod
    def get_run_metadata(self, run_id: str) -> dict[str, Any]:
        """Read the metadata of a run; ``{}`` for a run that has none.

        Raises:
            StoreKeyError: ``run_id`` is refused.
            FileNotFoundError: there is no such run.
            ValueError: the file holds no JSON object.
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
            TypeError: ``metadata`` is no dict, or a value of ``tensor_metadata`` is no tensor.
            ValueError: a value cannot be JSON, or a tensor cannot be stored.
            OSError: a file could not be written.
        """

    @abc.abstractmethod
    def get_detector_metadata(self, run_id: str, batch_index: int) -> tuple[dict[str, Any], TensorMetadata]:
        """Read back what `put_detector_metadata` kept; ``({}, {})`` for a batch that has none.

        Raises:
            StoreKeyError: the run or the index is refused.
            FileNotFoundError: there is no such run or batch, or one of its tensors is gone.
            ValueError: the metadata file was not written by a store.
            OSError: a tensor's file is damaged.
        """

    @abc.abstractmethod
    def put_run_detector_metadata(self, run_id: str, metadata: dict[str, Any], tensor_metadata: TensorMetadata) -> str:
        """Append what detectors gathered to what the run has already; one writer per run at a time.

        Returns:
            Where it is, relative to the store: ``"runs/<run_id>/detectors"``.

        Raises:
            StoreKeyError, TypeError, ValueError, OSError: as `put_detector_metadata`.
        """

    @abc.abstractmethod
    def get_run_detector_metadata(self, run_id: str) -> list[tuple[dict[str, Any], TensorMetadata]]:
        """Read back all that `put_run_detector_metadata` appended, in that order.

        Raises:
            StoreKeyError, FileNotFoundError, ValueError, OSError: as `get_detector_metadata`.
        """
