"""The pass of a snapshot of ``transformers.Trainer``: the model's call and its backward pass, without a Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.before_pass import set_random_states
from mi_crow_lightning.errors import SnapshotError

__all__ = ["NOTE", "is_of_model", "step_of_model"]

NOTE = "the loss is that of model(**batch): what else a Trainer computes is not run again"

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_of_model(content: Mapping[str, Any]) -> bool:
    """Return whether a snapshot is of a model of ``transformers.Trainer``, and not of a LightningModule."""
    return "transformers" in content["versions"]


def step_of_model(model: nn.Module, content: Mapping[str, Any]) -> float:
    """Run the model on the batch of a snapshot, and its backward pass; return the loss.

    Args:
        model: the model, with the weights and modes of the snapshot.
        content: the snapshot.

    Raises:
        SnapshotError: the model does not take such a batch, or gives no loss for it.
    """
    batch, dtype = content["batch"], _DTYPES.get(content["precision"])
    if not isinstance(batch, Mapping):
        raise SnapshotError(f"the snapshot's batch is {shown(batch)}, and the model takes its inputs by name")
    model.zero_grad(set_to_none=True)
    set_random_states(content["random"])
    try:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = model(**{str(name): value for name, value in batch.items()})
    except (
        TypeError,
        ValueError,
    ) as error:  # a Trainer may make inputs of it
        raise SnapshotError(
            f"{type(model).__name__} does not take the snapshot's batch, with {shown(list(batch))}: "
            f"{message_of(error)}. Only a Trainer that calls model(**batch) can be run again"
        ) from error
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if not isinstance(loss, Tensor):
        raise SnapshotError(
            f"{type(model).__name__} gives no loss for the snapshot's batch, with {shown(list(batch))}: only a pass in "
            "which the model computes its loss can be run again"
        )
    mean = loss.float().mean()
    mean.backward()
    return float(mean.detach())
