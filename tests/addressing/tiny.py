"""Tiny models of transformers' classes without numbers: their layers have names and classes, and take no memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from mi_crow_lightning.addressing.module_tree import ModuleTree

TEXT: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)
VISION: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
)


def tree_of(family: str, auto: Any = AutoModel, **sizes: Any) -> ModuleTree:
    """Return the modules of a model by its model type; skip the test where this transformers has none."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    with torch.device("meta"):
        model: nn.Module = auto.from_config(AutoConfig.for_model(family, **deepcopy(sizes)))
    return ModuleTree(model)
