"""Where a local store keeps what, and what is there.

::

    <base>/<runs_prefix>/<run>/meta.json                             put_run_metadata
                              /batch_<i>/<layer>/<key>.safetensors   put
                              /batch_<i>/metadata.json               put_detector_metadata
                              /batch_<i, 6 digits>.safetensors       put_run_batch
                              /detectors/batch_<n>/...               put_run_detector_metadata
"""

from __future__ import annotations

from pathlib import Path

from mi_crow_lightning.store.files import holds_file, inside, is_file, is_folder, visible
from mi_crow_lightning.store.keys import (
    SUFFIX,
    batch_file_name,
    batch_folder_name,
    check_name,
    read_batch_name,
    split_path,
)
from mi_crow_lightning.store.missing import missing

__all__ = ["Folders", "batches_in", "keys_in", "layers_in"]

_METADATA = "metadata.json"


def keys_in(layer: Path) -> list[str]:
    """List the keys of the tensors in a layer's folder, sorted."""
    return sorted(
        entry.name.removesuffix(SUFFIX) for entry in visible(layer) if entry.name.endswith(SUFFIX) and is_file(entry)
    )


def layers_in(batch: Path) -> list[str]:
    """List the layers with at least one tensor in a batch's folder, sorted."""
    return [entry.name for entry in visible(batch) if is_folder(entry) and keys_in(Path(entry.path))]


def batches_in(run: Path) -> list[int]:
    """List the indices of the batches in a run's folder, in numeric order, whichever way they were put."""
    found = set[int]()
    for entry in visible(run):
        index = read_batch_name(entry.name)
        if index is None:
            continue
        if is_file(entry) if entry.name.endswith(SUFFIX) else is_folder(entry) and holds_file(Path(entry.path)):
            found.add(index)
    return sorted(found)


class Folders:
    """Checked paths below one base folder. Nothing here writes.

    Args:
        base: the folder; it may not exist yet.
        runs_prefix: folder for the runs, below ``base``.

    Raises:
        StoreKeyError: from every method, for a name that is refused or a link that leads out of ``base``.

    Examples:
        >>> Folders(Path("/data"), "runs").batch("a", 3).as_posix()
        '/data/runs/a/batch_3'
    """

    def __init__(self, base: Path, runs_prefix: str) -> None:
        self.base = base
        self._prefix = split_path(runs_prefix)

    def free(self, key: str) -> Path:
        """Return the path of a tensor that belongs to no run."""
        return inside(self.base, *split_path(key))

    def is_runs(self, key: str) -> bool:
        """Say whether ``key`` lies in the folder of the runs, or is that folder."""
        return split_path(key)[: len(self._prefix)] == self._prefix

    def run(self, run_id: str, *below: str) -> Path:
        """Return the path of a run, or of something in it."""
        return inside(self.base, *self._prefix, check_name("run_id", run_id), *below)

    def batch(self, run_id: str, batch_index: int) -> Path:
        """Return the path of the folder with the layers of a batch."""
        return self.run(run_id, batch_folder_name(batch_index))

    def batch_file(self, run_id: str, batch_index: int) -> Path:
        """Return the path of the file with a whole batch."""
        return self.run(run_id, batch_file_name(batch_index))

    def part(self, run_id: str, number: int) -> Path:
        """Return the path of the folder with what was appended to a run's detectors the ``number``-th time."""
        return self.run(run_id, "detectors", batch_folder_name(number))

    def metadata(self, batch: Path) -> Path:
        """Return the path of the metadata in a batch's folder."""
        return self._below(batch, _METADATA)

    def layer(self, batch: Path, layer: str) -> Path:
        """Return the path of a layer in a batch's folder."""
        return self._below(batch, check_name("layer", layer, reserved=_METADATA))

    def tensor(self, batch: Path, layer: str, key: str) -> Path:
        """Return the path of one tensor in a batch's folder."""
        return self._below(self.layer(batch, layer), check_name("key", key, suffix=SUFFIX) + SUFFIX)

    def _below(self, folder: Path, name: str) -> Path:
        return inside(self.base, *folder.relative_to(self.base).parts, name)

    def runs(self) -> list[str]:
        """List the runs that hold anything, sorted."""
        entries = visible(inside(self.base, *self._prefix))
        return [entry.name for entry in entries if is_folder(entry) and holds_file(Path(entry.path))]

    def existing_run(self, run_id: str) -> Path:
        """Return the path of a run that is there.

        Raises:
            FileNotFoundError: it is not.
        """
        path = self.run(run_id)
        if holds_file(path):
            return path
        raise missing("run", run_id, self.runs(), path.parent)

    def existing_batch(self, run_id: str, batch_index: int) -> Path:
        """Return the path of the folder of a batch that is there, as a folder or as a file.

        Raises:
            FileNotFoundError: it is not, or its run is not.
        """
        path = self.batch(run_id, batch_index)
        if holds_file(path) or self.batch_file(run_id, batch_index).is_file():
            return path
        raise missing("batch", batch_index, batches_in(self.existing_run(run_id)), path.parent)

    def existing_layer(self, run_id: str, batch_index: int, layer: str) -> Path:
        """Return the path of a layer that is there.

        Raises:
            FileNotFoundError: it is not, or its batch or run is not.
        """
        path = self.layer(self.batch(run_id, batch_index), layer)
        if keys_in(path):
            return path
        raise missing("layer", layer, layers_in(self.existing_batch(run_id, batch_index)), path.parent)
