"""`HookTrainerCallback`, which gives hooks the lifecycle of ``transformers.Trainer``, and so of TRL's trainers."""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
