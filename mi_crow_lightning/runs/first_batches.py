"""Controllers must act from the first batch that they are due in: what only looks steered must not be used."""

from __future__ import annotations

from collections.abc import Iterable

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.silent_layers import refuse_silent_batch
from mi_crow_lightning.hooks.schedules import Moment

__all__ = ["FirstBatches"]


class FirstBatches:
    """The controllers that have not run in a stage so far, and so must run in the running batch.

    Args:
        layers: the registry that holds them.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._must_run: list[Hook] = []

    def begin(self, hooks: Iterable[Hook], moment: Moment) -> None:
        """Begin a batch, with the hooks that are on in it: one that is switched on later may find its layers over."""
        controllers = [hook for hook in hooks if hook.edits and not hook.may_skip and self._layers.is_attached(hook)]
        self._must_run = [
            hook for hook in controllers if not any(site.ran_in(moment.stage) for site in self._layers.sites(hook))
        ]

    def check(self, moment: Moment) -> None:
        """Check, once the step of the batch has returned, that the controllers ran.

        Raises:
            NeverFired: no layer of a controller ran.
        """
        must_run, self._must_run = self._must_run, []
        for hook in must_run:
            if hook.registered and hook.enabled:  # not switched off, nor failed, in the meantime
                refuse_silent_batch(hook, self._layers.sites(hook), moment)
