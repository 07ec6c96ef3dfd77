"""`HookCallback`, and the parts that it is made of: Trainer events in; attach, context, readings, detach out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.callback.hook_callback import HookCallback

__all__ = ["HookCallback"]

_SOURCES = {"HookCallback": "mi_crow_lightning.callback.hook_callback"}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
