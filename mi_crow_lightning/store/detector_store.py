"""The old place of what `Store` does for detectors, kept so that earlier imports still work."""

from mi_crow_lightning.store.store import Store, TensorMetadata

__all__ = ["DetectorStore", "TensorMetadata"]

DetectorStore = Store
