"""A Hugging Face language model with layers to hook and texts to run: optional, nothing else needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.language_model.inference import Inference
    from mi_crow_lightning.language_model.language_model import LanguageModel

__all__ = ["Inference", "LanguageModel"]

_SOURCES = {
    "Inference": "mi_crow_lightning.language_model.inference",
    "LanguageModel": "mi_crow_lightning.language_model.language_model",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
