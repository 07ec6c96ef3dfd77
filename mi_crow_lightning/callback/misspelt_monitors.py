"""The error of a misspelt ``monitor``: Lightning lists all that could be monitored, thousands of readings among it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

__all__ = ["leave_out_readings"]

_LONG = 2000  # characters
_KEPT = 5
_LISTED = re.compile(r"(['`])([^'`]*)\1, ")  # a name in a list, as Lightning writes it


def leave_out_readings(error: BaseException, tags: Callable[[], Collection[str]]) -> None:
    """Shorten the message of an error that lists many readings: a few of them stay, and all other names.

    Args:
        error: the error that ends a run.
        tags: returns the tags of all readings.

    Examples:
        >>> tags = [f"activations_rms/layers.{i}" for i in range(100)]
        >>> error = RuntimeError(f"no 'val_loss' in {['loss', *tags, 'epoch']}")
        >>> leave_out_readings(error, lambda: tags)
        >>> len(str(error)) < 500, "'loss'" in str(error), "'epoch'" in str(error)
        (True, True, True)
    """
    if len(error.args) != 1 or not isinstance(error.args[0], str) or len(error.args[0]) < _LONG:
        return
    known = set(tags())
    left_out = {name for _, name in _LISTED.findall(error.args[0]) if name in known}
    left_out -= set(sorted(left_out)[:_KEPT])
    if left_out:
        message = _LISTED.sub(lambda listed: "" if listed[2] in left_out else listed[0], error.args[0])
        error.args = (
            f"{message} ({len(left_out):,} more readings of HookCallback are there: history() has their tags)",
        )
