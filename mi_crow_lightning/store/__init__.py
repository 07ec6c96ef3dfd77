"""Keep tensors on disk by run, batch, layer and key.

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

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.store.local_store import LocalStore
    from mi_crow_lightning.store.store import Store

__all__ = ["LocalStore", "Store"]

_SOURCES = {
    "LocalStore": "mi_crow_lightning.store.local_store",
    "Store": "mi_crow_lightning.store.store",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
