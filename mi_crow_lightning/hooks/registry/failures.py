"""What happens to the errors of hooks once the pass is over: raise, disable the hook, or warn."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.hook import Hook

__all__ = ["act_on"]


def act_on(errors: Sequence[tuple[HookError, Hook, str]], outputs: Any) -> None:
    """Deal with the errors of one pass.

    Args:
        errors: each with its hook and the policy for it: ``"raise"``, ``"disable"`` or ``"warn"``.
        outputs: what the pass returned.

    Raises:
        HookError: the first error whose policy is ``"raise"``, with the others in ``others``.
    """
    to_raise = [error for error, _, policy in errors if policy == "raise"]
    for error, hook, policy in errors:
        if policy != "raise":
            _tell(error, hook, policy)
    if to_raise:
        first, *others = to_raise
        first.outputs = outputs
        first.others = tuple(others)
        raise first from first.original_error


def _tell(error: HookError, hook: Hook, policy: str) -> None:
    text = "".join(traceback.format_exception(error.original_error)).rstrip()
    if policy == "disable":
        hook.switch_off_after_pass()
        outcome = "It is disabled from now on, and the run goes on without it; hook.enable() brings it back."
    else:
        outcome = "The run goes on without what it would have done in this pass."
    warnings.warn(f"{error}\n{outcome}\n{text}", RuntimeWarning, stacklevel=2)
    _forget_frames(error)
    hook.error = error


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of what led to it.

    They keep every frame of the pass alive, and with the frames the activations.
    """
    chain = [error]
    for link in chain:  # it grows while we walk along
        link.__traceback__ = None
        chain += [e for e in (link.__cause__, link.__context__) if e is not None and e not in chain]
