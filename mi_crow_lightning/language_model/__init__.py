"""A Hugging Face language model: in a Trainer, or with layers to hook and texts to run. Nothing else needs it."""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
