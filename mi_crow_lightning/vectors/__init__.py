"""Steering vectors: the value, its extraction in the Trainer, its file formats.

=========================  ===========================================================================
`SteeringVector`           one direction per layer, with its origin; arithmetic, norms, files
`ContrastDetector`         extracts one from texts of two classes, and says which layer separates them
`PairCollator`             makes its batches of pairs of texts; `LabelCollator` of labelled texts
`read_control_vector`      a control vector of llama.cpp or repeng (GGUF); `write_control_vector`
`from_steering_vectors`    an object of the package steering-vectors; `to_steering_vectors`
`from_sae`                 a feature's decoder row of an autoencoder in SAELens' format
=========================  ===========================================================================

::

    detector = ContrastDetector("block:*")
    trainer = lightning.Trainer(callbacks=[HookCallback(detectors=[detector])])
    trainer.predict(module, DataLoader(pairs, batch_size=8, collate_fn=PairCollator(tokenize)))
    detector.vectors().save("joy.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.detectors.contrast import ContrastDetector
    from mi_crow_lightning.metrics.separability import Separability
    from mi_crow_lightning.vectors.collate import LabelCollator, PairCollator
    from mi_crow_lightning.vectors.fit import model_name
    from mi_crow_lightning.vectors.formats.control_vector import read_control_vector, write_control_vector
    from mi_crow_lightning.vectors.formats.sae_lens import from_sae
    from mi_crow_lightning.vectors.formats.steering_vectors import from_steering_vectors, to_steering_vectors
    from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = [
    "ContrastDetector",
    "LabelCollator",
    "PairCollator",
    "Separability",
    "SteeringVector",
    "from_sae",
    "from_steering_vectors",
    "model_name",
    "read_control_vector",
    "to_steering_vectors",
    "write_control_vector",
]

_VECTORS = "mi_crow_lightning.vectors"
_FORMATS = f"{_VECTORS}.formats"
_SOURCES = {
    **dict.fromkeys(["LabelCollator", "PairCollator"], f"{_VECTORS}.collate"),
    **dict.fromkeys(["read_control_vector", "write_control_vector"], f"{_FORMATS}.control_vector"),
    **dict.fromkeys(["from_steering_vectors", "to_steering_vectors"], f"{_FORMATS}.steering_vectors"),
    "ContrastDetector": "mi_crow_lightning.hooks.detectors.contrast",
    "Separability": "mi_crow_lightning.metrics.separability",
    "SteeringVector": f"{_VECTORS}.steering_vector",
    "from_sae": f"{_FORMATS}.sae_lens",
    "model_name": f"{_VECTORS}.fit",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
