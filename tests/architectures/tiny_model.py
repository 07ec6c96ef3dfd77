"""A tiny random model of each architecture that the installed transformers has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from tests.architectures.needs import OF_KIND
from tests.architectures.shrunk import shrunk

MOST_WEIGHTS = 120_000_000

# The kinds, and transformers' tables of the classes that have each; an architecture may have several kinds.
TABLES: dict[str, str] = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image+text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "CTC": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "other": "MODEL_MAPPING_NAMES",
}


class NotBuilt(RuntimeError):
    """No tiny model of an architecture can be made, or none that runs."""


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, as one of its kinds.

    Attributes:
        model_type: transformers' name of the architecture, such as ``"llama"``.
        kind: what it is called with, a key of `TABLES`.
        class_name: the class.
    """

    model_type: str
    kind: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.model_type}"


def architectures() -> list[Architecture]:
    """Return all architectures of the installed transformers; ``other`` are those of no kind before it."""
    found: list[Architecture] = []
    for kind, table in TABLES.items():
        for model_type, names in getattr(modeling_auto, table, {}).items():
            if kind == "other" and any(one.model_type == model_type for one in found):
                continue
            found.append(Architecture(model_type, kind, names if isinstance(names, str) else names[0]))
    return found


def tiny_model(architecture: Architecture) -> Any:
    """Return a random model in evaluation mode.

    Raises:
        NotBuilt: the class needs a library that is not installed, or its small configuration does not fit.
    """
    model_class: Any = _class_of(architecture)
    try:
        config = shrunk(model_class.config_class, **OF_KIND.get((architecture.kind, architecture.model_type), {}))
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in model_class(config).parameters())
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {in_short(error)}") from error
    if weights > MOST_WEIGHTS:
        raise NotBuilt(f"its small configuration still has {weights:,} weights")
    torch.manual_seed(0)
    return _seen_apart(model_class(config)).eval()


def _class_of(architecture: Architecture) -> Any:
    found = getattr(transformers, architecture.class_name, None)
    if found is not None:
        return found
    module = importlib.import_module(f"transformers.models.{architecture.model_type.replace('-', '_')}")
    if not hasattr(module, architecture.class_name):
        raise NotBuilt(f"transformers does not export {architecture.class_name}")
    return getattr(module, architecture.class_name)


def _seen_apart(model: nn.Module) -> nn.Module:
    """Give weights a size at which the blocks change what they are given, and none stays at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and weight.dim() > 1:
                weight.add_(torch.empty(weight.shape).normal_(0, 0.02, generator=generator).to(weight.dtype))
    return model


def in_short(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters."""
    return " ".join(str(error).split())[:400]
