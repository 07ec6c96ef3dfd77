"""Hugging Face language models: train and generate in a Trainer, or run texts outside one while hooks act.

No other part of the package needs this one.
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
