"""The check that a hook's state can be written, where an error can still name the hook."""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import Tensor

from mi_crow_lightning.hooks.hook import Hook

__all__ = ["saveable_state"]


class _Trial(pickle.Pickler):
    """A pickler that leaves tensors out, so that a trial costs no copy of them."""

    def persistent_id(self, value: object) -> str | None:
        return "tensor" if isinstance(value, Tensor) else None


def saveable_state(hook: Hook) -> dict[str, Any]:
    """Return the hook's `state_dict` if a checkpoint can hold it.

    Raises:
        TypeError: it is not a dict, or holds something that cannot be pickled: the checkpoint would be lost, and with
            several ranks the others would wait for this one.
    """
    state = hook.state_dict()
    if not isinstance(state, dict):
        raise TypeError(f"state_dict() must return a dict, not a {type(state).__name__}")
    try:
        _Trial(io.BytesIO()).dump(state)
    except Exception as error:  # whatever the parts of the state raise
        raise TypeError("state_dict() must hold tensors, numbers and strings: a checkpoint cannot hold this") from error
    return state
