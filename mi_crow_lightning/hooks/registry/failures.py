"""The treatment of hooks' errors once the pass is over: raise, disable the hook, or warn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mi_crow_lightning._messages import traceback_of
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["act_on"]


def act_on(errors: Sequence[tuple[HookError, Hook, str]], outputs: Any) -> None:
    """Raise or report the errors of one pass.

    Args:
        errors: each error with its hook and the hook's policy: ``"raise"``, ``"disable"`` or ``"warn"``.
        outputs: what the pass returned.

    Raises:
        HookError: the first error whose policy is ``"raise"``, with the others in ``others``.
    """
    to_raise = [error for error, _, policy in errors if policy == "raise"]
    for error, hook, policy in errors:
        if policy != "raise":
            _warn_of(error, hook, policy)
    if to_raise:
        first, *others = to_raise
        first.outputs = outputs
        first.others = tuple(others)
        raise first from first.original_error


def _warn_of(error: HookError, hook: Hook, policy: str) -> None:
    if error.unreadable is not None and hook.error is not None and hook.error.unreadable == error.unreadable:
        return  # said before in this run
    text = traceback_of(error.original_error)
    if error.unreadable is not None:
        outcome = (
            "The hook is left out of this pass and stays on: it acts in passes with plain tensors, and its readings "
            "are of those alone. This is said once."
        )
    elif policy == "disable":
        hook._switch_off_after_pass()
        outcome = "The hook is disabled from now on and the run goes on without it; hook.enable() switches it on again."
    else:
        outcome = "The run goes on without the hook's effect in this pass."
    warn(f"{error}\n{outcome}\n{text}", FailureWarning, stacklevel=2)
    _forget_frames(error)
    hook.error = error


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of what led to it.

    They keep every frame of the pass alive, and with them its activations.
    """
    chain = [error]
    for link in chain:  # the list grows during the loop
        link.__traceback__ = None
        for led in (link.__cause__, link.__context__):
            if led is not None and all(led is not known for known in chain):  # not `in`, which asks its __eq__
                chain.append(led)
