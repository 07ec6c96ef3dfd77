"""The operation by which a graph of ``torch.compile`` reports that a token module is called.

While a graph is made, the call's tensors are known, but neither their values nor whether ``generate`` is running. The
operation hands the tensors over when the graph runs, and returns the number of the facts that hooks of the pass get.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.kept import keep, like_kept

__all__ = ["PassInGraph"]

_TENSORS = ("mask", "input_ids", "position_ids", "boundaries", "text_numbers", "encoder_mask")
_COUNTS = ("past", "embedded", "embedded_rows")
_FLAGS = ("past_unknown", "mask_is_padding", "encoder_mask_is_padding")
_UNKNOWN = -1

_numbers = itertools.count()
_calls: WeakValueDictionary[int, PassInGraph] = WeakValueDictionary()


class PassInGraph:
    """Reports the calls of one token module.

    Args:
        complete: adds to the facts of a call what is known when it runs.
    """

    def __init__(self, complete: Callable[[PassFacts], PassFacts]) -> None:
        self._complete = complete
        self._number = next(_numbers)
        _calls[self._number] = self

    def begin(self, facts: PassFacts) -> Tensor:
        """Report a call, and return the number of its facts."""
        tensors = [getattr(facts, name) for name in _TENSORS]
        counts = [_UNKNOWN if getattr(facts, name) is None else getattr(facts, name) for name in _COUNTS]
        flags = [getattr(facts, name) for name in _FLAGS]
        number: Tensor = _begin(tensors, counts, flags, facts.unreadable or "", self._number)
        return number

    def completed(self, values: dict[str, Any]) -> PassFacts:
        """Return the facts of a call that runs."""
        return self._complete(PassFacts(takes_mask=True, **values))


@torch.library.custom_op(
    "mi_crow_lightning::begin_pass",
    mutates_args=(),
    schema="(Tensor?[] tensors, SymInt[] counts, bool[] flags, str unreadable, int call) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _begin(
    tensors: Sequence[Tensor | None], counts: Sequence[int], flags: Sequence[bool], unreadable: str, call: int
) -> Tensor:
    known = {name: None if count == _UNKNOWN else count for name, count in zip(_COUNTS, counts, strict=True)}
    values = dict(zip(_TENSORS, tensors, strict=True)) | known | dict(zip(_FLAGS, flags, strict=True))
    return keep(_calls[call].completed(values | {"unreadable": unreadable or None}))


@_begin.register_fake
def _(tensors: Any, counts: Any, flags: Any, unreadable: str, call: int) -> Tensor:
    return like_kept()
