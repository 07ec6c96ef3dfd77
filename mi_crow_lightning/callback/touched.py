"""Following, for one call of ``generate``, which tokens the controllers of all HookCallbacks of a Trainer change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import lightning.pytorch as pl
from torch import Tensor

from mi_crow_lightning import trainer_facts
from mi_crow_lightning.callback.hook_callback import HookCallback
from mi_crow_lightning.hooks.positions.touched import Touched, TouchedTokens
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.runs.hooked_run import HookedRun

__all__ = ["FollowedTokens", "following_tokens"]


class FollowedTokens:
    """The tokens that controllers changed since following them began.

    Args:
        runs: the runs of the HookCallbacks.
    """

    def __init__(self, runs: list[HookedRun]) -> None:
        self._followed = [_followed(run) for run in runs]
        for run, listener in zip(runs, self._followed, strict=True):
            run.effects.listener = listener

    def of(self, sequences: Tensor, width: int, drafts: bool = False, unknown: str | None = None) -> Touched:
        """Return the tokens that each controller changed, see `TouchedTokens`.

        Args:
            sequences: see there.
            width: see there.
            drafts: see there.
            unknown: why the rows that ran are not those of the sequences; ``None`` if they are.
        """
        found = Touched({}, {})
        for one in self._followed:
            if unknown is not None:
                found.unknown.update(dict.fromkeys(one.names.values(), unknown))
                continue
            of_run = one.of(sequences, width, drafts)
            found.marks.update(of_run.marks)
            found.unknown.update(of_run.unknown)
        return found


@contextmanager
def following_tokens(trainer: pl.Trainer) -> Iterator[FollowedTokens]:
    """Follow which tokens controllers change, for as long as the block runs.

    Args:
        trainer: the Trainer, in predict.
    """
    callbacks = [one for one in trainer_facts.callbacks_of(trainer) if isinstance(one, HookCallback)]
    runs = [one._run for one in callbacks if one._run is not None]
    try:
        yield FollowedTokens(runs)
    finally:
        for run in runs:
            run.effects.listener = None


def _followed(run: HookedRun) -> TouchedTokens:
    traced = [hook for hook in run.layers.traced_hooks() if run.layers.is_attached(hook)]
    compiled = {hook.id for hook in traced if any(s.is_traced and not s.is_called for s in run.layers.sites(hook))}
    unknown = {hook_id: "it is compiled into a graph" for hook_id in run.effects.hooks if hook_id in compiled}
    names = {hook_id: run.effects.names[hook_id] for hook_id in run.effects.hooks}
    return TouchedTokens(names, unknown, partial(run.effects.changed, Stage.PREDICT))
