"""`HookCallback`, and the parts that it is made of: Trainer events in; attach, context, readings, detach out."""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
