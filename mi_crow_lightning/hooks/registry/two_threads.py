"""The rules for two threads that are in one model at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import ThreadConflict
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["refuse_half_a_pass", "refuse_traced_in_two_threads", "second_thread", "warn_of_effects"]


def second_thread(first: str) -> ThreadConflict:
    """Return the error for a detector in a pass that runs beside another thread's.

    Args:
        first: the name of the other thread.
    """
    return ThreadConflict(
        f"thread {_here()!r} began a pass while thread {first!r} was in one: a detector adds up what it sees, and is "
        "for one thread at a time. Let the threads take turns, with a lock around the model's calls, or give each its "
        "own copy of the model. Controllers may act in several threads at once."
    )


def refuse_traced_in_two_threads(hooks: Sequence[Hook], first: str) -> None:
    """Refuse hooks in a graph of ``torch.compile``, which knows only one pass at a time.

    Args:
        hooks: the hooks.
        first: the name of the other thread.

    Raises:
        ThreadConflict: there is such a hook.
    """
    if hooks:
        raise ThreadConflict(
            f"thread {_here()!r} began a pass while thread {first!r} was in one, and {hooks[0]!r} is in a graph of "
            "torch.compile, which knows one pass at a time. Let the threads take turns, or run without torch.compile."
        )


def refuse_half_a_pass(names: Sequence[str]) -> None:
    """Refuse to take a hook off in the middle of a pass.

    Args:
        names: the threads that are in one.

    Raises:
        ThreadConflict: in any case.
    """
    raise ThreadConflict(
        f"the hook comes off while thread {', '.join(map(repr, names[:4]))} is in the middle of a pass through the "
        "model, whose rest runs without it. Wait for the thread, thread.join(), before the batch or block ends."
    )


def warn_of_effects(first: str) -> None:
    """Warn that the pass of a second thread is not counted among the effects."""
    warn(
        f"thread {_here()!r} began a pass while thread {first!r} was in one: its edits are made, and effects() leaves "
        "them out.",
        InexactWarning,
        stacklevel=2,
    )


def _here() -> str:
    return threading.current_thread().name
