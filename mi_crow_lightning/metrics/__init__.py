"""The maths: pure functions on flat buffers, and torchmetrics Metrics that hold the buffers.

Nothing here knows about hooks, the Trainer or loggers. Names are resolved on first use, because importing
torchmetrics loads transformers: importing this package loads neither torch nor torchmetrics.
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
