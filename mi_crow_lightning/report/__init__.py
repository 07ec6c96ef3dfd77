"""A report on a run before it starts: its layers, the hooks on them, what is supported and what is not."""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
