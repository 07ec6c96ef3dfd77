"""Tensors on disk, by run, batch, layer and key.

Importing this package does not load torch: each name is loaded when it is first asked for.

Examples:
    >>> import tempfile
    >>> import torch
    >>> from mi_crow_lightning.store import LocalStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = LocalStore(folder)
    ...     path = store.put("run", 0, "transformer.h.0", "activations", torch.ones(2, 3))
    ...     store.get("run", 0, "transformer.h.0", "activations").shape
    torch.Size([2, 3])
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
