"""Positions that do not count padding, so that a text's activations do not depend on the padding before it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["positions_of", "takes_positions", "with_positions"]

_COUNTING = ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds")


def with_positions(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with the ``position_ids`` that a model needs to read texts that are padded on the left.

    ``generate`` passes them itself; a plain call of a model does not, and a model with learned positions, such as
    GPT-2, would then count the padding. The batch is returned as it is if its texts are not padded on the left, it has
    position IDs, or the model takes none or leaves the padding out itself, as RoBERTa does.

    Args:
        model: a model of transformers.
        batch: ``input_ids`` and ``attention_mask``, each ``(B, T)``, and whatever else the model takes.

    Examples:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16))
        >>> batch = {"input_ids": torch.tensor([[0, 0, 5]]), "attention_mask": torch.tensor([[0, 0, 1]])}
        >>> with_positions(model, batch)["position_ids"]
        tensor([[0, 0, 0]])
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not (mask[:, :1] == 0).any():
        return dict(batch)
    if "position_ids" in batch or not takes_positions(model) or _counts_itself(model):
        return dict(batch)
    return {**batch, "position_ids": positions_of(mask)}


def positions_of(mask: Tensor) -> Tensor:
    """Count positions without padding, as ``generate`` does.

    Args:
        mask: ``(B, T)``, 0 where a token is padding.

    Examples:
        >>> import torch
        >>> positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
        tensor([[0, 0, 0, 1], [0, 1, 2, 2]])
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def takes_positions(model: nn.Module) -> bool:
    """Return whether a model can be called with ``position_ids``."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _counts_itself(model: nn.Module) -> bool:
    return any(hasattr(module, name) for module in model.modules() for name in _COUNTING)
