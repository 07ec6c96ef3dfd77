"""A Hugging Face language model: in a Trainer, or with layers to hook and texts to run. Nothing else needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.language_model.causal_lm import CausalLMModule
    from mi_crow_lightning.language_model.generated import GeneratedText, by_strength
    from mi_crow_lightning.language_model.inference import Inference
    from mi_crow_lightning.language_model.language_model import LanguageModel
    from mi_crow_lightning.language_model.prediction_writer import PredictionWriter
    from mi_crow_lightning.language_model.texts import TextCollator

__all__ = [
    "CausalLMModule",
    "GeneratedText",
    "Inference",
    "LanguageModel",
    "PredictionWriter",
    "TextCollator",
    "by_strength",
]

_SOURCES = {
    "CausalLMModule": "mi_crow_lightning.language_model.causal_lm",
    "GeneratedText": "mi_crow_lightning.language_model.generated",
    "Inference": "mi_crow_lightning.language_model.inference",
    "LanguageModel": "mi_crow_lightning.language_model.language_model",
    "PredictionWriter": "mi_crow_lightning.language_model.prediction_writer",
    "TextCollator": "mi_crow_lightning.language_model.texts",
    "by_strength": "mi_crow_lightning.language_model.generated",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
