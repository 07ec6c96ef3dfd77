"""A guard for the running model's tensors against hooks that write to them.

A hook gets the model's own tensor. Writing to it would silently change the run: a detector would no longer only
observe, and an edit would reach positions that were not chosen. torch counts the writes to a tensor in its version,
which the caller compares. In inference mode tensors have no version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mi_crow_lightning._messages import message_of
from mi_crow_lightning.errors import WrittenInPlace

__all__ = ["out_of_inference", "written"]

R = TypeVar("R")

# What torch.inference_mode() and torch.no_grad() call, without the work around it.
_InferenceMode, _set_grad_enabled = torch._C._InferenceMode, torch._C._set_grad_enabled


def out_of_inference(function: Callable[..., R], hook: Any, *arguments: Any) -> R:
    """Return ``function(hook, *arguments)``, called outside inference mode and without recording gradients.

    There, torch refuses writes to an inference tensor.

    Raises:
        WrittenInPlace: the function tried to write to one.
    """
    try:
        with _InferenceMode(False):
            _set_grad_enabled(False)  # until the guard brings back what was before
            return function(hook, *arguments)
    except RuntimeError as error:
        if "Inplace update to inference tensor" in message_of(error):
            raise written(hook) from error
        raise


def written(hook: Any) -> WrittenInPlace:
    """Return the error for a hook that wrote to the activation it got."""
    return WrittenInPlace(
        f"{type(hook).__name__} wrote to the activation it was given, which is the model's own tensor: this run's "
        "numbers are changed. Work on a copy (x.clone(), or x * 2 instead of x.mul_(2)) and return the new tensor."
    )
