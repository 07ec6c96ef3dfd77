"""Reports of layers that never ran while a hook was on, so that nothing was watched or edited there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from mi_crow_lightning.errors import NeverFired
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.sites import Site

__all__ = ["report_silent_layers"]


def report_silent_layers(hook: Hook, sites: Sequence[Site], silent: Sequence[Site], where: str) -> None:
    """Warn about the layers that never ran, if there are any.

    Args:
        hook: the hook.
        sites: its layers.
        silent: the layers that never ran.
        where: the stage, or block, in which the hook was on.

    Raises:
        NeverFired: the hook edits, and none of its layers ran.
    """
    if not silent:
        return
    names = [site.match.name for site in silent]
    message = (
        f"{hook!r} was on in {where}, but these of its {len(sites)} layers never ran: "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    )
    if hook.edits and len(silent) == len(sites):
        raise NeverFired(f"{message}. Nothing was edited. Choose layers that run there.")
    warnings.warn(message, stacklevel=3)
