"""Guarding the running model's tensors against hooks that write to them.

What a hook is given is no copy, so writing to it would change the run, and unnoticed: a detector would no
longer only observe, and an edit would reach positions that were not chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mi_crow_lightning.errors import WrittenInPlace

__all__ = ["guarded"]


@contextmanager
def guarded(x: Tensor | None, who: str) -> Iterator[None]:
    """While the block runs, ``x`` must not be written to.

    In inference mode tensors count no versions, but outside of it torch tells when they are written to: so
    the block leaves that mode, without recording gradients. In a graph that is being compiled versions cannot be
    asked for, so nothing is guarded there.

    Args:
        x: the model's own tensor; without one there is nothing to guard.
        who: what runs in the block, for the message.

    Raises:
        WrittenInPlace: it was written to.
    """
    if x is None or torch.compiler.is_compiling():
        yield
        return
    if x.is_inference():
        try:
            with torch.inference_mode(False), torch.no_grad():
                yield
        except RuntimeError as error:
            if "Inplace update to inference tensor" in str(error):
                raise _written(who) from error
            raise
        return
    version = x._version
    yield
    if x._version != version:
        raise _written(who)


def _written(who: str) -> WrittenInPlace:
    return WrittenInPlace(
        f"{who} wrote to the activation it was given, which is the model's own: this run's numbers are changed. "
        "Work on a copy (x.clone(), or x * 2 instead of x.mul_(2)) and return what is to replace it."
    )
