"""Reports of layers that never ran while a hook was on, so that nothing was watched or edited there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import NeverFired
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.sites import Site
from mi_crow_lightning.hooks.schedules import Moment
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["refuse_silent_batch", "report_silent_layers"]


def report_silent_layers(hooks: Iterable[tuple[Hook, Sequence[Site], Sequence[Site]]], where: str) -> None:
    """Warn about the layers that never ran: each is named once, though several hooks may be on it.

    Args:
        hooks: each hook with its layers, and those of them that never ran.
        where: the stage, or block, in which the hooks were on.

    Raises:
        NeverFired: a hook edits, and none of its layers ran.
    """
    named: set[str] = set()
    for hook, sites, silent in hooks:
        message = f"{hook!r} was on in {where}, but these of its {len(sites)} layers never ran:"
        if silent and hook.edits and len(silent) == len(sites):
            raise NeverFired(f"{message} {_names(silent)}. Nothing was edited. Choose layers that run there.")
        not_named = [site for site in silent if site.match.name not in named]
        named.update(site.match.name for site in not_named)
        if not_named:
            warn(f"{message} {_names(not_named)}", NothingSeenWarning, stacklevel=3)


def refuse_silent_batch(hook: Hook, sites: Sequence[Site], moment: Moment) -> None:
    """Raise an error if none of a controller's layers ran in a batch, the first of its stage that it was due in.

    Raises:
        NeverFired: that is so.
    """
    if not any(site.ran_in(moment.stage) for site in sites):
        raise NeverFired(
            f"{hook!r} was on in stage {moment.stage.value!r} for the first time in batch {moment.batch_idx}, and none "
            f"of its {len(sites)} layers ran there: {_names(sites)}. Nothing was edited. Choose layers that run. If "
            "the model leaves them out of some batches (early exit, layerdrop, experts), give the hook may_skip=True."
        )


def _names(sites: Sequence[Site]) -> str:
    return ", ".join(site.match.name for site in sites[:8]) + (", ..." if len(sites) > 8 else "")
